"""PyTorch's networks on a stream: their memory, their precision, their errors, on a stand-in for its GPU."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from mimicmotion_trt import EngineError  # noqa: E402
from mimicmotion_trt.engines import EngineSpec, TensorSpec  # noqa: E402
from mimicmotion_trt.engines import torch_backend as module  # noqa: E402
from mimicmotion_trt.engines.torch_backend import (  # noqa: E402
    TorchBinding,
    TorchMemory,
    exact_floats,
    run_twice,
)
from mimicmotion_trt.errors import DeviceLost, OutOfMemory  # noqa: E402

SPEC = EngineSpec((TensorSpec("x", "float32", (4,)),), (TensorSpec("y", "float32", (4,)),))


class Pool:
    """As PyTorch's: two threads at once in one pool are an error."""

    alive = made = 0

    def __init__(self) -> None:
        self.inside = False
        Pool.alive += 1
        Pool.made += 1

    def __del__(self) -> None:
        Pool.alive -= 1


@contextlib.contextmanager
def use_pool(pool: Pool) -> Iterator[None]:
    assert not pool.inside, "beginAllocateToPool: already recording to mempool_id"
    pool.inside = True
    try:
        yield
    finally:
        pool.inside = False


class StandIn:
    """A `Gpu` by what is asked of it here."""

    def __init__(self) -> None:
        self.lock, self.reclaimable = threading.RLock(), set[Any]()
        self.relieved, self.capturing = 0, False

    def free_unused(self) -> bool:
        if not self.capturing:
            self.relieved += 1
            for holder in self.reclaimable:
                holder.free_unused()
        return not self.capturing


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    gc.collect()  # pools of the tests before
    monkeypatch.setattr(Pool, "alive", 0)
    monkeypatch.setattr(Pool, "made", 0)
    monkeypatch.setattr(torch.cuda, "MemPool", Pool)
    monkeypatch.setattr(torch.cuda, "use_mem_pool", use_pool)
    monkeypatch.setattr(module.DeviceArray, "of", lambda array: array)
    return StandIn()


def bind(run: Any, memory: TorchMemory) -> tuple[TorchBinding, np.ndarray[Any, Any]]:
    """A network on four numbers, and what it writes."""
    x, y = np.arange(4, dtype=np.float32), np.zeros(4, np.float32)
    return TorchBinding(run, SPEC, {"x": x}, {"y": y}, torch.device("cpu"), memory), y


def test_all_networks_of_a_stream_share_a_pool_that_is_kept_until_it_is_wanted_back(gpu):
    """Between jobs nobody is bound, and to destroy a pool and make another waits for all of the GPU."""
    memory = module.shared_memory(gpu)
    assert module.shared_memory(gpu) is memory
    for _ in range(2):
        bound = [bind(lambda x: 2 * x, memory) for _ in range(3)]
        for call, y in bound:
            call()
            np.testing.assert_array_equal(y, [0, 2, 4, 6])
        assert Pool.alive == Pool.made == 1
        del bound, call
        gc.collect()
        assert Pool.alive == 1
    memory.free_unused()
    assert Pool.alive == 0


def test_a_pool_that_is_wanted_back_goes_with_the_last_that_ran_in_it(gpu):
    """A graph may have addresses in it; another network that is bound meanwhile shares it, and it is kept again."""
    memory = TorchMemory(gpu)
    first, second = (bind(lambda x: x, memory)[0] for _ in range(2))
    first()
    memory.free_unused()
    assert Pool.alive == 1
    second()
    assert Pool.made == 1
    del first, second
    assert Pool.alive == 1
    third, _ = bind(lambda x: x, memory)
    third()
    memory.free_unused()
    del third
    assert (Pool.alive, Pool.made) == (0, 1)


