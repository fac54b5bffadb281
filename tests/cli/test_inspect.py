"""What `inspect` says of a bundle of plans, where a GPU loads them and where none does."""

from __future__ import annotations

import io
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from mimicmotion_trt import BundleError
from mimicmotion_trt.cli import app
from mimicmotion_trt.commands.inspect import OPERATORS, describe_layers, percent, show_bundle, verdict
from mimicmotion_trt.engines import Bundle, EnginePlan, GraphStats, Profile
from mimicmotion_trt.engines.tensorrt_backend import Layers, TensorRtEngine

from ..engines.stand_in_tensorrt import SPEC, open_stand_in, plan_of


@pytest.fixture
def plans(bundle: Path) -> Bundle:
    """As the manifest of a TensorRT bundle has it."""
    opened = Bundle.load(bundle)
    just = {"rows": (2, 2, 2), "frames": (4, 4, 4), "latent_height": (16, 16, 16), "latent_width": (8, 8, 8)}
    plan = EnginePlan(
        "tensorrt 11.4.0.106", "NVIDIA L4 SM89", (Profile(just),), refittable=True, streamable=True
    )
    unet = replace(
        opened.manifest.networks["unet"],
        plan=plan,
        accuracy=replace(opened.manifest.networks["unet"].accuracy, max_abs=0.0123, runner="tensorrt"),
    )
    networks = {**opened.manifest.networks, "unet": unet}
    manifest = replace(opened.manifest, networks=networks, options="--backend tensorrt --size 64x128")
    return replace(opened, manifest=manifest)


def told(bundle: Bundle) -> str:
    out = Console(file=io.StringIO(), width=250, markup=False)
    show_bundle(bundle, out, details=True)
    return out.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_errors_plans_layers_and_the_command(plans, tmp_path, monkeypatch):
    (tmp_path / "unet.plan").write_bytes(b"plan" + bytes(100))
    engine = TensorRtEngine(open_stand_in(), tmp_path / "unet.plan", SPEC, plan_of())
    monkeypatch.setattr("mimicmotion_trt.engines.open_engine", lambda *_: engine)
    said = told(plans)
    assert "float32[rows, frames, 8, latent_height, latent_width]" in said
    assert "Whether it runs here: mimicmotion-trt doctor" in said
    assert (
        "unet: tensorrt 11.4.0.106 for NVIDIA L4 SM89; takes other weights, which may stay in the host"
        in said
    )
    assert "rows 2, frames 4, latent_height 16, latent_width 8" in said
    assert "unet: 1 layer after compilation (1 PointWise); 1 of them answers in float32: double" in said
    assert "--output FOLDER --backend tensorrt --size 64x128" in said


def test_a_verdict_comes_first_and_an_error_that_is_large_has_advice(bundle: Path) -> None:
    manifest = Bundle.load(bundle).manifest
    said, advice = verdict(manifest, "mine")
    assert "agrees with PyTorch" in said
    assert "animate person.jpg dance.mp4 -o out.mp4 --bundle mine" in advice
    unet = manifest.networks["unet"]
    far = replace(unet, accuracy=replace(unet.accuracy, rel_l2=0.171, bound=0.3))
    coarse = replace(manifest, precision="fp8", networks={**manifest.networks, "unet": far})
    said, advice = verdict(coarse, "mine")
    assert "in float8 unet is 17 % off from PyTorch (30 % are allowed)" in said
    assert advice.startswith("Compare finished videos")


@pytest.mark.parametrize(
    ("part", "text"),
    [(0.171, "17 %"), (1.4e-6, "0.00014 %"), (0.0013, "0.13 %"), (0.0, "0 %"), (1.0, "100 %")],
)
def test_errors_are_percents(part: float, text: str) -> None:
    assert percent(part) == text


def test_of_many_wide_layers_some_are_named():
    layers = Layers({"Convolution": 50}, tuple(f"conv{index}" for index in range(50)))
    said = describe_layers(layers)
    assert "50 of them answer in float32: conv0, conv1, " in said
    assert said.endswith("conv19 and 30 more")


def test_brackets_in_names_are_no_markup(bundle, tmp_path):
    """A closing tag without an opening one would be an error, [fp16] would vanish."""
    folder = Path(shutil.copytree(bundle, tmp_path / "odd[/b]" / "tiny[fp16]"))
    note = "[red]careful[/red] [/b]"
    manifest = Bundle.load(folder).manifest
    (folder / "manifest.json").write_text(replace(manifest, note=note).to_json())
    done = CliRunner().invoke(app, ["inspect", str(folder)])
    assert done.exit_code == 0, done.output
    assert str(folder) in done.output.replace("\n", "")
    assert note in done.output


def test_every_count_of_the_graphs_has_a_row() -> None:
    assert list(OPERATORS) == [field.name for field in fields(GraphStats)]


def test_where_no_gpu_loads_the_plans_the_reason_is_said(plans, monkeypatch):
    def open_engine(*_: Any) -> None:
        raise BundleError("there is no GPU here")

    monkeypatch.setattr("mimicmotion_trt.engines.open_engine", open_engine)
    assert "layers after compilation cannot be read here: there is no GPU here" in told(plans)
    assert "takes other weights" in told(plans)


def test_a_narrow_terminal_cuts_nothing_off(bundle):
    out = Console(file=io.StringIO(), width=50, markup=False)
    show_bundle(Bundle.load(bundle), out, details=True)
    assert "…" not in out.file.getvalue()
