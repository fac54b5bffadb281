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

from mimicmotion_trt import Animator, CheckpointError, ExportError, OutputError, SettingsError
from mimicmotion_trt.engines import NETWORKS, Array, Bundle, EngineSpec, Manifest, open_engine
from mimicmotion_trt.errors import BundleError, MimicMotionError
from mimicmotion_trt.export import build, network_build, verify
from mimicmotion_trt.export.build import build_bundle
from mimicmotion_trt.export.options import Options, PlanOptions
from mimicmotion_trt.export.output_folder import Workspace
from mimicmotion_trt.export.stats import graph_stats
from mimicmotion_trt.training.checkpoints import Model, load_model

from .test_command import assert_explained, call

LIKE_THE_BUNDLE = Options(
    sizes=((64, 128), (128, 64)), segment=16, defaults={"canvas": 512, "steps": 3}
)
"""What the fixture `bundle` was built with."""
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
        assert network.agreement.cases == len(verify.SHAPES) + (
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
    engine = open_engine(bundle, network, threads=1)
    for seed, shape in enumerate([(1, 1, 8, 24), (2, 5, 16, 8), (3, 2, 24, 16), (1, 3, 8, 8)]):
        inputs = verify.example_inputs(network, spec, shape, seed)
        with torch.inference_mode():
            expected = verify.originals(other_model)[network](**inputs).numpy()
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
    seen = []
    manifest, built = build_bundle(
        tiny.base, tiny.checkpoint, previous, LIKE_THE_BUNDLE, report=lambda what, done, total: seen.append(what)
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
    """One case in the verify."""
    monkeypatch.setattr(proof, "SHAPES", verify.SHAPES[:1])


def test_a_network_that_does_not_agree_is_not_exported(micro, previous, brief, monkeypatch):
    before = contents(previous.parent)
    told: list[tuple[str, int, int]] = []

    def report(what: str, done: int, total: int) -> None:
        told.append((what, done, total))

    monkeypatch.setitem(network_build.BOUNDS, "fp32", 1e-12)
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


