"""`CudaDevice`, graphs and all, on a stand-in for CUDA: the real step program, the kernels of g++, a real engine."""

from __future__ import annotations

import gc
import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import cuda.core as REAL
import numpy as np
import pytest
from cuda.bindings import driver

from mimicmotion_trt import Animator, EngineError, PoseSequence
from mimicmotion_trt import networks as networks_module
from mimicmotion_trt.cuda import batch_sizes, launches
from mimicmotion_trt.cuda.program import StepProgram
from mimicmotion_trt.cuda.shared_program import ProgramCache
from mimicmotion_trt.denoise.plan import DenoisePlan
from mimicmotion_trt.engines import Bundle, Engine, Placement, open_engine
from mimicmotion_trt.engines.cuda import Gpu
from mimicmotion_trt.engines.cuda_device import CudaDevice
from mimicmotion_trt.engines.cuda_memory import LOST, DeviceArray, error_class
from mimicmotion_trt.errors import DeviceLost, OutOfMemory
from mimicmotion_trt.networks import Sampler

from .plans import EveryBatchPays, plan_of, programs_on
from .stand_in_cuda import Cuda, OnStream


@pytest.fixture(scope="module")
def unet(bundle) -> Iterator[Engine]:
    engine = open_engine(Bundle.load(bundle), "unet", Placement(threads=1))
    yield engine
    engine.close()


