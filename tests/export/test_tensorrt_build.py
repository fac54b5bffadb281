"""Real TensorRT-RTX builds, without a GPU: five plans of the golden networks, and what can go wrong."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mimicmotion_trt.engines import NETWORKS, Bundle, EnginePlan, EngineSpec, Placement, Profile, TensorSpec
from mimicmotion_trt.engines.cuda import open_gpu
from mimicmotion_trt.engines.onnx_weights import write_changed
from mimicmotion_trt.engines.onnxruntime_backend import OnnxRuntimeEngine
from mimicmotion_trt.engines.tensorrt_library import Library, open_library
from mimicmotion_trt.errors import BundleError, EngineError, ExportError
from mimicmotion_trt.export import build, network_build, tensorrt_build, verify
from mimicmotion_trt.export.build import build_bundle
from mimicmotion_trt.export.options import Options, PlanOptions
from mimicmotion_trt.export.tensorrt_build import (
    add_profiles,
    compile_plan,
    configure,
    describe_plan,
    plan_name,
    refit_plan,
)
from mimicmotion_trt.export.tracing import STANDARD, trace_onnx

from ..engines.stand_in_tensorrt import HostGpu
from .full_stand_in import open_full_stand_in

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no build for this platform")

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
OPTIONS = Options(
    backend="tensorrt-rtx",
    sizes=((64, 128),),
    segment=4,
    rows=(2,),
    plan=PlanOptions(capabilities=("SM89",), level=0),
    defaults={"canvas": 512},
)
SHAPES = {
    "unet": {
        "rows": (2, 2, 2),
        "frames": (4, 4, 4),
        "latent_height": (16, 16, 16),
        "latent_width": (8, 8, 8),
    },
    "pose_net": {"frames": (1, 8, 8), "height": (128, 128, 128), "width": (64, 64, 64)},
    "vae_encoder": {"batch": (1, 1, 1), "height": (128, 128, 128), "width": (64, 64, 64)},
    "vae_decoder": {"frames": (1, 8, 8), "latent_height": (16, 16, 16), "latent_width": (8, 8, 8)},
    "image_encoder": {"batch": (1, 1, 1)},
}
"""What `OPTIONS` ask for: poses and latents in chunks of up to 8."""
SPEC = EngineSpec(
    (TensorSpec("x", "float16", ("frames", 8, 8, 8)),), (TensorSpec("y", "float16", ("frames", 8, 8, 8)),)
)
PROFILES = (Profile({"frames": (1, 2, 4)}),)


def capability_here() -> str | None:
    """That of the first GPU that CUDA finds."""
    try:
        return open_gpu(0).capability
    except BundleError:
        return None


@pytest.fixture(scope="module")
def library() -> Library:
    return open_library("tensorrt-rtx")


@pytest.fixture
def graph(tmp_path) -> Path:
    """One convolution in float16."""
    layer = torch.nn.Conv2d(8, 8, 3, padding=1).half()
    inputs = {"x": torch.zeros(2, 8, 8, 8, dtype=torch.float16)}
    return trace_onnx(layer, inputs, SPEC, tmp_path / "conv.onnx", STANDARD)[0]


@pytest.fixture(scope="module")
def rtx_bundle(tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rtx") / "bundle"
    manifest, built = build_bundle(tiny.base, tiny.checkpoint, folder, OPTIONS)
    assert built
    assert manifest.precision == "fp16"
    return folder


@pytest.mark.slow
def test_all_five_networks_are_compiled(rtx_bundle, library):
    manifest = Bundle.load(rtx_bundle).manifest
    assert [path.name for path in rtx_bundle.parent.iterdir()] == ["bundle"]  # no finished parts are left
    assert manifest.versions["tensorrt-rtx"] == library.api.__version__
    for name in NETWORKS:
        network = manifest.networks[name]
        assert network.accuracy.rel_l2 < network.accuracy.bound == 5e-3
        assert re.fullmatch(rf"{name}-[0-9a-f]{{16}}\.plan", network.files[0].name)
        assert network.files[0].bytes > 10_000
        assert network.plan is not None
        assert network.plan.library == library.version
        assert network.plan.target == "SM89"
        assert [dict(profile.dims) for profile in network.plan.profiles] == [SHAPES[name]]
        assert network.accuracy.runner in (
            "float16",
            "onnxruntime",
            "tensorrt-rtx",
        )  # the last on a GPU of SM89
        assert network.stats.wide == 0
    assert manifest.options == (
        "--backend tensorrt-rtx --precision fp16 --size 64x128 --segment 4 --batch 2 --default canvas=512 "
        "--level 0 --capability SM89"
    )


@pytest.mark.slow
def test_the_second_build_has_nothing_to_do(rtx_bundle, tiny):
    before = {path: path.stat().st_mtime_ns for path in rtx_bundle.iterdir()}
    _, built = build_bundle(tiny.base, tiny.checkpoint, rtx_bundle, OPTIONS)
    assert not built
    assert {path: path.stat().st_mtime_ns for path in rtx_bundle.iterdir()} == before


# Compiles as the command does, tells when, and gives an interrupt time to arrive.
CHILD = """
import signal
import time
from mimicmotion_trt.export import build_engines, network_build

signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts beside itself ignores it
compile_plan = network_build.compile_plan

def told(library, graph, spec, profiles, options, output, progress, timings):
    def share(done):
        print("compiling", graph.stem, flush=True)
        if graph.stem == "pose_net":
            time.sleep(3)
        progress(done)
    return compile_plan(library, graph, spec, profiles, options, output, share, timings)

network_build.compile_plan = told
build_engines.app()
"""


@pytest.mark.slow
def test_ctrl_c_leaves_finished_networks_only_and_the_same_command_goes_on(micro, tmp_path):
    """A real process, interrupted by the signal that Ctrl-C sends while TensorRT-RTX compiles the second network."""
    arguments = shlex.split(OPTIONS.arguments)
    whole = ["--base", micro.base, "--checkpoint", micro.checkpoint, "--output", tmp_path / "out", *arguments]
    command = [sys.executable, "-c", CHILD, *map(str, whole)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert any(line == "compiling pose_net\n" for line in child.stdout)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate()
    assert child.returncode == 130
    assert "finished and kept: unet; the same command goes on" in said
    assert "Traceback" not in said
    (kept,) = tmp_path.iterdir()  # no output, no half of one
    (plan,) = (kept / "bundle").iterdir()
    assert plan.match("unet-*.plan")
    before = plan.stat().st_ino
    told: list[str] = []
    manifest, built = build_bundle(
        micro.base, micro.checkpoint, tmp_path / "out", OPTIONS, report=lambda what, *_: told.append(what)
    )
    assert built
    assert "exporting unet" not in told
    assert "exporting pose_net" in told
    assert (tmp_path / "out" / plan.name).stat().st_ino == before
    assert Bundle.load(tmp_path / "out").manifest == manifest
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_profiles_reach_the_library(library):
    """Read back from the library's own profile."""
    taken: list[Any] = []

    class Config:
        def add_optimization_profile(self, profile: Any) -> int:
            taken.append(profile)
            return len(taken) - 1

    add_profiles(library.api.Builder(library.logger), Config(), SPEC, PROFILES)
    profile = taken[0]
    assert [tuple(shape) for shape in profile.get_shape("x")] == [(1, 8, 8, 8), (2, 8, 8, 8), (4, 8, 8, 8)]


def test_every_option_reaches_the_library(library):
    """Read back from the library's own config."""
    api = library.api
    config = api.Builder(library.logger).create_builder_config()
    options = PlanOptions(
        level=5,
        workspace=64,
        aux_streams=2,
        capabilities=("SM89", "SM120"),
        refit=True,
        weight_streaming=True,
    )
    configure(api, config, options)
    assert config.builder_optimization_level == 5
    assert config.get_memory_pool_limit(api.MemoryPoolType.WORKSPACE) == 64 * 2**20
    assert config.max_aux_streams == 2
    assert [config.get_compute_capability(i).name for i in range(config.num_compute_capabilities)] == [
        "SM89", "SM120",
    ]  # fmt: skip
    assert config.get_flag(api.BuilderFlag.REFIT)
    assert config.get_flag(api.BuilderFlag.WEIGHT_STREAMING)
    assert not config.get_flag(api.BuilderFlag.REQUIRE_USER_ALLOCATION)  # these two rule each other out
    assert config.profiling_verbosity == api.ProfilingVerbosity.DETAILED


