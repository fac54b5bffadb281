"""LoRAs added when a bundle is loaded, against bundles that were built from the merged checkpoint."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402

from mimicmotion_trt import Animator, Settings  # noqa: E402
from mimicmotion_trt.engines import Bundle, Placement, call_sizes, open_engine  # noqa: E402
from mimicmotion_trt.errors import BundleError, LimitError, SettingsError  # noqa: E402
from mimicmotion_trt.export.options import Options  # noqa: E402
from mimicmotion_trt.limits import Limits  # noqa: E402
from mimicmotion_trt.lora import Loras  # noqa: E402

OPEN = {name: f"mimicmotion_trt.engines.{name}_backend" for name in ("onnxruntime", "torch")}

STRENGTH = 0.8
RANK, ALPHA = 4, 6.0
LAYERS = (
    "conv_in",
    "down_blocks.0.attentions.0.proj_in",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",  # no bias: transposed in ONNX
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q",  # without effect
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v",
    "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj",  # two layers of an engine
    "down_blocks.1.resnets.0.temporal_res_block.conv1",  # a convolution along time
    "down_blocks.1.resnets.0.temporal_res_block.conv2",  # and one that is scaled
    "mid_block.attentions.0.temporal_transformer_blocks.0.attn2.to_out.0",
    "up_blocks.3.resnets.0.spatial_res_block.conv1",
    "time_embedding.linear_1",
)
Factors = Mapping[str, tuple[Any, Any]]


@pytest.fixture(scope="module")
def weights(golden: Path) -> dict[str, Any]:
    return torch.load(golden / "tiny" / "mimicmotion.pth", weights_only=True)


@pytest.fixture(scope="module")
def factors(weights) -> Factors:
    """down [rank, inputs, …] and up [outputs, rank, 1, …] for each of `LAYERS`, of about the weights' size."""
    draw, made = torch.Generator().manual_seed(1), {}
    for layer in LAYERS:
        shape = weights[f"unet.{layer}.weight"].shape
        down = torch.randn(RANK, *shape[1:], generator=draw) * 0.1
        up = torch.randn(shape[0], RANK, *[1] * (len(shape) - 2), generator=draw) * 0.1
        made[layer] = (down, up)
    return made


def ours(factors: Factors) -> dict[str, Any]:
    """In this project's and diffusers' naming; alpha is in the metadata."""
    keys = {}
    for layer, (down, up) in factors.items():
        keys |= {f"unet.{layer}.lora_A.weight": down, f"unet.{layer}.lora_B.weight": up}
    return keys


def kohya(factors: Factors) -> dict[str, Any]:
    keys = {}
    for layer, (down, up) in factors.items():
        name = "lora_unet_" + layer.replace(".", "_")
        keys |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        keys[f"{name}.alpha"] = torch.tensor(ALPHA)
    return keys


METADATA = {"lora_adapter_metadata": json.dumps({"unet.r": RANK, "unet.lora_alpha": ALPHA})}


@pytest.fixture(scope="module")
def files(factors, tmp_path_factory) -> dict[str, Path]:
    """The same LoRA in both namings."""
    folder = tmp_path_factory.mktemp("loras")
    save_file(ours(factors), folder / "ours.safetensors", METADATA)
    save_file(kohya(factors), folder / "kohya.safetensors")
    return {name: folder / f"{name}.safetensors" for name in ("ours", "kohya")}


@pytest.fixture(scope="module")
def merged(weights, factors, golden, tmp_path_factory) -> Path:
    """The checkpoint with the LoRA merged into it."""
    changed = dict(weights)
    for layer, (down, up) in factors.items():
        weight = weights[f"unet.{layer}.weight"]
        delta = (up.reshape(-1, RANK).double() @ down.reshape(RANK, -1).double()).reshape(weight.shape)
        changed[f"unet.{layer}.weight"] = (weight + STRENGTH * ALPHA / RANK * delta).float()
    path = tmp_path_factory.mktemp("merged") / "checkpoint.pth"
    torch.save(changed, path)
    return path


