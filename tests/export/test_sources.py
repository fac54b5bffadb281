"""The key covers all that a bundle is made from, and a base that the runtime cannot serve is refused."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mimicmotion_trt import CheckpointError
from mimicmotion_trt.engines import ImageStatistics
from mimicmotion_trt.export import build
from mimicmotion_trt.export.build import build_key, code_files, hash_code
from mimicmotion_trt.export.networks import check_scaling_factor, check_scheduler
from mimicmotion_trt.export.options import Options, PlanOptions
from mimicmotion_trt.training.checkpoints import image_statistics, load_image_encoder


def test_everything_that_goes_in_is_in_the_key(micro, tmp_path):
    base = Path(shutil.copytree(micro.base, tmp_path / "svd"))
    checkpoint = Path(shutil.copy(micro.checkpoint, tmp_path / "model.pth"))
    options = Options()
    keys = [build_key(base, checkpoint, options)]
    assert build_key(micro.base, micro.checkpoint, options) == keys[0]  # wherever the files lie
    for change in (
        {"segment": 16},
        {"note": "x"},
        {"rows": (1,)},
        {"sizes": ((64, 64),)},
        {"defaults": {"steps": 3}},
        {"precision": "fp16"},
        {"precision": "fp8"},
    ):
        keys.append(build_key(base, checkpoint, replace(options, **change)))
    for path in (*(base / part / "config.json" for part in ("unet", "vae", "image_encoder")),
                 base / "scheduler" / "scheduler_config.json",
                 base / "feature_extractor" / "preprocessor_config.json",
                 base / "vae" / "diffusion_pytorch_model.safetensors",
                 base / "image_encoder" / "model.safetensors", checkpoint):  # fmt: skip
        path.write_bytes(path.read_bytes() + b" ")
        keys.append(build_key(base, checkpoint, options))
    assert len(set(keys)) == len(keys)


def test_another_weight_is_another_key(micro, state_of, tmp_path):
    state = state_of(micro)
    state["unet.conv_in.bias"] += 1
    torch.save(state, tmp_path / "other.pth")
    assert build_key(micro.base, tmp_path / "other.pth", Options()) != build_key(
        micro.base, micro.checkpoint, Options()
    )


def test_the_code_that_makes_and_judges_engines_is_in_the_key(tmp_path):
    files = code_files()
    assert {path.name for path in Path(build.__file__).parent.glob("*.py")} <= {path.name for path in files}
    assert {"spec.py", "checkpoints.py", "networks.py"} <= {path.name for path in files}
    for number, path in enumerate(files):
        copies = [Path(shutil.copy(file, tmp_path / f"{index}.py")) for index, file in enumerate(files)]
        assert hash_code(copies) == hash_code(files)  # wherever it is installed
        copies[number].write_text(path.read_text() + "# changed\n")
        assert hash_code(copies) != hash_code(files)


def test_the_chunks_that_plans_are_compiled_for_are_in_the_key(micro, monkeypatch):
    pytest.importorskip("tensorrt_rtx")
    graphs, plans = Options(), Options(backend="tensorrt-rtx")
    before = [build_key(micro.base, micro.checkpoint, options) for options in (graphs, plans)]
    monkeypatch.setattr(build, "POSE_CHUNK", 16)
    after = [build_key(micro.base, micro.checkpoint, options) for options in (graphs, plans)]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False]


def test_plans_for_given_gpus_do_not_depend_on_the_one_that_is_here(micro, fake_tensorrt):
    options = [
        Options(backend="tensorrt-rtx", plan=PlanOptions(capabilities=("SM89",))),
        Options(),
        Options(backend="tensorrt"),
    ]
    before = [build_key(micro.base, micro.checkpoint, some) for some in options]
    fake_tensorrt.name = "NVIDIA L40S"
    after = [build_key(micro.base, micro.checkpoint, some) for some in options]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, True, False]


@pytest.mark.parametrize(("name", "says"), [("", "Is a directory"), ("none.pth", "No such file")])
def test_a_checkpoint_that_is_no_file(tiny, tmp_path, name, says):
    with pytest.raises(CheckpointError, match=says) as caught:
        build_key(tiny.base, tmp_path / name, Options())
    assert caught.value.field == "checkpoint"
    assert caught.value.remedy


SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "prediction_type": "v_prediction",
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
    "sigma_min": 0.002,
    "sigma_max": 700.0,
}


@pytest.mark.parametrize(
    "change",
    [
        {"_class_name": "DDIMScheduler"},
        {"prediction_type": "epsilon"},
        {"timestep_type": "discrete"},
        {"use_karras_sigmas": False},
        {"sigma_min": 0},
        {"sigma_min": 701.0},
        {"sigma_max": None},
        {"sigma_max": "700"},
        {"prediction_type": None},
    ],
)
def test_another_scheduler_is_refused(change):
    check_scheduler(SCHEDULER)
    with pytest.raises(CheckpointError, match="scheduler") as caught:
        check_scheduler(SCHEDULER | change)
    assert caught.value.field == "base"


@pytest.fixture(scope="module")
def encoder(tiny):
    return load_image_encoder(tiny.base)


GOOD = {"image_mean": [0.5, 0, -1], "image_std": [1, 0.5, 2]}


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"image_mean": [0, 0, 0]},
        {"image_mean": [0, 0], "image_std": [1, 1]},
        {"image_mean": "abc", "image_std": [1, 1, 1]},
        *(GOOD | {"image_std": [1, wrong, 1]} for wrong in (0, -1, math.nan, math.inf)),
        *(GOOD | {"image_mean": [wrong, 0, 0]} for wrong in (math.nan, -math.inf)),
    ],
)
def test_clips_statistics_must_be_there_and_make_sense(encoder, config):
    assert image_statistics(GOOD, encoder) == ImageStatistics(224, (0.5, 0, -1), (1, 0.5, 2))
    with pytest.raises(CheckpointError, match=r"preprocessor_config.json.* image_mean") as caught:
        image_statistics(config, encoder)
    assert (caught.value.field, bool(caught.value.remedy)) == ("base", True)


@pytest.mark.parametrize("factor", [0, -0.2, math.nan, math.inf, "0.18", None])
def test_latents_must_have_a_scale(factor):
    check_scaling_factor(0.18215)
    with pytest.raises(CheckpointError, match=r"vae/config.json: scaling_factor is") as caught:
        check_scaling_factor(factor)
    assert (caught.value.field, bool(caught.value.remedy)) == ("base", True)