def test_what_is_not_given_is_left_to_the_library(library):
    api = library.api
    made = [api.Builder(library.logger).create_builder_config() for _ in range(2)]
    configure(api, made[0], PlanOptions())
    assert describe_plan(library, PROFILES, PlanOptions()).target == "SM80 SM86 SM89 SM120"
    workspace = [config.get_memory_pool_limit(api.MemoryPoolType.WORKSPACE) for config in made]
    assert workspace[0] == workspace[1]
    assert made[0].max_aux_streams == made[1].max_aux_streams
    assert made[0].builder_optimization_level == 3
    assert not made[0].get_flag(api.BuilderFlag.REFIT)
    assert made[0].get_flag(api.BuilderFlag.REQUIRE_USER_ALLOCATION)


def test_a_plan_says_how_it_was_compiled(library, graph, tmp_path):
    shares: list[float] = []
    options = PlanOptions(capabilities=("SM120",), weight_streaming=True, level=0)
    plan = compile_plan(library, graph, SPEC, PROFILES, options, tmp_path / "conv.plan", shares.append)
    assert (tmp_path / "conv.plan").stat().st_size > 1000
    assert plan == EnginePlan(library.version, "SM120", PROFILES, refittable=False, streamable=True)
    assert shares
    assert all(0 <= share <= 1 for share in shares)


def test_a_profile_that_the_library_refuses(library):
    class Config:
        def add_optimization_profile(self, profile: object) -> int:
            return -1

    builder, config = library.api.Builder(library.logger), Config()
    with pytest.raises(ExportError, match="frames 1-4 was refused") as caught:
        add_profiles(builder, config, SPEC, PROFILES)
    assert caught.value.remedy == tensorrt_build.REINSTALL


def test_plans_are_named_by_all_that_makes_them():
    plan = EnginePlan("tensorrt 11.4", "NVIDIA L4 SM89", PROFILES)
    changed = [
        replace(plan, library="tensorrt 11.5"),
        replace(plan, target="NVIDIA L4 SM90"),
        replace(plan, profiles=(Profile({"frames": (1, 2, 5)}),)),
    ]
    names = [
        plan_name("unet", "key", plan),
        plan_name("unet", "other", plan),
        plan_name("pose_net", "key", plan),
    ]
    names += [plan_name("unet", "key", other) for other in changed]
    assert len(set(names)) == len(names)
    assert plan_name("unet", "key", replace(plan)) == names[0]


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
    plan = EnginePlan(library.version, "SM89", PROFILES, refittable=True)
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
    plan = replace(EnginePlan(library.version, "SM89", PROFILES, refittable=True), **change)
    options = PlanOptions(refit=True, capabilities=("SM89",))
    with pytest.raises(ExportError, match="not the plan that is asked for") as caught:
        refit_plan(
            library, graph, SPEC, PROFILES, options, (tmp_path / "former.plan", plan), tmp_path / "new"
        )
    assert "--refit-from" in caught.value.remedy


