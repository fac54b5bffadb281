"""The TensorRT backend: its logic on a stand-in, its refusals on the real TensorRT-RTX library."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mimicmotion_trt import BundleError, EngineError
from mimicmotion_trt.commands.inspect import layer_lines
from mimicmotion_trt.engines import (
    Bundle,
    EnginePlan,
    EngineSpec,
    Placement,
    Profile,
    TensorSpec,
    open_engine,
    tensorrt_backend,
    tensorrt_library,
)
from mimicmotion_trt.engines.cuda import count_gpus, gpu_index, open_gpu
from mimicmotion_trt.engines.cuda_memory import DeviceArray
from mimicmotion_trt.engines.tensorrt_backend import TensorRtEngine
from mimicmotion_trt.engines.tensorrt_library import Session, check_validity, open_library
from mimicmotion_trt.engines.weight_table import WeightChanges

from .stand_in_tensorrt import SCRATCH, SPEC, HostGpu, open_stand_in, plan_of


@pytest.fixture
def gpu() -> HostGpu:
    return HostGpu()


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "unet.plan"
    path.write_bytes(b"plan" + bytes(100))
    return path


@pytest.fixture
def faults() -> set[str]:
    return set()


@pytest.fixture
def session(gpu: HostGpu, log: list[str], faults: set[str]) -> Session:
    return open_stand_in(gpu, log, faults)


@pytest.fixture
def engine(session: Session, file: Path) -> TensorRtEngine:
    return TensorRtEngine(session, file, SPEC, plan_of())


def arrays(rows: int, seed: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    x = np.random.default_rng(seed).normal(size=(rows, 3)).astype(np.float16)
    return {"x": x}, {"y": np.full((rows, 3), np.nan, np.float32)}


def on_gpu(gpu: HostGpu, array: np.ndarray[Any, Any]) -> DeviceArray:
    memory = gpu.allocate(array.nbytes)
    memory.owner[:] = np.frombuffer(array.tobytes(), np.uint8)
    return DeviceArray(memory.address, array.shape, array.dtype, owner=memory)


def test_arrays_of_the_host_are_copied_in_and_out(engine):
    inputs, outputs = arrays(2)
    call = engine.bind(inputs, outputs)
    call()
    np.testing.assert_array_equal(outputs["y"], 2 * inputs["x"].astype(np.float32))
    inputs["x"][:] = 5
    call()
    assert (outputs["y"] == 10).all()


def test_addresses_are_bound_once_and_a_call_takes_no_memory(engine, gpu, log):
    call = engine.bind(*arrays(2))
    bound, taken = log.count("bind x") + log.count("bind y"), len(gpu.allocated)
    for _ in range(3):
        call()
    assert bound == log.count("bind x") + log.count("bind y") == 2
    assert len(gpu.allocated) == taken
    assert log.count("run on 7") == 3


def test_arrays_on_the_gpu_are_used_where_they_lie(engine, gpu):
    inputs, outputs = arrays(1)
    x, y = on_gpu(gpu, inputs["x"]), on_gpu(gpu, outputs["y"])
    call = engine.bind({"x": x}, {"y": y})
    gpu.did.clear()
    call()
    assert gpu.did == []  # no copy, and nobody waits
    computed = np.frombuffer(y.owner.owner.tobytes(), np.float32).reshape(1, 3)
    np.testing.assert_array_equal(computed, 2 * inputs["x"].astype(np.float32))


def test_the_engine_alone_goes_on_any_stream(engine, gpu, log):
    inputs, outputs = arrays(1)
    call = engine.bind({"x": on_gpu(gpu, inputs["x"])}, {"y": on_gpu(gpu, outputs["y"])})
    call.enqueue(SimpleNamespace(handle=99))
    assert "run on 99" in log
    with pytest.raises(EngineError, match="x, y lie on the host"):
        engine.bind(inputs, outputs).enqueue(gpu.stream)


@pytest.mark.parametrize("rtx", [True, False])
def test_kernels_are_compiled_before_they_run_where_there_is_a_choice(session, engine, log, rtx):
    """A graph that is captured soon after the first run would keep those that stand in for them."""
    if not rtx:
        del session.library.api.DynamicShapesKernelSpecializationStrategy
    engine.bind(*arrays(1))
    assert ("kernels EAGER" if rtx else "kernels LAZY") in log


def test_a_capture_that_the_library_rules_out_is_refused(engine, gpu, log, faults):
    """It is asked after a run; without graphs the engine runs on."""
    inputs, outputs = arrays(1)
    call = engine.bind({"x": on_gpu(gpu, inputs["x"])}, {"y": on_gpu(gpu, outputs["y"])})
    faults.add("capture")
    for _ in range(2):
        call.enqueue(gpu.stream)
    assert log[-4:] == ["run on 7", "asked of 7"] * 2
    gpu.capturing = True
    with pytest.raises(EngineError, match="says that CUDA graphs cannot take this plan") as caught:
        call.enqueue(gpu.stream)
    assert "--graphs off" in caught.value.remedy
    assert log[-1] == "asked of 7"


@pytest.mark.parametrize("rtx", [True, False])
def test_a_capture_that_nothing_speaks_against(engine, gpu, log, monkeypatch, rtx):
    from . import stand_in_tensorrt

    if not rtx:
        monkeypatch.delattr(stand_in_tensorrt.IExecutionContext, "is_stream_capturable")
    inputs, outputs = arrays(1)
    call = engine.bind({"x": on_gpu(gpu, inputs["x"])}, {"y": on_gpu(gpu, outputs["y"])})
    call.enqueue(gpu.stream)
    gpu.capturing = True
    log.clear()
    call.enqueue(gpu.stream)
    assert log == ["run on 7"]


@pytest.mark.parametrize("strides", [None, (6, 2)])
def test_arrays_of_other_libraries(engine, gpu, strides):
    inputs, outputs = arrays(1)
    x, y = on_gpu(gpu, inputs["x"]), on_gpu(gpu, outputs["y"])
    face = x.__cuda_array_interface__ | {"strides": strides}
    engine.bind({"x": SimpleNamespace(__cuda_array_interface__=face)}, {"y": y})()
    assert np.frombuffer(y.owner.owner.tobytes(), np.float32)[0] == 2 * inputs["x"][0, 0]


def test_an_array_on_the_gpu_with_gaps(engine, gpu):
    x = on_gpu(gpu, np.zeros((2, 3), np.float16))
    face = x.__cuda_array_interface__ | {"strides": (12, 4)}
    with pytest.raises(EngineError, match="gaps"):
        engine.bind({"x": SimpleNamespace(__cuda_array_interface__=face)}, {"y": x})


def test_scratch_memory_is_the_largest_need_not_the_sum(session, file, gpu):
    first, second = (TensorRtEngine(session, file, SPEC, plan_of()) for _ in range(2))
    small, large = first.bind(*arrays(1)), second.bind(*arrays(4))
    assert [size for size in gpu.allocated if size >= 1000] == [1000, 5000]
    assert gpu.scratch.reserve(0).size == 5000
    other = first.bind(*arrays(3))
    for call in (small, large, other, small):  # the stand-in checks that each has what it needs
        call()
    assert gpu.scratch.reserve(5000).size == 5000


def test_a_call_that_may_be_captured_keeps_its_scratch_memory(engine, gpu, log):
    inputs, outputs = arrays(1)
    captured = engine.bind({"x": on_gpu(gpu, inputs["x"])}, {"y": on_gpu(gpu, outputs["y"])})
    before = gpu.scratch.reserve(0)
    assert f"scratch at {before.address}" in log
    engine.bind(*arrays(4))  # the arena moves
    assert gpu.scratch.reserve(0).address != before.address
    log.clear()
    captured()
    assert not any(line.startswith("scratch at") for line in log)


def test_without_engines_there_is_no_scratch_memory(session, file, gpu):
    first, second = (TensorRtEngine(session, file, SPEC, plan_of()) for _ in range(2))
    first.bind(*arrays(4))
    scratch = weakref.ref(gpu.scratch.reserve(0))
    first.close()
    assert scratch() is not None
    second.close()
    second.close()
    assert scratch() is None


def test_the_profile_that_takes_the_shapes_is_chosen(engine, log):
    for rows in (1, 2, 4):
        engine.bind(*arrays(rows))
    assert [line for line in log if line.startswith("profile")] == ["profile 0", "profile 1", "profile 1"]
    with pytest.raises(EngineError, match="not compiled for rows 5") as caught:
        engine.bind(*arrays(5))
    assert "--batch" in caught.value.remedy


def test_an_output_of_a_size_that_is_not_computed(engine, monkeypatch):
    from . import stand_in_tensorrt

    monkeypatch.setattr(stand_in_tensorrt.IExecutionContext, "get_tensor_shape", lambda self, name: (9, 3))
    with pytest.raises(EngineError, match=r"computes y \[9, 3\], not \[2, 3\]"):
        engine.bind(*arrays(2))


def test_a_call_that_fails_says_what_the_library_said(engine, faults):
    call = engine.bind(*arrays(1))
    faults.add("run")
    with pytest.raises(EngineError, match="out of memory") as caught:
        call()
    assert "fewer pixels" in caught.value.remedy
    faults.clear()
    call()


def test_contexts_go_before_their_engine(engine, log):
    call = engine.bind(*arrays(1))
    engine.close()
    assert log[-2:] == ["context gone", "engine gone"]
    with pytest.raises(EngineError, match="closed"):
        call()
    with pytest.raises(EngineError, match="closed"):
        engine.bind(*arrays(1))


def test_a_plan_tells_its_layers(engine):
    layers = engine.layers()
    assert (dict(layers.kinds), layers.wide) == ({"PointWise": 1}, ("double",))


def test_other_weights_are_put_in(session, file):
    engine = TensorRtEngine(session, file, SPEC, plan_of(refittable=True))
    inputs, outputs = arrays(1)
    call = engine.bind(inputs, outputs)
    engine.refit("good.onnx")
    call()
    np.testing.assert_array_equal(outputs["y"], 3 * inputs["x"].astype(np.float32))
    with pytest.raises(EngineError, match=r"conv\.weight"):
        engine.refit("another.onnx")


def test_a_plan_is_refitted_with_its_own_graph_whose_weights_are_changed(
    session, file, tmp_path, monkeypatch
):
    """The graph that was kept beside it; what the parser is given is gone afterwards."""
    onnx = pytest.importorskip("onnx")
    kept, weight = tmp_path / "good.onnx", np.arange(6, dtype=np.float16).reshape(2, 3)
    graph = onnx.helper.make_graph([], "kept", [], [], [onnx.numpy_helper.from_array(weight, "w")])
    kept.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    seen: list[Any] = []

    def refit_from_file(self: Any, path: str) -> bool:
        seen.extend([Path(path), onnx.numpy_helper.to_array(onnx.load(path).graph.initializer[0])])
        return True

    monkeypatch.setattr(session.library.api.OnnxParserRefitter, "refit_from_file", refit_from_file)
    monkeypatch.setattr(tensorrt_backend, "open_session", lambda *_: session)
    changes = WeightChanges({"w": lambda: np.full(6, 0.5)}, kept)
    plan = plan_of(refittable=True)
    engine = tensorrt_backend.open_engine(file, SPEC, Placement("cuda"), plan=plan, changes=changes)
    inputs, outputs = arrays(1)
    engine.bind(inputs, outputs)()
    np.testing.assert_array_equal(outputs["y"], 3 * inputs["x"].astype(np.float32))
    np.testing.assert_array_equal(seen[1], weight + np.float16(0.5))
    assert not seen[0].exists()


def test_a_plan_is_written_with_the_weights_that_it_has(session, file, faults):
    engine = TensorRtEngine(session, file, SPEC, plan_of(refittable=True))
    engine.refit("good.onnx")
    assert engine.serialize() == b"plan times 3.0 refittable"
    faults.add("write")
    with pytest.raises(EngineError, match="cannot be written"):
        engine.serialize()


def test_weights_that_cannot_be_put_in(engine, session, file):
    with pytest.raises(EngineError) as caught:
        engine.refit("good.onnx")
    assert "--refit" in caught.value.remedy


@pytest.mark.parametrize(
    ("free", "budget"), [(10**9, 4000), (SCRATCH[1] + 6000, 3000), (SCRATCH[1], 0), (0, 0)]
)
def test_streamed_weights_leave_room_for_scratch_and_other_networks(file, free, budget):
    log: list[str] = []
    streaming = TensorRtEngine(open_stand_in(HostGpu(free=free), log), file, SPEC, plan_of(streamable=True))
    assert log == [f"budget {budget}"]
    streaming.close()


def test_weights_stay_on_the_host_where_the_plan_allows_it(session, file, log):
    streaming = TensorRtEngine(session, file, SPEC, plan_of(streamable=True))
    streaming.stream_weights(10**6)
    assert log[-1] == "budget 4000"


@pytest.mark.parametrize(
    ("plan", "free", "says", "remedy"),
    [
        (
            plan_of(library="tensorrt 11.3.0.1"),
            10**9,
            "compiled by tensorrt 11.3.0.1",
            "tensorrt-cu13==11.3.0.1",
        ),
        (
            plan_of(library="tensorrt-rtx 1.7"),
            10**9,
            "tensorrt 11.4.0.106 is installed",
            "rebuild the bundle",
        ),
        (plan_of(target="NVIDIA H100 SM90"), 10**9, "this GPU is NVIDIA L4 SM89", "doctor"),
        (plan_of(target="NVIDIA L40S SM89"), 10**9, "this GPU is NVIDIA L4 SM89", "doctor"),
        (plan_of(), 50, "has 0.0 GB free", "--weight-streaming"),
        (plan_of(profiles=plan_of().profiles[:1]), 10**9, "2 profiles", "mimicmotion-trt inspect"),
    ],
)
def test_a_plan_that_is_not_for_this_machine(file, plan, free, says, remedy):
    with pytest.raises(BundleError) as caught:
        TensorRtEngine(open_stand_in(HostGpu(free=free)), file, SPEC, plan)
    assert says in caught.value.message
    assert remedy in caught.value.remedy


@pytest.mark.parametrize("content", [b"", b"no plan at all"])
def test_a_plan_that_is_damaged(session, tmp_path, content):
    (tmp_path / "unet.plan").write_bytes(content)
    with pytest.raises(BundleError, match=r"unet\.plan cannot be") as caught:
        TensorRtEngine(session, tmp_path / "unet.plan", SPEC, plan_of())
    assert "ebuild" in caught.value.remedy


def test_a_plan_whose_tensors_are_not_the_manifests(session, file):
    other = EngineSpec((TensorSpec("x", "float32", ("rows", 3)),), SPEC.outputs)
    with pytest.raises(BundleError, match="has tensors"):
        TensorRtEngine(session, file, other, plan_of())


def test_a_bundle_that_does_not_say_what_compiled_it(file):
    with pytest.raises(BundleError, match="does not say"):
        tensorrt_backend.open_engine(file, SPEC, Placement(), plan=None)


@pytest.mark.parametrize(("device", "index"), [("auto", 0), ("cuda", 0), ("cuda:3", 3)])
def test_devices(device, index):
    assert gpu_index(device) == index


@pytest.mark.parametrize("device", ["cpu", "gpu", "cuda:", ""])
def test_what_is_no_gpu(device):
    with pytest.raises(BundleError) as caught:
        gpu_index(device)
    assert "onnxruntime" in caught.value.remedy


def driver(version: int = 13_000, error: Any = 0, count: int = 2) -> Any:
    """The driver's interface with some answers; error is that of its start."""
    return SimpleNamespace(
        cuDriverGetVersion=lambda: (0, version),
        cuInit=lambda flags: (error,),
        cuDeviceGetCount=lambda: (0, count),
    )