def test_a_pool_of_another_size_makes_room_for_a_network_that_has_not_run(gpu, monkeypatch):
    """PyTorch takes nothing out of a pool, so a job of another size finds its memory in pieces that are too small."""
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    memory = TorchMemory(gpu)
    gpu.reclaimable.add(memory)
    bind(lambda x: x, memory)[0]()

    def run(x: Any) -> Any:
        if Pool.made == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return x

    call, y = bind(run, memory)
    call()
    assert (Pool.alive, Pool.made, y[3]) == (1, 2, 3)


def test_a_network_of_several_answers(gpu):
    x, y, z = (np.full(4, 3, np.float32) for _ in range(3))
    spec = EngineSpec(SPEC.inputs, (*SPEC.outputs, TensorSpec("z", "float32", (4,))))
    arrays, run = ({"x": x}, {"z": z, "y": y}), lambda x: (x + 1, x + 2)
    TorchBinding(run, spec, *arrays, torch.device("cpu"), TorchMemory(gpu))()
    assert (y[0], z[0]) == (4, 5)


def test_calls_of_several_threads_take_turns(gpu):
    memory, inside = TorchMemory(gpu), threading.Barrier(2)
    calls = [bind(lambda x: x + 1, memory)[0] for _ in range(2)]
    failed: list[BaseException] = []

    def run(call: TorchBinding) -> None:
        try:
            inside.wait(10)
            for _ in range(50):
                call()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failed == []


def test_without_memory_it_is_tried_once_more_with_what_others_gave_back(gpu, monkeypatch):
    emptied: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    fails = iter([True, False, True, True])

    def run(x: Any) -> Any:
        if next(fails):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return x

    call, y = bind(run, TorchMemory(gpu))
    gpu.reclaimable.add(call._memory)
    call()
    assert (gpu.relieved, emptied, y[3]) == (1, [True], 3)
    with pytest.raises(OutOfMemory, match=r"PyTorch failed: CUDA out of memory"):
        call()
    assert gpu.relieved == 2


def test_under_capture_nothing_is_given_back(gpu):
    def run(x: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    gpu.capturing = True
    with pytest.raises(OutOfMemory):
        bind(run, TorchMemory(gpu))[0]()
    assert gpu.relieved == 0


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("CUDA error: an illegal memory access was encountered", DeviceLost),
        ("CUDA error: unspecified launch failure", DeviceLost),
        ("CUDA error: uncorrectable ECC error encountered", DeviceLost),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", OutOfMemory),
        ("The size of tensor a (3) must match the size of tensor b (4)", EngineError),
    ],
)
def test_errors_by_what_pytorch_says(said, kind):
    def put() -> None:
        raise RuntimeError(said)

    with pytest.raises(EngineError, match="PyTorch failed") as caught:
        run_twice(put, None)
    assert type(caught.value) is kind


def test_convolutions_are_exact_in_calls_and_as_before_after_them(gpu):
    """cuDNN's TF32 is a setting of the whole process, on unless told otherwise."""
    seen: list[bool] = []
    flags = SimpleNamespace(tf32=lambda: torch.backends.cudnn.allow_tf32)
    call, _ = bind(lambda x: seen.append(flags.tf32()) or x, TorchMemory(gpu))
    before = flags.tf32()
    assert before
    call()
    with exact_floats():
        call()
        assert not flags.tf32()
    assert (seen, flags.tf32()) == ([False, False], before)


def test_it_is_put_on_the_stream_that_it_is_given(gpu, monkeypatch):
    """PyTorch knows that stream as one of somebody else's."""
    current: list[int] = []

    @contextlib.contextmanager
    def on(stream: int) -> Iterator[None]:
        current.append(stream)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda handle, device: handle)
    monkeypatch.setattr(torch.cuda, "stream", on)
    call, y = bind(lambda x: x + current[-1], TorchMemory(gpu))
    call.enqueue(SimpleNamespace(handle=7))
    np.testing.assert_array_equal(y, [7, 8, 9, 10])
    assert current == []