def exported(golden: Path, checkpoint: Path, spec: Any, path: Path) -> Path:
    """The U-Net of a checkpoint, exported as a bundle's is."""
    from mimicmotion_trt.export.networks import engine_form
    from mimicmotion_trt.export.tracing import trace_onnx, trace_torchscript
    from mimicmotion_trt.export.verify import example_inputs
    from mimicmotion_trt.training.checkpoints import load_model

    module = engine_form("unet", load_model(golden / "tiny" / "svd", checkpoint))
    inputs = example_inputs("unet", spec, (2, 3, 16, 24), seed=0)
    if path.suffix == ".ts":
        return trace_torchscript(module, inputs, spec, path)
    return trace_onnx(module, inputs, spec, path)[0]


def answer(engine: Any) -> np.ndarray:
    """What a U-Net computes of random inputs: two rows of three frames."""
    random, sizes = np.random.default_rng(0), call_sizes(3, (16, 8), rows=2)
    inputs = {t.name: random.normal(size=t.sized(sizes)).astype(t.dtype) for t in engine.spec.inputs}
    (output,) = engine.spec.outputs
    prediction = np.empty(output.sized(sizes), output.dtype)
    engine.bind(inputs, {output.name: prediction})()
    engine.close()
    return prediction


@pytest.mark.parametrize("backend", ["onnxruntime", pytest.param("torch", marks=pytest.mark.slow)])
def test_a_unet_with_a_lora_equals_the_one_exported_from_the_merged_checkpoint(
    backend, files, merged, golden, request, tmp_path
):
    fixture, end = {"onnxruntime": ("bundle", "onnx"), "torch": ("torch_bundle", "ts")}[backend]
    plain = Bundle.load(request.getfixturevalue(fixture))
    spec = plain.manifest.networks["unet"].spec
    path = exported(golden, merged, spec, tmp_path / f"unet.{end}")
    place = Placement("cpu", threads=1)
    wanted = answer(importlib.import_module(OPEN[backend]).open_engine(path, spec, place))
    scale = np.abs(wanted).max()
    assert np.abs(wanted - answer(open_engine(plain, "unet", place))).max() > 0.01 * scale
    for name, file in files.items():
        loras = Loras.open(plain, {name: file})
        changed = open_engine(plain, "unet", place, deltas=loras.deltas("unet", (f"{name}:{STRENGTH}",)))
        np.testing.assert_allclose(answer(changed), wanted, rtol=0, atol=1e-5 * scale)


def clip(animator: Animator, settings: Settings) -> np.ndarray:
    """Latents float32 [F,4,h,w] of a short clip."""
    random = np.random.default_rng(0)
    picture, poses = (random.integers(0, 256, (*n, 128, 64, 3), dtype=np.uint8) for n in ((), (5,)))
    return animator.sample(picture, poses, settings)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_a_lora_at_load_equals_the_bundle_of_the_merged_checkpoint(
    backend, files, merged, golden, deep_bundle, torch_bundle, tmp_path
):
    from mimicmotion_trt.export.build import build_bundle

    plain = {"onnxruntime": deep_bundle, "torch": torch_bundle}[backend]
    defaults, deep_cache = {"canvas": 512, "steps": 2}, Bundle.load(plain).manifest.reuses
    options = Options(
        backend=backend, sizes=((64, 128),), segment=16, defaults=defaults, deep_cache=deep_cache
    )
    build_bundle(golden / "tiny" / "svd", merged, tmp_path / "merged", options)
    with Animator.load(tmp_path / "merged", threads=1) as animator:
        intervals = (1, 2) if deep_cache else (1,)
        settings = {interval: animator.settings(steps=2, reuse_interval=interval) for interval in intervals}
        wanted = {interval: clip(animator, one) for interval, one in settings.items()}
    for name, file in files.items():
        with Animator.load(plain, threads=1, lora=[(file, STRENGTH)]) as animator:
            for interval, one in settings.items():
                chosen = replace(one, lora=None)
                assert animator.resolve(chosen).lora == (f"{name}:{STRENGTH}",)
                scale = np.abs(wanted[interval]).max()
                np.testing.assert_allclose(clip(animator, chosen), wanted[interval], atol=1e-5 * scale)


