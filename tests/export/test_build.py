"""Bundles are built whole or not at all, and only anew when something changed."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mimicmotion_trt import Animator, CheckpointError, ExportError, OutputError, Settings, SettingsError
from mimicmotion_trt.engines import NETWORKS, Bundle, Placement, open_engine
from mimicmotion_trt.export import build, builder, key, proof
from mimicmotion_trt.export.build import build_bundle
from mimicmotion_trt.export.key import build_key
from mimicmotion_trt.export.options import Options, PlanOptions
from mimicmotion_trt.training.checkpoints import Model, load_model


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def previous(bundle: Path, tmp_path: Path) -> Path:
    """A folder of its own that holds a whole bundle already."""
    return Path(shutil.copytree(bundle, tmp_path / "out" / "bundle"))


# --- other networks, end to end --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other(make_source: Callable[..., Any]) -> Any:
    """Two layers a block, widths and heads that differ from level to level, another width of tokens."""
    return make_source(widths=(32, 64, 128), heads=(1, 4, 2), layers=2, token=40)


@pytest.fixture(scope="module")
def other_bundle(other, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "deep" / "other"
    options = Options(sizes=((64, 64), (128, 64)), segment=4, rows=(3, 1, 2, 3), defaults={"canvas": 256})
    manifest, built = build_bundle(other.base, other.checkpoint, folder, options)
    assert built
    assert manifest == Bundle.load(folder).manifest
    return folder


def test_networks_of_another_shape_agree_with_pytorch(other_bundle, other):
    manifest = Bundle.load(other_bundle).manifest
    for name, network in manifest.networks.items():
        assert network.agreement.rel_l2 < 1e-5, name
        assert network.agreement.cases == len(proof.SHAPES) + (
            10 if name == "unet" else 0
        )  # a trajectory too
    assert manifest.networks["image_encoder"].spec.inputs[0].shape == ("batch", 3, 112, 112)
    assert manifest.networks["unet"].spec.inputs[2].shape == ("rows", 1, 40)
    assert manifest.rows == (1, 2, 3)
    assert manifest.scaling_factor == 0.18215


@pytest.mark.parametrize("network", NETWORKS)
def test_sizes_rows_and_frames_are_free(other_bundle, other_model, network):
    """Sizes 64 to 192, 1 to 3 rows and 1 to 5 frames, most of which the exporter did not see."""
    bundle = Bundle.load(other_bundle)
    spec = bundle.manifest.networks[network].spec
    engine = open_engine(bundle, network, Placement(threads=1))
    for seed, shape in enumerate([(1, 1, 8, 24), (2, 5, 16, 8), (3, 2, 24, 16), (1, 3, 8, 8)]):
        inputs = proof.example_inputs(network, spec, shape, seed)
        with torch.inference_mode():
            expected = proof.originals(other_model)[network](**inputs).numpy()
        answer = np.empty(expected.shape, np.float32)
        engine.bind({name: value.numpy() for name, value in inputs.items()}, {spec.outputs[0].name: answer})()
        assert np.linalg.norm(answer - expected) < 1e-5 * np.linalg.norm(expected), shape


@pytest.fixture(scope="module")
def other_model(other: Any) -> Model:
    return load_model(other.base, other.checkpoint)


def test_the_bundle_animates(other_bundle):
    with Animator.load(other_bundle, threads=1) as animator:
        settings = animator.settings(steps=1)
        assert (settings.segment, settings.overlap, settings.canvas) == (4, 3, 256)  # 6 would not fit into 4
        poses = np.random.default_rng(0).integers(0, 255, (6, 64, 128, 3), dtype=np.uint8)
        latents = animator.sample(poses[0], poses, settings)
        assert animator.decode(latents).std() > 1


# --- built anew only when something changed --------------------------------------------------------------


def test_a_second_run_does_nothing(tiny, previous):
    before = {p: p.stat().st_mtime_ns for p in previous.iterdir()}
    options = Options(sizes=((64, 128), (128, 64)), segment=16, defaults={"canvas": 512, "steps": 3})
    seen = []
    manifest, built = build_bundle(
        tiny.base, tiny.checkpoint, previous, options, report=lambda what, done, total: seen.append(what)
    )
    assert not built
    assert manifest.defaults["steps"] == 3
    assert {p: p.stat().st_mtime_ns for p in previous.iterdir()} == before
    assert seen == ["reading"]


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


@pytest.mark.parametrize(
    "module", ["engines.spec", "training.checkpoints", "export.proof", "export.trajectory"]
)
def test_the_code_that_makes_and_judges_engines_is_in_the_key(micro, tmp_path, monkeypatch, module):
    before, real = build_key(micro.base, micro.checkpoint, Options()), key._source
    changed = tmp_path / "changed.py"
    changed.write_text(real(module).read_text() + "# changed\n")
    monkeypatch.setattr(key, "_source", lambda name: changed if name == module else real(name))
    assert build_key(micro.base, micro.checkpoint, Options()) != before


def test_the_chunks_that_plans_are_compiled_for_are_in_the_key(micro, monkeypatch):
    pytest.importorskip("tensorrt_rtx")
    graphs, plans = Options(), Options(backend="tensorrt-rtx")
    before = [build_key(micro.base, micro.checkpoint, options) for options in (graphs, plans)]
    monkeypatch.setattr(key, "POSE_CHUNK", 16)
    after = [build_key(micro.base, micro.checkpoint, options) for options in (graphs, plans)]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False]


def test_a_note_alone_is_reason_enough_and_a_damaged_bundle_too(tiny, previous, monkeypatch):
    options = Options(sizes=((64, 128), (128, 64)), segment=16, defaults={"canvas": 512, "steps": 3})
    builds = []
    monkeypatch.setattr(build, "_build", lambda *arguments: builds.append(arguments) or 1 / 0)
    with pytest.raises(ExportError, match="ZeroDivisionError"):
        build_bundle(tiny.base, tiny.checkpoint, previous, replace(options, note="new"))
    assert len(builds) == 1
    (previous / "unet.onnx").write_bytes(b"damaged")
    with pytest.raises(ExportError):
        build_bundle(tiny.base, tiny.checkpoint, previous, options)
    assert len(builds) == 2


def test_the_new_bundle_takes_the_place_of_the_old(tiny, previous, bundle, monkeypatch):
    whole = Bundle.load(bundle).manifest

    def quick(folder, checkpoint, partial, options, key, report, parts, former):
        for path in bundle.glob("*.onnx"):
            shutil.copy(path, partial)
        return replace(whole, build=key, note=options.note)

    monkeypatch.setattr(build, "_build", quick)
    manifest, built = build_bundle(tiny.base, tiny.checkpoint, previous, Options(note="the new one"))
    assert built
    assert Bundle.load(previous).manifest == manifest
    assert manifest.note == "the new one"
    assert [path.name for path in previous.parent.iterdir()] == ["bundle"]
    assert previous.stat().st_mode & 0o777 == 0o755


# --- failures leave what was there -----------------------------------------------------------------------


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """One case in the proof."""
    monkeypatch.setattr(proof, "SHAPES", proof.SHAPES[:1])


def test_a_network_that_does_not_agree_is_not_exported(micro, previous, brief, monkeypatch):
    before = contents(previous.parent)
    told: list[tuple[str, int, int]] = []

    def report(what: str, done: int, total: int) -> None:
        told.append((what, done, total))

    monkeypatch.setitem(builder.BOUNDS, "fp32", 1e-12)
    with pytest.raises(ExportError, match="unet does not agree with PyTorch") as caught:
        build_bundle(micro.base, micro.checkpoint, previous, report=report)
    assert "1e-12" in caught.value.message
    assert contents(previous.parent) == before
    assert [path.name for path in previous.parent.iterdir()] == ["bundle"]
    assert [what for what, _, _ in told][-1] == "comparing unet with PyTorch"
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert {total for _, _, total in told} == {len(NETWORKS) + 1}


def test_weights_that_are_no_numbers_are_found(micro, state_of, brief, tmp_path):
    state = state_of(micro)
    state["unet.conv_in.weight"][0, 0, 0, 0] = float("nan")
    torch.save(state, tmp_path / "wrong.pth")
    with pytest.raises(ExportError, match=r"unet does not agree with PyTorch.* nan"):
        build_bundle(micro.base, tmp_path / "wrong.pth", tmp_path / "out" / "bundle")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("at", ["reading", "loading the checkpoint", "exporting unet"])
def test_an_interrupted_build_leaves_nothing(micro, previous, brief, at):
    before = contents(previous.parent)

    def interrupt(what, done, total):
        if what == at:
            raise KeyboardInterrupt

    for output in (previous, previous.parent / "fresh"):
        with pytest.raises(KeyboardInterrupt):
            build_bundle(micro.base, micro.checkpoint, output, report=interrupt)
    assert contents(previous.parent) == before
    assert [path.name for path in previous.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(18, "Invalid cross-device link")])
def test_an_interruption_while_the_folders_change_places(micro, previous, monkeypatch, error):
    before = contents(previous)
    real, moves = build.os.rename, []

    def rename(source, target):
        moves.append(target)
        if len(moves) == 2:  # the old one is out of the way, the new one not in place
            raise error
        real(source, target)

    monkeypatch.setattr(build, "_build", lambda *_: Bundle.load(previous).manifest)
    monkeypatch.setattr(build.os, "rename", rename)
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else OutputError):
        build_bundle(micro.base, micro.checkpoint, previous)
    assert contents(previous) == before
    assert [path.name for path in previous.parent.iterdir()] == ["bundle"]


def test_a_network_that_cannot_be_run_is_an_export_error(micro, brief, tmp_path):
    """Its keys and shapes fit each other, but PyTorch cannot run it."""
    base = Path(shutil.copytree(micro.base, tmp_path / "svd"))
    path = base / "unet" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"addition_time_embed_dim": 16}))
    with pytest.raises(ExportError, match="could not be built") as caught:
        build_bundle(base, micro.checkpoint, tmp_path / "out")
    assert caught.value.remedy
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "fill",
    [
        lambda out: (out / "thesis.txt").write_text("years of work"),
        lambda out: (
            (out / "manifest.json").write_text("{}"),
            (out / "thesis.txt").write_text("years of work"),
        ),
        lambda out: (out / "unet.onnx").write_text("no manifest beside it"),
        lambda out: (out / "folder").mkdir(),
    ],
    ids=["files", "a manifest among files", "an engine alone", "a folder"],
)
def test_a_folder_that_is_no_bundle_is_left_alone(micro, tmp_path, fill):
    out = tmp_path / "out"
    out.mkdir()
    fill(out)
    before = contents(tmp_path)
    with pytest.raises(OutputError, match="no bundle") as caught:
        build_bundle(micro.base, micro.checkpoint, out)
    assert caught.value.field == "output"
    assert contents(tmp_path) == before


def test_outputs_that_cannot_be(micro, tmp_path):
    (tmp_path / "file").write_text("a file")
    for output in (tmp_path / "file", tmp_path / "file" / "bundle"):
        with pytest.raises(OutputError) as caught:
            build_bundle(micro.base, micro.checkpoint, output)
        assert caught.value.field == "output"
    assert (tmp_path / "file").read_text() == "a file"


# --- options and configs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"backend": "abacus"}, "backend"),
        ({"precision": "fp7"}, "precision"),
        ({"backend": "tensorrt", "precision": "fp32"}, "precision"),
        ({"plan": PlanOptions(level=5)}, "backend"),
        ({"backend": "tensorrt-rtx", "plan": PlanOptions(refit=True)}, "capability"),
        ({"backend": "tensorrt", "plan": PlanOptions(capabilities=("SM89",))}, "capability"),
        ({"rows": ()}, "batch"),
        ({"rows": (0,)}, "batch"),
        ({"rows": (65,)}, "batch"),
        ({"sizes": ()}, "batch"),
        ({"sizes": ((64, 65),)}, "settings.size"),
        ({"segment": 1}, "settings.segment"),
        ({"segment": "many"}, "settings.segment"),
        ({"defaults": {"segment": None}}, "settings.segment"),
        ({"defaults": {"step": 3}}, "settings.step"),
        ({"defaults": {"steps": 0}}, "settings.steps"),
        ({"segment": 8, "defaults": {"overlap": 8}}, "settings.overlap"),
    ],
)
def test_wrong_options(values, field):
    with pytest.raises(SettingsError) as caught:
        Options(**values)
    assert caught.value.field == field


@pytest.mark.parametrize(("segment", "overlap"), [(2, 1), (6, 5), (7, 6), (72, 6)])
def test_a_bundles_own_settings_never_contradict_each_other(segment, overlap):
    assert Settings.from_dict(Options(segment=segment).model_defaults).overlap == overlap
    assert Settings.from_dict(Options(segment=segment, defaults={"overlap": 1}).model_defaults).overlap == 1


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
    build.check_scheduler(SCHEDULER)
    with pytest.raises(CheckpointError, match="scheduler") as caught:
        build.check_scheduler(SCHEDULER | change)
    assert caught.value.field == "base"


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
def test_clips_statistics_must_be_there_and_make_sense(other_model, config):
    assert build.image_statistics(GOOD, other_model.image_encoder).std == (1, 0.5, 2)
    with pytest.raises(CheckpointError, match=r"preprocessor_config.json.* image_mean") as caught:
        build.image_statistics(config, other_model.image_encoder)
    assert (caught.value.field, bool(caught.value.remedy)) == ("base", True)


@pytest.mark.parametrize("factor", [0, -0.2, math.nan, math.inf, "0.18", None])
def test_latents_must_have_a_scale(factor):
    build.check_scaling_factor(SimpleNamespace(config={"scaling_factor": 0.18215}))
    with pytest.raises(CheckpointError, match=r"vae/config.json: scaling_factor is") as caught:
        build.check_scaling_factor(SimpleNamespace(config={"scaling_factor": factor}))
    assert (caught.value.field, bool(caught.value.remedy)) == ("base", True)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("vae/config.json", {"scaling_factor": 0}),
        ("feature_extractor/preprocessor_config.json", {"image_std": [0, 0, 0]}),
    ],
)
def test_wrong_configs_are_told_before_anything_is_built(micro, tmp_path, file, change):
    base = Path(shutil.copytree(micro.base, tmp_path / "svd"))
    (base / file).write_text(json.dumps(json.loads((base / file).read_text()) | change))
    told: list[str] = []
    with pytest.raises(CheckpointError, match=next(iter(change))):
        build_bundle(
            base, micro.checkpoint, tmp_path / "out" / "bundle", report=lambda what, *_: told.append(what)
        )
    assert told == ["reading", "loading the checkpoint"]
    assert not list((tmp_path / "out").iterdir())


def test_an_original_that_answers_zeros_proves_nothing(bundle):
    opened = Bundle.load(bundle)
    engine = open_engine(opened, "pose_net", Placement(threads=1))
    inputs = proof.example_inputs("pose_net", engine.spec, (1, 1, 8, 8), seed=0)
    zeros = proof.Case(inputs, (torch.zeros(1, engine.spec.outputs[0].shape[1], 8, 8),))
    with pytest.raises(ExportError, match="nothing but zeros"):
        proof.compare_engine("pose_net", engine, [zeros], bound=1e9)


def test_the_worst_case_counts(bundle):
    """One wrong case among good ones, whichever it is, is enough."""
    loaded = Bundle.load(bundle)
    spec = loaded.manifest.networks["pose_net"].spec
    path = loaded.engine_path("pose_net")
    inputs = [proof.example_inputs("pose_net", spec, shape, seed=0) for shape in proof.SHAPES]
    answers = [torch.from_numpy(_run(loaded, "pose_net", case)) for case in inputs]
    good = [proof.Case(case, (answer,)) for case, answer in zip(inputs, answers, strict=True)]
    assert proof.compare("pose_net", path, spec, good, 1e-4).rel_l2 == 0
    for index in range(3):
        for wrong in (answers[index] * 1.01, answers[index] * torch.nan):
            cases = [*good]
            cases[index] = proof.Case(inputs[index], (wrong,))
            with pytest.raises(ExportError, match="pose_net"):
                proof.compare("pose_net", path, spec, cases, 1e-4)


def _run(bundle: Bundle, network: str, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    frames, _, height, width = inputs["pose"].shape
    answer = np.empty((frames, 32, height // 8, width // 8), np.float32)
    engine = open_engine(bundle, network, Placement(threads=1))
    engine.bind({"pose": inputs["pose"].numpy()}, {"features": answer})()
    return answer