def test_gpus_are_counted():
    assert count_gpus(driver()) == 2


class NoDevice(SimpleNamespace):
    name = "CUDA_ERROR_NO_DEVICE"


@pytest.mark.parametrize(
    ("made", "says", "remedy"),
    [
        (driver(version=12_040), "too old: it runs CUDA 12.4", "580"),
        (driver(error=NoDevice()), "CUDA_ERROR_NO_DEVICE", "onnxruntime"),
        (driver(count=0), "no GPU", "onnxruntime"),
        (SimpleNamespace(), "no NVIDIA driver", "onnxruntime"),
    ],
)
def test_a_machine_that_runs_no_plan(made, says, remedy):
    with pytest.raises(BundleError) as caught:
        count_gpus(made)
    assert says in caught.value.message
    assert remedy in caught.value.remedy


@pytest.mark.parametrize("reason", ["UNSUPPORTED_CC", "OLD_CUDA_DRIVER", "CUDA_ERROR"])
def test_a_portable_plan_that_does_not_run_here(reason):
    library = open_library("tensorrt-rtx")
    library.messages.clear()  # of other tests: the library is loaded once
    bits = int(library.api.EngineInvalidityDiagnostics.__members__[reason])
    runtime = SimpleNamespace(get_engine_validity=lambda data: (library.api.EngineValidity.INVALID, bits))
    gpu: Any = HostGpu(capability="SM86")
    says = rf"does not run on NVIDIA L4 SM86: {reason} \(it gave no reason\)"
    with pytest.raises(BundleError, match=says) as caught:
        check_validity(Session(library, gpu, runtime), b"", "unet.plan")
    assert "doctor" in caught.value.remedy