def test_a_capability_that_is_not_offered(micro, tmp_path):
    """Told before anything is loaded or exported; nothing is left."""
    told: list[str] = []
    options = replace(OPTIONS, plan=PlanOptions(capabilities=("SM90",)))
    with pytest.raises(ExportError, match="SM90") as caught:
        build_bundle(
            micro.base, micro.checkpoint, tmp_path / "out", options, report=lambda what, *_: told.append(what)
        )
    assert "--backend tensorrt" in caught.value.remedy
    assert told == ["reading"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options",
    [
        Options(backend="tensorrt"),
        Options(backend="tensorrt", precision="fp8"),
        Options(backend="tensorrt-rtx", plan=PlanOptions(refit=True, capabilities=("SM89",))),
    ],
)
def test_without_a_gpu_what_needs_one_is_told_first(micro, fake_tensorrt, tmp_path, monkeypatch, options):
    def no_gpu(index: int) -> None:
        raise BundleError("there is no GPU here")

    told: list[str] = []
    monkeypatch.setattr(tensorrt_build, "open_gpu", no_gpu)
    with pytest.raises(ExportError, match="no GPU to compile for") as caught:
        build_bundle(
            micro.base, micro.checkpoint, tmp_path / "out", options, report=lambda what, *_: told.append(what)
        )
    assert ("GPU host" if options.backend == "tensorrt" else "--refit") in caught.value.remedy
    assert told == ["reading"]
    assert not list(tmp_path.iterdir())


def test_a_failed_build_leaves_no_half_written_graph(micro, tmp_path, monkeypatch):
    def fails(*_: object) -> None:
        raise ExportError("no memory")

    monkeypatch.setattr(network_build, "compare_engine", fails)  # the graph is there by then
    monkeypatch.setattr(verify, "SHAPES", verify.SHAPES[:1])
    with pytest.raises(ExportError, match="no memory"):
        build_bundle(micro.base, micro.checkpoint, tmp_path / "out", OPTIONS)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Library:
    """TensorRT, and a GPU, as stand-ins."""
    library = open_full_stand_in()
    for module in (build, network_build, tensorrt_build):
        monkeypatch.setattr(module, "open_library", lambda flavour: library)
    monkeypatch.setattr(tensorrt_build, "open_gpu", lambda index: HostGpu())
    return library


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Timing cache:DeprecationWarning")  # of the stand-in
def test_a_bundle_for_the_gpu_of_this_machine(full, micro, tmp_path, monkeypatch):
    """The plans are for that very GPU, and what judges them is the engine that loads them."""
    opened: list[tuple[str, EnginePlan]] = []

    def open_engine(path: Path, spec: EngineSpec, _: Placement, *, plan: EnginePlan) -> OnnxRuntimeEngine:
        opened.append((path.stem, plan))
        return OnnxRuntimeEngine(path.with_suffix(".onnx"), spec, threads=1)  # no GPU here runs the plan

    monkeypatch.setattr(network_build, "open_engine", open_engine)
    monkeypatch.setattr(verify, "SHAPES", verify.SHAPES[:1])
    options = Options(
        backend="tensorrt", sizes=((64, 128),), segment=2, rows=(1, 2), plan=PlanOptions(level=0, refit=True),
        defaults={"canvas": 256},
    )  # fmt: skip
    manifest, _ = build_bundle(micro.base, micro.checkpoint, tmp_path / "out", options)
    assert [name for name, _ in opened] == list(NETWORKS)
    for name, network in manifest.networks.items():
        assert network.plan == dict(opened)[name]
        assert (network.plan.library, network.plan.target) == ("tensorrt 11.4.0.106", "NVIDIA L4 SM89")
        assert network.accuracy.runner == "tensorrt"
        assert network.accuracy.cases == len(network.plan.profiles)
        assert network.accuracy.rel_l2 < 5e-3
    assert len(manifest.networks["unet"].plan.profiles) == 2
    assert manifest.versions["tensorrt"] == "11.4.0.106"
    bundle = Bundle.load(tmp_path / "out")  # for LoRAs the U-Net's graph and its table of weights are kept
    assert [path.name for path in bundle.folder.glob("*.onnx")] == ["unet.onnx"]
    table = bundle.weight_table("unet")
    zeros = {
        place.tensor: lambda shape=w.shape, place=place: place.part(np.zeros(shape))
        for w in table.values()
        for place in w.places
    }
    (tmp_path / "changed").mkdir()
    write_changed(bundle.graph_path("unet"), zeros, tmp_path / "changed")