@pytest.fixture
def cuda(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cuda:
    """The stand-in in place of CUDA; its kernels run where the test has a `host`."""
    host = request.getfixturevalue("host") if "host" in request.fixturenames else None
    cuda = Cuda(host)
    monkeypatch.setitem(sys.modules, "cuda.core", cuda.core())
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", cuda.driver())
    monkeypatch.setattr(launches, "compile_kernels", lambda arch, dtype: b"cubin")
    return cuda


@pytest.fixture
def device(cuda: Cuda) -> CudaDevice:
    return launches.open_device(Gpu(0), "float32")


def nothing(*arguments: Any, **named: Any) -> None:
    """What a stand-in for the kernels does where no number counts."""


# ---- the whole way ----


@pytest.mark.parametrize("host", ["float32"], indirect=True)
@pytest.mark.parametrize("graphs", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("options", [{}, {"reuse_interval": 2, "pose_start": 0.2, "pose_strength": 2.0}])
def test_with_and_without_graphs_it_is_the_animator_on_the_cpu(host, cuda, deep_bundle, options, graphs):
    """Captured work outlives its binding's names, and a job's steps are graphs only where graphs are on."""
    with Animator.load(deep_bundle, threads=1) as animator:
        width, height = animator.manifest.sizes[0]
        chance = np.random.default_rng(0)
        picture = chance.integers(0, 255, (height, width, 3), np.uint8)
        poses = chance.integers(0, 255, (6, height, width, 3), np.uint8)
        settings = animator.settings(
            **{"steps": 4, "segment": 4, "overlap": 2, "guidance": (1.5, 2.0), **options}
        )
        expected = animator.sample(picture, poses, settings)
        device = launches.open_device(Gpu(0), "float32")

        def make(plan: DenoisePlan, slots: int, unet: Engine, shallow: Engine | None) -> StepProgram:
            first: Any = shallow and OnStream(cuda, shallow)
            on_stream: Any = OnStream(cuda, unet)
            return StepProgram(device, on_stream, plan, slots=slots, graphs=graphs, shallow=first)

        timing: Any = EveryBatchPays(device)
        animator.sampler.programs = ProgramCache(make, timing)
        jobs = 1 if options else 2
        for _ in range(jobs):
            found = animator.sample(picture, poses, settings)
            np.testing.assert_allclose(found, expected, atol=4e-6 * np.abs(expected).max())
        assert cuda.told.count("graph") == (jobs * settings.steps if graphs else 0)
        animator.sampler.programs.close()  # the device, too
    gc.collect()
    device.gpu.collect()
    assert (cuda.memory, cuda.graphs) == ({}, {})


@pytest.mark.parametrize("host", ["float32"], indirect=True)
@pytest.mark.parametrize("graphs", [True, False])
def test_a_whole_animator_on_a_gpu(host, cuda, bundle, monkeypatch, tmp_path, graphs):
    """Batches timed at the start, encoded, denoised, decoded; closed, it leaves nothing on the GPU."""
    chance = np.random.default_rng(0)
    picture = chance.integers(0, 255, (64, 128, 3), np.uint8)
    poses = chance.integers(0, 255, (6, 64, 128, 3), np.uint8)
    options = {"steps": 2, "segment": 4, "overlap": 2, "guidance": (1.5, 2.0)}
    with Animator.load(bundle, threads=1) as animator:
        expected = animator.sample(picture, poses, animator.settings(**options))
        frames = animator.decode(expected, 4).astype(int)
    monkeypatch.setenv("MIMICMOTION_CACHE", str(tmp_path))
    monkeypatch.setattr(batch_sizes, "RUNS", 1)
    gpu = Gpu(0)

    def opened(*arguments: Any, **named: Any) -> OnStream:
        return OnStream(cuda, open_engine(*arguments, **named), gpu)

    monkeypatch.setattr(networks_module, "open_engine", opened)
    with Animator.load(bundle, threads=1, graphs=graphs) as animator:
        assert list((tmp_path / "batch-sizes").iterdir())
        found = animator.sample(picture, poses, animator.settings(**options))
        np.testing.assert_allclose(found, expected, atol=4e-6 * np.abs(expected).max())
        assert np.abs(animator.decode(found, 4).astype(int) - frames).max() <= 1
        assert (cuda.told.count("graph"), len(cuda.graphs)) == ((2, 1) if graphs else (0, 0))
    gpu.collect()
    assert (cuda.memory, cuda.graphs, cuda.ails.name) == ({}, {}, "CUDA_SUCCESS")


def test_a_job_whose_engine_says_little_of_a_lost_gpu(cuda, bundle, monkeypatch, tmp_path):
    """Outside of the step program, too: here PoseNet's."""
    gpu = Gpu(0)

    def opened(*arguments: Any, **named: Any) -> OnStream:
        return OnStream(cuda, open_engine(*arguments, **named), gpu)

    def fails(inputs: Any, outputs: Any) -> Any:
        raise EngineError("the engine failed: no reason was given.")

    monkeypatch.setattr(Sampler, "prepare", nothing)
    monkeypatch.setattr(networks_module, "open_engine", opened)
    with Animator.load(bundle, threads=1) as animator:
        monkeypatch.setattr(animator.networks["pose_net"], "bind", fails)
        nobody = np.zeros((1, 18, 2), np.float32), np.zeros((1, 18), np.float32)
        hands = np.zeros((1, 2, 21, 2), np.float32), np.zeros((1, 2, 21), np.float32)
        face = np.zeros((1, 68, 2), np.float32), np.zeros((1, 68), np.float32)
        pose = PoseSequence(*nobody, *hands, *face, fps=8, size=(128, 64))
        pictures = np.zeros((3, 64, 128, 3), np.uint8)

        def run() -> None:
            for _ in animator.stream(pictures[0], pictures, reference_pose=pose):
                pass

        with pytest.raises(EngineError, match="no reason") as caught:
            run()
        assert type(caught.value) is EngineError
        cuda.ails = driver.CUresult.CUDA_ERROR_UNKNOWN
        with pytest.raises(DeviceLost, match=r"no reason was given\. \(CUDA_ERROR_UNKNOWN\)"):
            run()


@pytest.mark.parametrize("host", ["float32"], indirect=True)
def test_arrays_go_up_and_come_down(host, device):
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    array, other = device.empty((4, 6), np.float32), device.empty((2, 6), np.float32)
    device.upload(values, array)
    device.copy(device.part(array, 1, 3), other)
    come = device.fetch(other)()
    seen = device.read(other)
    device.upload(np.zeros((2, 6), np.float32), other)
    np.testing.assert_array_equal(seen(), values[1:3])
    np.testing.assert_array_equal(come, values[1:3])
    np.testing.assert_array_equal(device.download(array), values)
    ids = device.empty((2, 3), np.float32)
    device.upload(np.array([0, 1], np.int32), jobs := device.empty((2,), np.int32))
    device.enqueue(lambda stream: device.launch(launches.time_ids(2), array, jobs, ids, stream=stream))
    np.testing.assert_array_equal(device.download(ids), values.reshape(-1, 3)[:2])


# ---- memory ----


def test_what_comes_down_beside_later_work_is_waited_for_before_memory_goes(cuda, device):
    """A job that is cancelled takes no answer, and the copy may be as late as it likes."""
    array = device.empty((4,), np.float32)
    device.upload(np.ones(4, np.float32), array)
    values = device.fetch(array)
    later = device.empty((4,), np.float32)
    device.upload(np.zeros(4, np.float32), later)
    np.testing.assert_array_equal(values(), np.ones(4))

    values = device.fetch(array)
    device.release_after(lambda: None)
    del array
    device.gpu.collect()
    device._copies.sync()
    assert cuda.ails.name == "CUDA_SUCCESS"


def test_a_closed_program_gives_all_back_without_the_collector(cuda, device, unet, monkeypatch):
    monkeypatch.setattr(device, "launch", nothing)
    engine: Any = OnStream(cuda, unet)
    gc.disable()
    try:
        program = StepProgram(device, engine, plan_of(3))
        assert len(engine.bound) == len(cuda.graphs) == 1
        assert cuda.used > 0
        program.close()
        assert (len(engine.bound), cuda.graphs) == (0, {})
        device.close()
        assert cuda.memory == {}
        with pytest.raises(ValueError, match="closed"):
            program.latents()
    finally:
        gc.enable()


def test_nothing_is_given_back_on_a_stream_that_is_captured(cuda, device):
    """What the work lets go of is put off, and the collector sleeps until the capture is over."""
    held = [device.empty((100,), np.float32)]

    def work(stream: Any) -> None:
        held.clear()
        assert gc.isenabled() == (cuda.captured is None)
        device.gpu.collect()

    replay = device.record(work, graphs=True)
    assert gc.isenabled()
    replay()
    device.close()
    assert cuda.memory == {}


def test_idle_programs_make_room_for_others(cuda, device, unet, monkeypatch):
    monkeypatch.setattr(device, "launch", nothing)
    engine: Any = OnStream(cuda, unet)
    cache = programs_on(device)
    device.gpu.reclaimable.add(cache)
    shared, slot = cache.join(plan_of(3), engine)
    one = cuda.used
    busy, _ = cache.join(plan_of(3), engine)
    cache.leave(shared, slot)
    cuda.room = int(2.5 * one)  # two programs at a time
    other, slot = cache.join(plan_of(4), engine)
    assert len(cache) == 0
    assert busy.program.arrays  # it is open
    with pytest.raises(OutOfMemory, match=r"memory cannot be had: CUDA_ERROR_OUT_OF_MEMORY") as caught:
        cache.join(plan_of(2), engine)
    assert "fewer pixels" in caught.value.remedy
    cache.leave(other, slot)
    assert cache.join(plan_of(2), engine)[0].program.arrays


def test_a_broken_program_is_closed_after_its_last_job(cuda, device, unet, monkeypatch):
    monkeypatch.setattr(device, "launch", nothing)
    engine: Any = OnStream(cuda, unet)
    cache = programs_on(device)
    (shared, first), (_, second) = (cache.join(plan_of(3), engine, slots=2) for _ in range(2))
    cache.leave(shared, first, broken=True)
    assert len(cuda.graphs) == 2
    cache.leave(shared, second)
    assert cuda.graphs == {}


# ---- what goes wrong ----


@pytest.mark.parametrize("disturbance", ["raises", "synchronises", "takes memory", "frees"])
def test_a_capture_that_fails_says_why_and_the_next_one_works(cuda, device, disturbance):
    kept = [device._core.Device(0).allocate(100, stream=None)]

    def work(stream: Any) -> None:
        if cuda.captured is None:
            return
        if disturbance == "raises":
            raise EngineError("the engine failed: it cannot be captured.", remedy="None.")
        if disturbance == "synchronises":
            stream.sync()
        elif disturbance == "takes memory":
            device.empty((10,), np.float32)
        else:
            kept.clear()

    with pytest.raises(EngineError, match="could not be captured as a CUDA graph") as caught:
        device.record(work, graphs=True)
    reasons = {
        "raises": "cannot be captured",
        "synchronises": "CAPTURE_UNSUPPORTED",
        "takes memory": "capturing stream",
        "frees": "CAPTURE_INVALIDATED",
    }
    assert reasons[disturbance] in caught.value.message
    assert "--graphs off" in caught.value.remedy
    assert (cuda.captured, cuda.graphs, device.gpu.capturing, gc.isenabled()) == (None, {}, False, True)
    assert device.record(lambda stream: None, graphs=False)() is None
    device.record(lambda stream: None, graphs=True)()
    assert cuda.told == ["graph"]


def test_waiting_in_another_thread_does_not_disturb_a_capture(cuda, device):
    """The stream is asked in somebody's turn only."""
    entered, waited = threading.Event(), threading.Event()

    def wait() -> None:
        assert entered.wait(30)
        device.gpu.wait()
        waited.set()

    thread = threading.Thread(target=wait)
    thread.start()

    def work(stream: Any) -> None:
        if cuda.captured is not None:
            entered.set()
            assert not waited.wait(0.1)

    device.record(work, graphs=True)
    thread.join(30)
    assert waited.is_set()


USES: dict[str, Callable[[CudaDevice, Any], object]] = {
    "launch": lambda device, array: device.enqueue(
        lambda stream: device.launch(launches.timesteps(1), array, array, array, stream=stream)
    ),
    "upload": lambda device, array: device.upload(np.zeros(4, np.float32), array),
    "download": lambda device, array: device.download(array),
    "copy": lambda device, array: device.copy(array, array),
    "empty": lambda device, array: device.empty((4,), np.float32),
    "record": lambda device, array: device.record(lambda stream: None, graphs=True),
    "wait": lambda device, array: device.gpu.wait(),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("name", ["CUDA_ERROR_ILLEGAL_ADDRESS", "CUDA_ERROR_ECC_UNCORRECTABLE"])
def test_of_a_lost_gpu_everybody_is_told(cuda, device, use, name):
    array = device.empty((4,), np.float32)
    cuda.ails = getattr(driver.CUresult, name)
    with pytest.raises(DeviceLost, match=name) as caught:
        USES[use](device, array)
    assert "Start this process again" in caught.value.remedy
    device.close()  # which does not mind


def test_a_replay_and_pinned_memory_of_a_lost_gpu(cuda, device):
    replay = device.record(lambda stream: None, graphs=True)
    mark = device.gpu.mark()
    cuda.ails = driver.CUresult.CUDA_ERROR_LAUNCH_FAILED
    with pytest.raises(DeviceLost, match="a CUDA graph could not be launched: CUDA_ERROR_LAUNCH_FAILED"):
        replay()
    with pytest.raises(DeviceLost):
        _ = mark.done


def test_a_vague_error_on_a_lost_gpu_is_a_lost_gpu(cuda, device):
    """A library may say less than the driver does when it is asked."""

    def work(stream: Any) -> None:
        cuda.ails = driver.CUresult.CUDA_ERROR_UNKNOWN
        raise EngineError("the engine failed: cuBLAS says no.")

    with pytest.raises(DeviceLost, match=r"cuBLAS says no\. \(CUDA_ERROR_UNKNOWN\)"):
        device.enqueue(work)


def test_memory_that_was_given_back_is_not_there_any_more(cuda, device):
    """The stand-in notices what would be a use after free."""
    array = device.empty((4,), np.float32)
    address = DeviceArray(array.address, array.shape, array.dtype)
    del array
    device.gpu.collect()
    with pytest.raises(DeviceLost, match="ILLEGAL_ADDRESS"):
        device.download(address)


# ---- names ----


def test_each_error_after_which_nothing_works_is_a_lost_gpu():
    """By what `cuda.core` itself says of each of the driver's errors."""
    explanations = importlib.import_module(
        "cuda.core._utils.driver_cu_result_explanations"
    ).DRIVER_CU_RESULT_EXPLANATIONS
    sticky = [
        code.name
        for code in driver.CUresult
        if "will return the same error" in " ".join(str(explanations.get(int(code), "")).split())
    ]
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in sticky
    assert {error_class(f"{name}: some text") for name in sticky} == {DeviceLost}
    named = {words.upper() for words in LOST if words.startswith("cuda_error")}
    assert named <= {code.name for code in driver.CUresult}
    assert error_class("CUDA_ERROR_OUT_OF_MEMORY: The API call failed") is OutOfMemory
    assert error_class("Error Code 1: Cuda Runtime (an illegal memory access was encountered)") is DeviceLost
    assert error_class("Error Code 2: OutOfMemory (Requested size was 1 bytes.)") is OutOfMemory
    assert error_class("shapes do not fit") is EngineError


def test_the_stand_in_offers_real_names_only(cuda):
    """So every name of CUDA that these tests came through is one."""
    for name, kind in vars(cuda.core()).items():
        real = getattr(REAL, name)
        used = [*vars(kind)] if isinstance(kind, type) else []
        assert [word for word in used if not word.startswith("_") and not hasattr(real, word)] == []
    assert [name for name in vars(cuda.driver()) if not hasattr(driver, name)] == []
