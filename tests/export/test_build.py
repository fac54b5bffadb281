"""Bundles are built whole or not at all, and only anew when something changed."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mimicmotion_trt import Animator, CheckpointError, ExportError, OutputError, SettingsError
from mimicmotion_trt.engines import NETWORKS, Bundle, Manifest, Placement, open_engine
from mimicmotion_trt.errors import EngineError, MimicMotionError
from mimicmotion_trt.export import build, network_build, verify
from mimicmotion_trt.export.build import build_bundle
from mimicmotion_trt.export.options import Options, PlanOptions
from mimicmotion_trt.export.output_folder import Workspace
from mimicmotion_trt.training.checkpoints import Model, load_model

from .test_command import assert_explained, call

LIKE_THE_BUNDLE = Options(sizes=((64, 128), (128, 64)), segment=16, defaults={"canvas": 512, "steps": 3})
"""What the fixture `bundle` was built with."""
SMALL = Options(sizes=((64, 128),), segment=2)
"""What is quick to build."""
UNREADABLE = Path("/proc/self/mem")
"""A file that answers no read at its beginning, not even to root."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


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
    """Widths and heads that differ from level to level, another width of tokens."""
    return make_source(widths=(32, 64, 96), heads=(1, 4, 3), token=40)


@pytest.fixture(scope="module")
def other_bundle(other, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "deep" / "other"
    options = Options(sizes=((64, 64), (128, 64)), segment=4, rows=(3, 1, 2, 3), defaults={"canvas": 256})
    manifest, built = build_bundle(other.base, other.checkpoint, folder, options)
    assert built
    assert manifest == Bundle.load(folder).manifest
    return folder


@pytest.mark.slow
def test_networks_of_another_shape_agree_with_pytorch(other_bundle, other):
    manifest = Bundle.load(other_bundle).manifest
    for name, network in manifest.networks.items():
        assert network.accuracy.rel_l2 < 1e-5, name
        assert network.accuracy.cases == len(verify.SHAPES) + (
            10 if name == "unet" else 0
        )  # a trajectory too
    assert manifest.networks["image_encoder"].spec.inputs[0].shape == ("batch", 3, 112, 112)
    assert manifest.networks["unet"].spec.inputs[2].shape == ("rows", 1, 40)
    assert manifest.rows == (1, 2, 3)
    assert manifest.scaling_factor == 0.18215


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_sizes_rows_and_frames_of_another_shape_are_free(other_bundle, other, network):
    assert_free(other_bundle, load_model(other.base, other.checkpoint), network)


@pytest.mark.parametrize("network", NETWORKS)
def test_sizes_rows_and_frames_are_free(bundle, tiny_model, network):
    assert_free(bundle, tiny_model, network)


@pytest.fixture(scope="module")
def tiny_model(tiny: Any) -> Model:
    return load_model(tiny.base, tiny.checkpoint)


def assert_free(folder: Path, model: Model, network: str) -> None:
    """Sizes 64 to 192, 1 to 3 rows and 1 to 5 frames, most of which the exporter did not see."""
    bundle = Bundle.load(folder)
    spec = bundle.manifest.networks[network].spec
    engine = open_engine(bundle, network, Placement(threads=1))
    for seed, shape in enumerate([(1, 1, 8, 24), (2, 5, 16, 8), (3, 2, 24, 16), (1, 3, 8, 8)]):
        inputs = verify.example_inputs(network, spec, shape, seed)
        with torch.inference_mode():
            expected = verify.originals(model)[network](**inputs).numpy()
        answer = np.empty(expected.shape, np.float32)
        engine.bind({name: value.numpy() for name, value in inputs.items()}, {spec.outputs[0].name: answer})()
        assert np.linalg.norm(answer - expected) < 1e-5 * np.linalg.norm(expected), shape


@pytest.mark.slow
def test_the_bundle_animates(other_bundle):
    with Animator.load(other_bundle, threads=1) as animator:
        settings = animator.settings(steps=1)
        assert (settings.segment, settings.overlap, settings.canvas) == (4, 3, 256)  # 6 would not fit into 4
        poses = np.random.default_rng(0).integers(0, 255, (6, 64, 128, 3), dtype=np.uint8)
        latents = animator.sample(poses[0], poses, settings)
        assert animator.decode(latents).std() > 1


# --- built anew only when something changed --------------------------------------------------------------


class Quick:
    """Builds at once, of the files of a bundle that is there; `made` are the networks that were not finished."""

    def __init__(self, bundle: Path) -> None:
        self.bundle, self.made = bundle, list[str]()
        self.while_building: Callable[[], Any] = lambda: None

    def __call__(self, folder: Path, checkpoint: Path, workspace: Workspace, options: Options, key: str,
                 report: Any, former: Bundle | None) -> Manifest:  # fmt: skip
        whole = Bundle.load(self.bundle).manifest
        for name in NETWORKS:
            if name not in workspace.finished:
                self.made.append(name)
                for path in self.bundle.glob(f"{name}.*"):
                    shutil.copy(path, workspace.bundle)
                if options.compiles:
                    workspace.keep(name, whole.networks[name])
        self.while_building()
        return replace(whole, build=key, note=options.note)


@pytest.fixture
def quick(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Quick:
    """What lies around the networks is real, exporting and compiling are not."""
    made = Quick(bundle)
    monkeypatch.setattr(network_build, "build_networks", made)
    return made


@pytest.fixture
def run(quick: Quick, tiny: Any, tmp_path: Path) -> Callable[..., bool]:
    """Builds into `out/bundle`; whether anything had to be built."""

    def built(options: Options = LIKE_THE_BUNDLE, output: Path = tmp_path / "out" / "bundle") -> bool:
        return build_bundle(tiny.base, tiny.checkpoint, output, options)[1]

    return built


def test_a_second_run_does_nothing(tiny, previous):
    before = {p: p.stat().st_mtime_ns for p in previous.iterdir()}
    seen = []
    manifest, built = build_bundle(
        tiny.base,
        tiny.checkpoint,
        previous,
        LIKE_THE_BUNDLE,
        report=lambda what, done, total: seen.append(what),
    )
    assert not built
    assert manifest.defaults["steps"] == 3
    assert {p: p.stat().st_mtime_ns for p in previous.iterdir()} == before
    assert seen == ["reading"]


@pytest.mark.parametrize(
    ("options", "damage"), [(replace(LIKE_THE_BUNDLE, note="new"), False), (LIKE_THE_BUNDLE, True)]
)
def test_another_note_is_reason_enough_and_a_damaged_bundle_too(quick, run, previous, options, damage):
    if damage:
        (previous / "unet.onnx").write_bytes(b"damaged")
    assert run(options, previous)
    assert quick.made == list(NETWORKS)
    assert Bundle.load(previous).manifest.note == options.note
    assert names(previous.parent) == ["bundle"]


# --- failures leave what was there -----------------------------------------------------------------------


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """One case in the comparison, and a denoising of one step."""
    monkeypatch.setattr(verify, "SHAPES", verify.SHAPES[:1])
    monkeypatch.setattr(verify, "STEPS", 1)


def test_a_network_that_does_not_agree_is_not_exported(micro, previous, brief, monkeypatch):
    before = contents(previous.parent)
    told: list[tuple[str, int, int]] = []

    def report(what: str, done: int, total: int) -> None:
        told.append((what, done, total))

    monkeypatch.setitem(network_build.BOUNDS, "fp32", 1e-12)
    with pytest.raises(ExportError, match="unet does not agree with PyTorch") as caught:
        build_bundle(micro.base, micro.checkpoint, previous, SMALL, report=report)
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
    with pytest.raises(EngineError, match=r"unet .* NaN"):
        build_bundle(micro.base, tmp_path / "wrong.pth", tmp_path / "out" / "bundle", SMALL)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("at", ["reading", "loading the checkpoint", "exporting unet"])
@pytest.mark.parametrize("name", ["bundle", "fresh"])
def test_an_interrupted_build_leaves_nothing(micro, previous, brief, at, name):
    before = contents(previous.parent)

    def interrupt(what, done, total):
        if what == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        build_bundle(micro.base, micro.checkpoint, previous.with_name(name), SMALL, report=interrupt)
    assert not hasattr(caught.value, "__notes__")
    assert contents(previous.parent) == before
    assert names(previous.parent) == ["bundle"]


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


@pytest.mark.parametrize("name", ["thesis.txt", "manifest.json", "unet.onnx"])
def test_a_folder_that_is_no_bundle_is_left_alone(quick, run, tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("years of work")
    with pytest.raises(OutputError, match="no bundle") as caught:
        run(output=out)
    assert caught.value.field == "output"
    assert quick.made == []
    assert contents(tmp_path) == {f"out/{name}": b"years of work"}


def test_outputs_that_cannot_be(micro, tmp_path):
    (tmp_path / "file").write_text("a file")
    for output in (tmp_path / "file", tmp_path / "file" / "bundle"):
        with pytest.raises(OutputError) as caught:
            build_bundle(micro.base, micro.checkpoint, output)
        assert caught.value.field == "output"
    assert (tmp_path / "file").read_text() == "a file"


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


# --- plans: what is finished is kept, and for which GPU --------------------------------------------------

PLANS = Options(backend="tensorrt")


def interrupted() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("other", [("NVIDIA L40S", "SM89"), ("NVIDIA L4", "SM90")])
def test_on_another_gpu_the_same_command_builds_anew(quick, run, fake_tensorrt, tmp_path, other):
    assert run(PLANS)
    assert not run(PLANS)
    quick.made.clear()
    fake_tensorrt.name, fake_tensorrt.capability = other
    assert run(PLANS)
    assert quick.made == list(NETWORKS)
    assert names(tmp_path / "out") == ["bundle"]


def test_networks_that_another_gpu_finished_are_not_gone_on_from(quick, run, fake_tensorrt, tmp_path):
    quick.while_building = interrupted
    for name in ("NVIDIA L4", "NVIDIA L40S"):
        fake_tensorrt.name = name
        with pytest.raises(KeyboardInterrupt):
            run(PLANS)
        assert quick.made == list(NETWORKS)
        quick.made.clear()
    assert len(names(tmp_path / "out")) == 2
    quick.while_building = lambda: None
    assert run(PLANS)
    assert quick.made == []
    assert names(tmp_path / "out") == ["bundle"]


@pytest.mark.parametrize("before", [True, False], ids=["another bundle is there", "nothing is there"])
def test_plans_outlive_a_failed_last_step(quick, run, fake_tensorrt, bundle, tmp_path, monkeypatch, before):
    output = tmp_path / "out" / "bundle"
    if before:
        shutil.copytree(bundle, output)

    def refuse(*_: object) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refuse)
        with pytest.raises(OutputError, match="cannot be written") as caught:
            run(PLANS)
    assert (caught.value.field, bool(caught.value.remedy)) == ("output", True)
    assert caught.value.__notes__ == [
        f"finished and kept: {', '.join(NETWORKS)}; the same command goes on from there"
    ]
    assert output.exists() == before
    quick.made.clear()
    assert run(PLANS)
    assert quick.made == []
    Bundle.load(output)
    assert names(tmp_path / "out") == ["bundle"]


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_of_graphs_nothing_is_kept(quick, run, tmp_path, backend):
    """They are made in seconds."""
    quick.while_building = interrupted
    with pytest.raises(KeyboardInterrupt) as caught:
        run(Options(backend=backend))
    assert not hasattr(caught.value, "__notes__")
    assert names(tmp_path / "out") == []


@pytest.mark.parametrize("backend", ["tensorrt", "onnxruntime", "torch"])
def test_a_second_build_of_the_same_is_refused_and_the_first_one_ends_well(
    quick, run, fake_tensorrt, tmp_path, backend
):
    told: list[str] = []

    def second() -> None:
        with pytest.raises(OutputError, match="another run is at work") as caught:
            run(Options(backend=backend))
        told.append(caught.value.remedy)

    quick.while_building = second
    assert run(Options(backend=backend))
    assert len(told) == 1
    assert quick.made == list(NETWORKS)
    assert names(tmp_path / "out") == ["bundle"]
    Bundle.load(tmp_path / "out" / "bundle")


def test_a_build_with_other_options_leaves_the_first_ones_files_alone(quick, run, fake_tensorrt, tmp_path):
    def second() -> None:
        quick.while_building = lambda: None
        assert run(replace(PLANS, note="other"))

    quick.while_building = second
    assert run(PLANS)
    assert quick.made == [*NETWORKS, *NETWORKS]
    assert Bundle.load(tmp_path / "out" / "bundle").manifest.note == ""
    assert names(tmp_path / "out") == ["bundle"]


def test_a_path_through_the_bundle_itself_loses_nothing(quick, run, previous):
    assert run(Options(note="new"), previous / "sub" / ".." / ".." / "bundle")
    assert Bundle.load(previous).manifest.note == "new"
    assert names(previous.parent) == ["bundle"]


# --- what cannot be read or written ----------------------------------------------------------------------


@pytest.mark.parametrize("below", ["", "bundle"])
def test_an_output_whose_name_is_too_long(tiny, tmp_path, below):
    output = tmp_path / ("x" * 300) / below
    done = call("--base", tiny.base, "--checkpoint", tiny.checkpoint, "--output", output)
    assert_explained(done.exit_code, done.stderr, "File name too long")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "output", ["x" * 245, "file/bundle"], ids=["the folders beside it", "a file above it"]
)
def test_an_output_beside_which_nothing_can_be_made(tiny, tmp_path, output):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written") as caught:
        build_bundle(tiny.base, tiny.checkpoint, tmp_path / output)
    assert (caught.value.field, bool(caught.value.remedy)) == ("output", True)
    assert names(tmp_path) == ["file"]


def closed(*_: object) -> None:
    """Root may enter any folder and read any file, so the answer of one that is closed is a stand-in."""
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "closed")


