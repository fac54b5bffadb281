"""Where memory runs out on one stream, all streams of that GPU give back what nobody uses; on a stand-in for CUDA."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

pytest.importorskip("cuda.bindings", reason="needs the GPU packages")

from mimicmotion_trt.engines import cuda as gpus
from mimicmotion_trt.engines.cuda import Gpu
from mimicmotion_trt.errors import OutOfMemory

from ..cuda.stand_in_cuda import Cuda


class Holder:
    """Somebody who holds memory that nobody uses now."""

    def __init__(self, gpu: Gpu, size: int) -> None:
        self.memory = [gpu.allocate(size)]
        gpu.reclaimable.add(self)

    def free_unused(self) -> None:
        self.memory.clear()


@contextmanager
def held_elsewhere(gpu: Gpu) -> Iterator[None]:
    """Another thread has its turn."""
    begun, over = threading.Event(), threading.Event()

    def hold() -> None:
        with gpu.lock:
            begun.set()
            over.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    assert begun.wait(30)
    yield
    over.set()
    thread.join(30)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    cuda = Cuda(None, room=1000)
    monkeypatch.setitem(sys.modules, "cuda.core", cuda.core())
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", cuda.driver())
    return cuda


def test_streams_of_a_gpu_give_back_for_each_other(cuda):
    denoise, around = Gpu(0), Gpu(0)
    holders = [Holder(denoise, 300), Holder(around, 300)]
    assert denoise.allocate(900).size == 900
    assert [holder.memory for holder in holders] == [[], []]


def test_a_stream_that_is_busy_for_long_is_left_alone(cuda, monkeypatch):
    """Whoever has its turn may be waiting for ours."""
    monkeypatch.setattr(gpus, "LOCK_SECONDS", 0.01)
    denoise, around = Gpu(0), Gpu(0)
    holder = Holder(around, 300)
    with held_elsewhere(around), pytest.raises(OutOfMemory):
        denoise.allocate(900)
    assert holder.memory
    denoise.allocate(900)


def test_nothing_is_given_back_on_a_stream_that_is_captured(cuda):
    denoise, around = Gpu(0), Gpu(0)
    holders = [Holder(denoise, 300), Holder(around, 300)]
    around.capturing = True
    assert denoise.free_unused()
    assert [len(holder.memory) for holder in holders] == [0, 1]
    assert not around.free_unused()
