"""The stages of TensorRT in gpu_check, as far as they go without a GPU."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import pytest

from ..engines.stand_in_tensorrt import SPEC, open_stand_in, plan_of


@pytest.fixture(scope="module")
def stage() -> Any:
    """The stage as a module."""
    return importlib.import_module("gpu_tensorrt")


@pytest.fixture(scope="module")
def plans() -> Any:
    """The module of the real U-Net's plans."""
    return importlib.import_module("gpu_plan")


def test_what_is_asked_of_each_library(stage, tmp_path):
    ada, hopper = (stage.Flavour("tensorrt-rtx", name, tmp_path) for name in ("SM89", "SM90"))
    assert (ada.own, hopper.own) == (("SM89",), ())
    assert {"tensorrt-rtx portable", "tensorrt-rtx refit", "tensorrt-rtx fp8"} <= set(ada.parts())
    assert "tensorrt-rtx refit" not in hopper.parts()  # it is for one kind of GPU that the library offers
    native = set(stage.Flavour("tensorrt", "SM80", tmp_path).parts())
    assert native == {f"tensorrt {name}" for name in ("golden", "layers", "streaming", "refit")}


def test_a_library_that_does_not_run_here_is_an_answer(stage, tmp_path, monkeypatch, bundle):
    hopper = stage.Flavour("tensorrt-rtx", "SM90", tmp_path)
    monkeypatch.setattr(stage, "golden_bundle", lambda *given, **named: bundle)
    assert list(hopper.parts()["tensorrt-rtx portable"]()) == [
        {"tensorrt-rtx_portable_loads": "yes", "tensorrt-rtx_offers_this_gpu": False}
    ]
    monkeypatch.setattr(stage, "loads", lambda bundle: "no: it was not compiled for this GPU")
    (told,) = hopper.parts()["tensorrt-rtx golden"]()
    assert told == {"tensorrt-rtx_runs_here": "no: it was not compiled for this GPU"}


def test_why_a_bundle_does_not_load(stage, tmp_path):
    assert stage.loads(tmp_path).startswith("no: ")


@pytest.fixture
def engines(stage, monkeypatch, tmp_path, bundle) -> list[Any]:
    """Plans of the stand-in wherever one is opened; those that were."""
    from mimicmotion_trt.engines.tensorrt_backend import TensorRtEngine

    opened: list[Any] = []
    path = tmp_path / "unet.plan"
    path.write_bytes(b"plan" + bytes(100))

    def open_plan(bundle: Any, network: str) -> Any:
        opened.append(TensorRtEngine(open_stand_in(), path, SPEC, plan_of(streamable=True)))
        return opened[-1]

    monkeypatch.setattr(stage, "open_engine", open_plan)
    monkeypatch.setattr(stage.Flavour, "built", lambda self, *given, **named: bundle)
    return opened


def test_layers_and_streaming_by_the_engines_face(stage, tmp_path, engines):
    parts = stage.Flavour("tensorrt", "SM89", tmp_path).parts()
    (told,) = parts["tensorrt layers"]()
    assert told == {
        "tensorrt_layers": 1,
        "tensorrt_layers_in_float32": 1,
        "tensorrt_kinds": {"PointWise": 1},
    }
    (told,) = parts["tensorrt streaming"]()
    assert told == {"tensorrt_streamed_rel_l2": 0.0}
    assert len(engines) == 3
    for engine in engines:
        with pytest.raises(Exception, match="closed"):
            engine.layers()