def test_an_output_below_a_folder_that_may_not_be_entered(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "find_present", closed)
    done = call("--base", tiny.base, "--checkpoint", tiny.checkpoint, "--output", tmp_path / "out")
    assert_explained(done.exit_code, done.stderr, "Permission denied")
    assert "Check the folder and the free space" in done.stderr


def test_a_checkpoint_that_cannot_be_read(tiny, tmp_path):
    for checkpoint, says in ((UNREADABLE, "Input/output error"), (tmp_path / ("x" * 300), "name too long")):
        assert_told(CheckpointError, "checkpoint", says, tiny.base, checkpoint, tmp_path / "out")
    done = call("--base", tiny.base, "--checkpoint", UNREADABLE, "--output", tmp_path / "out")
    assert_explained(done.exit_code, done.stderr, f"checkpoint {UNREADABLE} cannot be read")


def test_a_base_that_cannot_be_read(tiny, tmp_path):
    base = Path(shutil.copytree(tiny.base, tmp_path / "svd"))
    (base / "vae" / "more.json").symlink_to(UNREADABLE)
    assert_told(
        CheckpointError, "base", f"base {base} cannot be read", base, tiny.checkpoint, tmp_path / "out"
    )
    assert_told(CheckpointError, "base", "name too long", "x" * 300, tiny.checkpoint, tmp_path / "out")


def test_refitting_wants_plans_for_it(quick, fake_tensorrt, tiny, previous, tmp_path):
    for options, kind, says in (
        (PLANS, SettingsError, "are not refitted"),
        (replace(PLANS, plan=PlanOptions(refit=True)), SettingsError, "is a bundle for onnxruntime"),
    ):
        with pytest.raises(kind, match=says) as caught:
            build_bundle(tiny.base, tiny.checkpoint, tmp_path / "b", options, refit_from=previous)
        assert (caught.value.field, bool(caught.value.remedy)) == ("refit_from", True)
    assert quick.made == []


def test_what_a_library_raises_is_an_export_error_still(quick, run):
    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    quick.while_building = full
    with pytest.raises(ExportError, match="No space left"):
        run()


def assert_told(
    kind: type[MimicMotionError], field: str, says: str, base: Any, checkpoint: Path, output: Path
) -> None:
    with pytest.raises(kind, match=says) as caught:
        build_bundle(base, checkpoint, output)
    assert (caught.value.field, bool(caught.value.remedy)) == (field, True)
    assert not output.exists()
