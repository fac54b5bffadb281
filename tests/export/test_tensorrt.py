"""Real TensorRT-RTX builds, without a GPU: five plans of the golden networks, and what can go wrong."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mimicmotion_trt.engines import NETWORKS, Bundle, EngineSpec, Plan, Profile, TensorSpec
from mimicmotion_trt.engines.cuda_memory import open_gpu
from mimicmotion_trt.engines.tensorrt_library import Library, open_library
from mimicmotion_trt.errors import BundleError, EngineError, ExportError, SettingsError
from mimicmotion_trt.export import build, tensorrt_build
from mimicmotion_trt.export.build import build_bundle
from mimicmotion_trt.export.dialect import STANDARD
from mimicmotion_trt.export.options import Options, PlanOptions
from mimicmotion_trt.export.profiles import make_profiles
from mimicmotion_trt.export.tensorrt_build import check_tensors, compile_plan, make_profile, refit_plan
from mimicmotion_trt.export.tracing import trace

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no build for this platform")

OPTIONS = Options(
    backend="tensorrt-rtx",
    sizes=((64, 128),),
    segment=4,
    rows=(2,),
    plan=PlanOptions(capabilities=("SM89",), level=0),
    defaults={"canvas": 512},
)
SPEC = EngineSpec(
    (TensorSpec("x", "float16", ("frames", 8, 8, 8)),), (TensorSpec("y", "float16", ("frames", 8, 8, 8)),)
)
PROFILES = (Profile({"frames": (1, 2, 4)}),)


def gpu_is_here() -> bool:
    """Whether CUDA finds one."""
    try:
        open_gpu(0)
    except BundleError:
        return False
    return True


@pytest.fixture(scope="module")
def library() -> Library:
    return open_library("tensorrt-rtx")


@pytest.fixture
def graph(tmp_path) -> Path:
    """One convolution in float16."""
    layer = torch.nn.Conv2d(8, 8, 3, padding=1).half()
    inputs = {"x": torch.zeros(2, 8, 8, 8, dtype=torch.float16)}
    return trace(layer, inputs, SPEC, tmp_path / "conv.onnx", STANDARD)[0]


@pytest.fixture(scope="module")
def rtx_bundle(tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rtx") / "bundle"
    manifest, built = build_bundle(tiny.base, tiny.checkpoint, folder, OPTIONS)
    assert built
    assert manifest.precision == "fp16"
    return folder


def test_all_five_networks_are_compiled(rtx_bundle, library):
    manifest = Bundle.load(rtx_bundle).manifest
    assert [path.name for path in rtx_bundle.parent.iterdir()] == ["bundle"]  # no finished parts are left
    assert manifest.versions["tensorrt-rtx"] == library.api.__version__
    for name in NETWORKS:
        network = manifest.networks[name]
        assert network.agreement.rel_l2 < network.agreement.bound == 5e-3
        assert re.fullmatch(rf"{name}-[0-9a-f]{{16}}\.plan", network.files[0].name)
        assert network.files[0].bytes > 10_000
        assert network.plan is not None
        assert network.plan.library == library.version
        assert network.plan.target == "SM89"
        assert network.plan.profiles == make_profiles(name, network.spec, OPTIONS)
        assert network.audit.wide == 0


def test_the_second_build_has_nothing_to_do(rtx_bundle, tiny):
    before = {path: path.stat().st_mtime_ns for path in rtx_bundle.iterdir()}
    _, built = build_bundle(tiny.base, tiny.checkpoint, rtx_bundle, OPTIONS)
    assert not built
    assert {path: path.stat().st_mtime_ns for path in rtx_bundle.iterdir()} == before


def test_an_interrupted_build_goes_on_where_it_stopped(micro, tmp_path, monkeypatch):
    """Interrupted at the third network: the first two are not built again."""
    told: list[str] = []

    def report(what: str, done: int, total: int) -> None:
        told.append(what)
        if what == "exporting vae_encoder" and told.count(what) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(build.Parts, "clear", lambda self: None)
    with pytest.raises(KeyboardInterrupt):
        build_bundle(micro.base, micro.checkpoint, tmp_path / "out", OPTIONS, report=report)
    assert not (tmp_path / "out").exists()
    (parts,) = tmp_path.glob(".out.parts-*")
    assert sorted(path.name.split("-")[0] for path in parts.glob("*.plan")) == ["pose_net", "unet"]
    told.clear()
    told.append("exporting vae_encoder")
    manifest, built = build_bundle(micro.base, micro.checkpoint, tmp_path / "out", OPTIONS, report=report)
    assert built
    assert "exporting unet" not in told
    assert "exporting pose_net" not in told
    assert Bundle.load(tmp_path / "out").manifest == manifest


def test_shapes_and_profiles_reach_the_library(library, graph):
    api = library.api
    builder = api.Builder(library.logger)
    network = builder.create_network(1 << int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = api.OnnxParser(network, library.logger)
    assert parser.parse_from_file(str(graph))
    check_tensors(api, network, SPEC, "conv.onnx")
    profile = make_profile(builder, SPEC, PROFILES[0])
    assert [tuple(shape) for shape in profile.get_shape("x")] == [(1, 8, 8, 8), (2, 8, 8, 8), (4, 8, 8, 8)]
    other = EngineSpec((TensorSpec("x", "float32", ("frames", 8, 8, 8)),), SPEC.outputs)
    with pytest.raises(ExportError, match="float32"):
        check_tensors(api, network, other, "conv.onnx")


@pytest.mark.parametrize(
    "options",
    [
        PlanOptions(capabilities=("SM89",)),
        PlanOptions(capabilities=("SM120",), weight_streaming=True, workspace=64, aux_streams=0, level=5),
        PlanOptions(),
    ],
)
def test_the_builder_takes_every_option(library, graph, tmp_path, options):
    shares: list[float] = []
    plan = compile_plan(library, graph, SPEC, PROFILES, options, tmp_path / "conv.plan", shares.append)
    assert (tmp_path / "conv.plan").stat().st_size > 1000
    assert (plan.refittable, plan.streamable) == (options.refit, options.weight_streaming)
    assert plan.target == (" ".join(options.capabilities) or "SM80 SM86 SM89 SM120")
    assert shares
    assert all(0 <= share <= 1 for share in shares)


def test_what_needs_a_gpu_says_so(library, graph, tmp_path):
    """TensorRT-RTX compiles refittable plans where a GPU is only."""
    options = PlanOptions(refit=True, capabilities=("SM89",))
    if gpu_is_here():
        assert compile_plan(library, graph, SPEC, PROFILES, options, tmp_path / "conv.plan").refittable
        return
    with pytest.raises(ExportError) as caught:
        compile_plan(library, graph, SPEC, PROFILES, options, tmp_path / "conv.plan")
    assert "needs a GPU" in caught.value.remedy
    assert not list(tmp_path.glob("*.plan"))


class Refitted:
    """Of an engine what `refit_plan` takes."""

    def __init__(self) -> None:
        self.did: list[str] = []

    def refit(self, graph: Path) -> None:
        self.did.append(f"refit {graph.name}")
        if graph.name != "conv.onnx":
            raise EngineError("it lacks conv.weight")

    def serialize(self) -> bytes:
        return b"plan"

    def close(self) -> None:
        self.did.append("close")


def test_a_plan_takes_other_weights(library, graph, tmp_path, monkeypatch):
    """What only a GPU can do, loading and refitting, is a stand-in's."""
    options, engine = PlanOptions(refit=True, capabilities=("SM89",)), Refitted()
    monkeypatch.setattr(tensorrt_build, "open_engine", lambda *_, **__: engine)
    plan = Plan(library.version, "SM89", PROFILES, refittable=True)
    former, output = (tmp_path / "former.plan", plan), tmp_path / "conv.plan"
    assert refit_plan(library, graph, SPEC, PROFILES, options, former, output) == plan
    assert (output.read_bytes(), engine.did) == (b"plan", ["refit conv.onnx", "close"])
    with pytest.raises(EngineError, match=r"conv\.weight"):
        refit_plan(library, tmp_path / "other.onnx", SPEC, PROFILES, options, former, tmp_path / "other.plan")
    assert engine.did[-1] == "close"
    assert not (tmp_path / "other.plan").exists()