def test_jobs_choose_from_the_loras_that_were_loaded(bundle, make_lora):
    """The U-Nets of two choices are kept, and what was encoded serves all of them."""
    loras = {name: make_lora(name, seed) for seed, name in enumerate(("a", "b"))}
    with Animator.load(bundle, threads=1, loras=loras) as animator:
        assert animator.settings().lora is None
        made = {}
        for choice in ((), ("a",), ("a:0.5",), ("b",), ("a", "b"), ("a",), ()):
            found = clip(animator, animator.settings(steps=1, lora=choice))
            assert np.array_equal(made.setdefault(choice, found), found)
        assert len({found.tobytes() for found in made.values()}) == 5
        assert animator.networks.cache.hits > 0
        with pytest.raises(SettingsError, match="there is no LoRA 'c'") as caught:
            animator.resolve(Settings(lora=("a", "c:0.5")))
        assert "a, b" in caught.value.remedy


def test_what_resumes_a_job_knows_the_content_of_its_loras(bundle, make_lora):
    builds = []
    for seed in (0, 0, 1):
        with Animator.load(bundle, threads=1, loras={"style": make_lora("style", seed)}) as animator:
            builds.append(
                [animator.build_for(animator.settings(lora=lora)) for lora in ((), "style", "style:2")]
            )
            assert builds[-1][0] == animator.build
    assert builds[0] == builds[1]
    assert builds[0][0] == builds[2][0]
    assert len({*builds[0], *builds[2]}) == 5


def test_a_bundle_without_the_table_says_so(bundle, make_lora, tmp_path):
    folder = tmp_path / "old"
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    for network in manifest["networks"].values():
        del network["for_lora"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    Animator.load(folder, threads=1).close()
    with pytest.raises(BundleError, match="does not say where its weights lie") as caught:
        Animator.load(folder, threads=1, lora=[make_lora("style")])
    assert "--refit" in caught.value.remedy


def test_two_files_of_one_name_are_refused(bundle, make_lora):
    with pytest.raises(SettingsError, match="two LoRAs of the name 'style'"):
        Animator.load(bundle, lora=[make_lora("style"), (make_lora("style", 1), 0.5)])


@pytest.mark.parametrize("lora", [3, [("x", "y")], [("a.x", 0.5, 1)], [0.5]])
def test_what_is_no_list_of_files_is_refused(bundle, lora):
    with pytest.raises(SettingsError, match="lora"):
        Animator.load(bundle, lora=lora)


def test_a_name_that_ends_like_a_strength_is_refused(bundle, make_lora):
    with pytest.raises(SettingsError, match="ends like a strength"):
        Animator.load(bundle, loras={"style:2": make_lora("style")})


def test_the_memory_of_a_unet_that_has_to_be_loaded_is_counted(bundle, make_lora):
    size = (bundle / "unet.onnx").stat().st_size
    with Animator.load(bundle, threads=1, loras={"style": make_lora("style")}) as animator:
        animator.limits = Limits(memory_bytes=size + 10**6)
        picture, poses = np.zeros((128, 64, 3), np.uint8), np.zeros((2, 128, 64, 3), np.uint8)
        animator.stream(picture, poses, animator.settings(decode_chunk=1)).close()
        with pytest.raises(LimitError, match="GB of memory"):
            animator.stream(picture, poses, animator.settings(decode_chunk=1, lora="style"))