def test_a_library_that_cannot_start(file, monkeypatch):
    """Without a driver that works TensorRT's constructors give null pointers, TypeErrors in Python."""

    class Runtime:
        def __init__(self, logger: Any) -> None:
            raise TypeError("pybind11::init(): factory function returned nullptr")

    library = open_stand_in().library
    library.api.Runtime = Runtime
    library.messages.append("CUDA initialization failure with error: 35")
    monkeypatch.setattr(tensorrt_library, "open_gpu", lambda *_: HostGpu())
    monkeypatch.setattr(tensorrt_library, "open_library", lambda flavour: library)
    with pytest.raises(
        BundleError, match="cannot start: CUDA initialization failure with error: 35"
    ) as caught:
        tensorrt_backend.open_engine(file, SPEC, Placement("cuda:7"), plan=plan_of())
    assert "doctor" in caught.value.remedy


def has_gpu() -> bool:
    from mimicmotion_trt.engines.cuda import load_driver

    try:
        return count_gpus(load_driver()) > 0
    except BundleError:
        return False


def compile_double(flavour: str, folder: Path) -> tuple[Path, EngineSpec, EnginePlan]:
    """A plan that the real library compiled: y = x + x."""
    from onnx import TensorProto, helper, save

    from mimicmotion_trt.export.options import PlanOptions
    from mimicmotion_trt.export.tensorrt_build import compile_plan

    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT16, ["rows", 3]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "double", [x], [y])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)]), folder / "double.onnx")
    spec = EngineSpec((TensorSpec("x", "float16", ("rows", 3)),), (TensorSpec("y", "float16", ("rows", 3)),))
    profiles = (Profile({"rows": (1, 2, 4)}),)
    library, path = open_library(flavour), folder / "double.plan"
    return path, spec, compile_plan(library, folder / "double.onnx", spec, profiles, PlanOptions(), path)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EngineSpec, EnginePlan]:
    """TensorRT-RTX's, which needs no GPU to compile."""
    return compile_double("tensorrt-rtx", tmp_path_factory.mktemp("plan"))