@pytest.mark.parametrize(
    "change", [{"target": "SM86"}, {"library": "tensorrt-rtx 1.0"}, {"profiles": ()}, {"refittable": False}]
)
def test_a_plan_of_another_kind_takes_no_weights(library, graph, tmp_path, change):
    plan = replace(Plan(library.version, "SM89", PROFILES, refittable=True), **change)
    options = PlanOptions(refit=True, capabilities=("SM89",))
    with pytest.raises(ExportError, match="not the plan that is asked for") as caught:
        refit_plan(
            library, graph, SPEC, PROFILES, options, (tmp_path / "former.plan", plan), tmp_path / "new"
        )
    assert "--refit-from" in caught.value.remedy


def test_refitting_wants_plans_for_it(micro, rtx_bundle, tmp_path):
    with pytest.raises(SettingsError, match="take other weights") as caught:
        build_bundle(micro.base, micro.checkpoint, tmp_path / "b", OPTIONS, refit_from=rtx_bundle)
    assert "--refit" in caught.value.remedy
    options = Options(backend="tensorrt-rtx", plan=PlanOptions(refit=True, capabilities=("SM89",)))
    with pytest.raises(BundleError, match="no bundle"):
        build_bundle(micro.base, micro.checkpoint, tmp_path / "b", options, refit_from=tmp_path)
    assert not list(tmp_path.glob("*"))


def test_a_capability_that_is_not_offered(library, graph, tmp_path):
    options = PlanOptions(capabilities=("SM90",))
    with pytest.raises(ExportError, match="SM90") as caught:
        compile_plan(library, graph, SPEC, PROFILES, options, tmp_path / "conv.plan")
    assert "--backend tensorrt" in caught.value.remedy
    assert not list(tmp_path.glob("*.plan"))


def test_an_interrupt_calls_the_build_off(library, graph, tmp_path):
    """What ends the wait for the library's thread ends its build; nothing is written."""

    class Ctrl:
        """A progress callback whose first call interrupts the thread that waits."""

        def __call__(self, share: float) -> None:
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises((KeyboardInterrupt, ExportError)):
        compile_plan(library, graph, SPEC, PROFILES, PlanOptions(), tmp_path / "conv.plan", Ctrl())
    assert time.monotonic() - began < 60
    assert not list(tmp_path.glob("*plan*"))
    assert threading.active_count() < 20


def test_a_graph_that_cannot_be_read(library, tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(ExportError, match=r"broken\.onnx cannot be read"):
        compile_plan(library, tmp_path / "broken.onnx", SPEC, PROFILES, PlanOptions(), tmp_path / "x.plan")


def test_a_library_that_is_not_there_says_what_to_install():
    with pytest.raises(BundleError, match="tensorrt is not installed") as caught:
        open_library("tensorrt")
    assert caught.value.remedy == "pip install 'mimicmotion-trt[gpu]'"