@pytest.mark.filterwarnings("ignore:.*Timing cache:DeprecationWarning")  # of the stand-in
def test_what_was_timed_is_kept_for_the_next_build(full, library, graph, tmp_path):
    """In TensorRT's own cache; TensorRT-RTX times nothing."""
    timings, options = tmp_path / "timings", PlanOptions(level=0)
    compile_plan(full, graph, SPEC, PROFILES, options, tmp_path / "conv.plan", timings=timings)
    first = timings.read_bytes()
    assert first
    compile_plan(full, graph, SPEC, PROFILES, options, tmp_path / "conv.plan", timings=timings)
    assert timings.read_bytes() == first
    timings.unlink()
    options = PlanOptions(level=0, capabilities=("SM89",))
    compile_plan(library, graph, SPEC, PROFILES, options, tmp_path / "conv.plan", timings=timings)
    assert not timings.exists()


def test_a_plan_of_this_machines_gpu_takes_other_weights(full, graph, tmp_path, monkeypatch):
    engine = Refitted()
    monkeypatch.setattr(tensorrt_build, "open_engine", lambda *_, **__: engine)
    plan = EnginePlan(full.version, "NVIDIA L4 SM89", PROFILES, refittable=True)
    options, former = PlanOptions(refit=True), (tmp_path / "former.plan", plan)
    assert refit_plan(full, graph, SPEC, PROFILES, options, former, tmp_path / "new.plan") == plan
    other = (tmp_path / "former.plan", replace(plan, target="NVIDIA L40S SM89"))
    with pytest.raises(ExportError, match="NVIDIA L40S SM89"):
        refit_plan(full, graph, SPEC, PROFILES, options, other, tmp_path / "new.plan")


def test_a_builder_that_cannot_start(library, graph, tmp_path):
    """TensorRT's gives a null pointer where CUDA does not work, a TypeError in Python."""

    class Api:
        __version__ = "11.4.0.106"

        def Builder(self, logger: object) -> None:  # noqa: N802
            messages.append("CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    messages: deque[str] = deque(["an earlier network's"])
    broken = Library("tensorrt", Api(), None, messages)
    with pytest.raises(BundleError) as caught:
        compile_plan(broken, graph, SPEC, PROFILES, PlanOptions(), tmp_path / "conv.plan")
    assert caught.value.message == (
        "tensorrt 11.4.0.106 cannot start: CUDA initialization failure with error: 35."
    )
    assert "doctor" in caught.value.remedy


def test_the_real_parser_reads_a_graph_whose_weights_were_changed(library, graph, tmp_path):
    """As a refit is given one. Refitting itself needs a GPU (tests/gpu/test_tensorrt.py)."""
    folder = tmp_path / "changed"
    folder.mkdir()
    deltas = {"weight": lambda: np.ones(8 * 8 * 9)}
    changed = write_changed(graph, deltas, folder)
    kernels = []
    for path in (graph, changed):
        builder = library.start(library.api.Builder)
        network = builder.create_network(1 << int(library.api.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = library.api.OnnxParser(network, library.logger)
        assert parser.parse_from_file(str(path))
        layers = [network.get_layer(index) for index in range(network.num_layers)]
        (conv,) = (layer for layer in layers if layer.type == library.api.LayerType.CONVOLUTION)
        conv.__class__ = library.api.IConvolutionLayer
        kernels.append(np.array(conv.kernel, np.float32))
    np.testing.assert_allclose(kernels[1], kernels[0] + 1, atol=2e-3)


def test_a_graph_that_cannot_be_read(library, tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(ExportError, match=r"broken\.onnx cannot be read"):
        compile_plan(library, tmp_path / "broken.onnx", SPEC, PROFILES, PlanOptions(), tmp_path / "x.plan")


@pytest.mark.parametrize("error", [ImportError("No module"), OSError("libcudart.so.13: cannot open")])
def test_a_library_that_is_not_there_says_what_to_install(monkeypatch, error):
    def import_module(name: str) -> None:
        raise error

    monkeypatch.setattr("importlib.import_module", import_module)
    with pytest.raises(BundleError, match="tensorrt is not installed, or cannot be loaded") as caught:
        open_library.__wrapped__("tensorrt")  # not what is kept
    assert str(error) in caught.value.message
    assert caught.value.remedy == "pip install 'mimicmotion-trt[gpu]'"