def test_without_a_library_the_remedy_is_told(stage, monkeypatch):
    monkeypatch.setattr(stage.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(stage.BundleError, match="neither TensorRT nor TensorRT-RTX") as caught:
        stage.installed()
    assert "mimicmotion-trt[gpu]" in str(caught.value)


def test_weights_are_changed_in_the_unet_alone(stage, tmp_path):
    import torch

    state = torch.load(stage.CHECKPOINT, weights_only=True)
    other = torch.load(stage.changed_checkpoint(tmp_path / "other.pth"), weights_only=True)
    for key, value in other.items():
        assert torch.equal(value, state[key] * 1.02 if key.startswith("unet.") else state[key])
    assert set(other) == set(state)


def real_plan(plans: Any, place: Any, work: Any) -> Any:
    import torch

    small = importlib.import_module("gpu_networks").SMALL
    scale = replace(small, dtype=torch.float16, cells=(8, 16), timed=1)
    return plans.RealPlan(place, scale, 3, "tensorrt-rtx", ("SM89",), work)


@pytest.fixture
def plan(host, stand_in, plans, tmp_path, monkeypatch) -> Any:
    """A small U-Net's, on PyTorch in place of TensorRT and on a stand-in for the GPU; two steps instead of 25."""
    import torch

    networks, places, real = (
        importlib.import_module(f"gpu_{name}") for name in ("networks", "place", "real")
    )
    monkeypatch.setattr(real, "ALTERNATIONS", 1)
    monkeypatch.setattr(real, "STEPS", 2)
    monkeypatch.setattr(real, "PLAIN_VIDEOS", {})
    place = places.Place(torch.device("cpu"), device=stand_in(host), decoding=stand_in(host))
    plan = replace(real_plan(plans, place, tmp_path), scale=replace(networks.SMALL, timed=1))

    def engine(self: Any) -> Any:
        module = networks.Networks(self.scale, self.place.torch).folded()
        return places.ModuleEngine(module, self.scale.specs()["unet"], self.place, None)

    monkeypatch.setattr(plans.RealPlan, "engine", engine)
    return plan


@pytest.mark.parametrize("host", ["float32"], indirect=True)
def test_a_step_on_a_plan_is_compared_with_the_plain_loop(plan):
    figures = {name: value for told in plan.step() for name, value in told.items()}
    assert figures["tensorrt_rel_l2"] < 1e-5
    assert figures["tensorrt_s"] > 0


@pytest.mark.parametrize("host", ["float32"], indirect=True)
def test_whole_videos_on_a_plan_are_judged_against_the_plain_one(plan):
    figures = {}
    for part in ("plain-video", "video"):
        for told in plan.parts()[part]():
            figures |= told
    assert set(figures) == {f"video_{name}_s" for name in ("plain", "ours", "overlapped", "options")}
    assert "to_pictures" in plan.place.decoding.told
    targets = importlib.import_module("gpu_targets")
    told = targets.judged({"stages": {"tensorrt-real-72": {"runs": {"a run": figures}}}})
    assert [(one["target"], one["stage"]) for one in told if one["figure"]] == [
        (">= 2", "tensorrt-real-72"),
        (">= 5", "tensorrt-real-72"),
    ]


@pytest.mark.parametrize("host", ["float32"], indirect=True)
def test_gaps_of_every_loop_are_figures_of_the_last_stage(plan, monkeypatch):
    """Without a library for plans the loops on PyTorch have theirs."""
    stages, real = (importlib.import_module(f"gpu_{name}") for name in ("stages", "real"))
    targets = importlib.import_module("gpu_targets")
    monkeypatch.setattr(real, "idle_share", lambda work, wait: work() or 0.005)
    monkeypatch.setattr(stages.Place, "of", lambda gpu, dtype: plan.place)
    monkeypatch.setattr(stages, "REAL", plan.scale)
    monkeypatch.setattr(type(plan), "export", lambda self: iter(()))
    monkeypatch.setattr(type(plan), "compile", lambda self: iter(()))
    monkeypatch.setattr(stages, "real_plan", lambda place, scale, frames, gpu, work: replace(plan, frames=3))
    parts = stages.STAGES["gaps"].parts(stages.Machine(object(), "a stand-in", "", "", None))
    assert list(parts) == ["loop-16", "tensorrt-real", "loop-72", "tensorrt-real-72"]
    figures = {}
    for name in ("loop-16", "tensorrt-real-72"):
        for told in parts[name]():
            figures |= told
    assert figures == {"loop-16_gaps_idle": 0.005, "tensorrt-real-72_gaps_idle": 0.005}
    told = targets.judged({"stages": {"gaps": {"runs": {"a run": figures}}}})
    assert [one["met"] for one in told if one["stage"] == "gaps"] == [True, None, None, True]

    def missing(*given: Any) -> Any:
        raise stages.BundleError("neither is installed.", remedy="pip install it")

    monkeypatch.setattr(stages, "real_plan", missing)
    with pytest.raises(stages.BundleError):
        list(parts["tensorrt-real"]())


@pytest.mark.slow
def test_a_unet_is_exported_and_compiled_once(plans, tmp_path):
    import torch

    place = importlib.import_module("gpu_place").Place(torch.device("cpu"))
    plan = real_plan(plans, place, tmp_path)
    for part in plan.parts(), plan.parts():
        (told,) = part["export"]()
        assert told["graph_gb"] > 0
        (told,) = part["compile"]()
        assert told["plan_gb"] > 0
        times = {path: path.stat().st_mtime_ns for path in plan.graph.parent.iterdir()}
    assert {path.suffix for path in times} == {".onnx", ".plan", ".json"}
    other = replace(plan, frames=4)  # the same graph
    assert (other.graph, other.plan.name) == (plan.graph, "tensorrt-rtx-4.plan")


@pytest.mark.slow
def test_refitting_is_judged_by_the_new_weights(stage, tmp_path, monkeypatch):
    """With graphs for plans: refitted ones pass, plans that kept the old weights do not."""
    flavour = stage.Flavour("tensorrt", "SM89", tmp_path)

    def built(
        self: Any, kind: str, *given: Any, plan: Any = None, refit_from: Any = None, **more: Any
    ) -> Any:
        return stage.golden_bundle(tmp_path / kind, "onnxruntime", "fp32", **more)

    monkeypatch.setattr(stage.Flavour, "built", built)
    (told,) = flavour.refit()
    assert told["refitted_rel_l2"] < 1e-4 < told["not_refitted_rel_l2"]
    monkeypatch.setattr(stage.Flavour, "built", lambda self, *given, **more: tmp_path / "refit")
    with pytest.raises(AssertionError, match="refitted plans are"):
        list(flavour.refit())