def open_real(real: tuple[Path, EngineSpec, EnginePlan], device: str = "auto") -> TensorRtEngine:
    path, spec, plan = real
    return tensorrt_backend.open_engine(path, spec, Placement(device), plan=plan)


@pytest.mark.skipif(has_gpu(), reason="there is a GPU")
def test_a_real_plan_without_a_gpu(real):
    with pytest.raises(BundleError, match="no GPU here, or no NVIDIA driver") as caught:
        open_real(real)
    assert "onnxruntime" in caught.value.remedy


@pytest.mark.skipif(not has_gpu(), reason="needs a GPU")
def test_a_real_plan_on_a_gpu(real):
    if (here := open_gpu(0).capability) not in real[2].target.split():
        pytest.skip(f"TensorRT-RTX was not told to compile for {here}")
    check_double(open_real(real))


@pytest.mark.skipif(not has_gpu(), reason="needs a GPU")
def test_a_real_plan_of_the_other_flavour_on_a_gpu(tmp_path):
    pytest.importorskip("tensorrt", reason="TensorRT is not installed")
    check_double(open_real(compile_double("tensorrt", tmp_path)))


def check_double(engine: TensorRtEngine) -> None:
    """It doubles what it is given, and tells its layers."""
    x = np.arange(6, dtype=np.float16).reshape(2, 3)
    y = np.empty_like(x)
    engine.bind({"x": x}, {"y": y})()
    np.testing.assert_array_equal(y, 2 * x)
    assert engine.layers().count > 0
    engine.close()


@pytest.mark.skipif(has_gpu(), reason="there is a GPU")
def test_a_bundle_of_plans_without_a_gpu(bundle):
    opened = Bundle.load(bundle)
    plans = {name: replace(network, plan=plan_of()) for name, network in opened.manifest.networks.items()}
    foreign = replace(opened, manifest=replace(opened.manifest, backend="tensorrt", networks=plans))
    with pytest.raises(BundleError, match="no GPU here"):
        open_engine(foreign, "unet")
    (line,) = layer_lines(foreign)
    assert "no GPU here" in line
    assert list(layer_lines(opened)) == []
    assert open_engine(opened, "unet").spec == opened.manifest.networks["unet"].spec  # the CPU goes on


@pytest.mark.parametrize("content", [b"no plan at all" * 100, None])
def test_the_real_library_tells_what_it_cannot_load(real, tmp_path, content):
    """It reads the plan through the memory map; without a GPU even a sound one is refused."""
    path, spec, plan = real
    if content is None and has_gpu():
        pytest.skip("there is a GPU")
    (tmp_path / "unet.plan").write_bytes(path.read_bytes() if content is None else content)
    library = open_library("tensorrt-rtx")
    gpu: Any = HostGpu()
    session = Session(library, gpu, library.api.Runtime(library.logger))
    says = "MALFORMED_ENGINE" if content else "Error reading CUDA GPU properties"
    with pytest.raises(BundleError, match=says):
        TensorRtEngine(session, tmp_path / "unet.plan", spec, plan)
