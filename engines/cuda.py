"""A GPU with its stream: all of CUDA that engines need."""

from __future__ import annotations

import importlib
import re
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ..errors import BundleError, DeviceLost, EngineError, OutOfMemory
from .cuda_memory import RESTART, Arena, Mark, Memory, check_result, error_context

MINIMUM_CUDA = 13_000
"""CUDA 13.0 as drivers count; driver release 580 is the first that runs it."""
LOCK_SECONDS = 1.0
"""How long to wait for the lock of another stream, whose holder may be waiting for this one's."""
WITHOUT_GPU = "On the CPU use a bundle built with --backend onnxruntime, which is the usual one."

_open: weakref.WeakSet[Gpu] = weakref.WeakSet()
"""Every `Gpu` that there is; those of one index share its memory."""


class Gpu:
    """One GPU: a stream that runs its engines' work in order, and scratch memory that they share.

    Engines on another stream of the same GPU have another `Gpu`, and run side by side with these.
    """

    def __init__(self, index: int) -> None:
        core: Any = importlib.import_module("cuda.core")
        self.index = index
        device = core.Device(index)
        device.set_current()
        self.name = str(device.name)
        """As the driver calls it."""
        self.capability = f"SM{device.compute_capability.major}{device.compute_capability.minor}"
        """`SM90`."""
        self.stream = device.create_stream()
        self.lock = threading.RLock()
        """Held while work is started on the stream, since engines share scratch memory."""
        self.capturing = False
        """Whether the holder of the lock captures the stream: nothing may be freed on it then."""
        self.reclaimable: weakref.WeakSet[Any] = weakref.WeakSet()
        """Holders of unused memory, which their `free_unused()` gives up where memory runs out."""
        self.scratch = Arena(self.allocate)
        self.driver = load_driver()
        self._device = device
        self._pinned = core.LegacyPinnedMemoryResource()
        self._returned: deque[Any] = deque()
        _open.add(self)

    def activate(self) -> None:
        """Make this the calling thread's GPU."""
        with error_context("the GPU cannot be used"):
            self._device.set_current()

    def free_memory(self) -> int:
        """Bytes that are free on the GPU now."""
        return int(check_result(self.driver.cuMemGetInfo(), f"GPU {self.index}'s free memory is unknown"))

    def allocate(self, size: int) -> Memory:
        """Bytes on the GPU, in the order of the stream; raises `OutOfMemory` if there are not as many.

        They are freed by `collect`, under the lock, since the driver frees nothing on a stream in capture.
        """
        with self.lock:
            self.collect()
            try:
                memory = self._take(size)
            except OutOfMemory:
                if not self.free_unused():
                    raise
                memory = self._take(size)
            weakref.finalize(memory, self._returned.append, memory.owner).atexit = False
            return memory

    def pin(self, size: int) -> Memory:
        """Bytes of the host that the GPU copies from and to while the host goes on."""
        with error_context(f"{size / 1e6:,.0f} MB of the host's memory cannot be had"):
            buffer = self._pinned.allocate(size)
            return Memory(int(buffer.handle), size, buffer)

    def _take(self, size: int) -> Memory:
        with error_context(f"{size / 1e6:,.0f} MB of the GPU's memory cannot be had"):
            buffer = self._device.allocate(size, stream=self.stream)
            return Memory(int(buffer.handle), size, buffer)

    def collect(self) -> None:
        """Free the memory that nobody refers to any more."""
        with self.lock:
            if not self.capturing:
                self._returned.clear()

    def release_after(self, release: Callable[[], None]) -> None:
        """Once the work on the stream is done, call `release`, and free the memory that nobody refers to then."""
        with suppress(EngineError):  # of work that failed: whoever waited for it knows
            self.activate()
            self.wait()
        with self.lock:
            release()
            self.collect()

    def free_unused(self) -> bool:
        """Free all memory that nobody uses, on other streams too; False where that is not allowed now."""
        with self.lock:
            if self.capturing:
                return False
            for other in [gpu for gpu in _open if gpu.index == self.index and gpu is not self]:
                if other.lock.acquire(timeout=LOCK_SECONDS):
                    try:
                        with suppress(EngineError):  # of that stream's work: whoever waits for it gets it
                            other._free_own()
                    finally:
                        other.lock.release()
            self._free_own()
            error, pool = self.driver.cuDeviceGetMemPool(self.index)
            if not error:  # else it has none, and keeps nothing
                self.driver.cuMemPoolTrimTo(pool, 0)  # for PyTorch, whose memory comes from elsewhere
            return True

    def _free_own(self) -> None:
        """The unused memory of this stream, under its lock."""
        if not self.capturing:
            for holder in list(self.reclaimable):
                holder.free_unused()
            self.collect()
            self.wait()

    def copy(self, source: Memory, target: Memory) -> None:
        """Copy equally many bytes, in the order of the stream."""
        with error_context("the GPU cannot copy"):
            target.owner.copy_from(source.owner, stream=self.stream)

    def wait(self) -> None:
        """Until all that is on the stream is done; raises `EngineError` if it failed.

        Waits for a mark and not for the stream: that would end another thread's capture.
        """
        self.mark().wait()

    def mark(self) -> Mark:
        """The place in the stream behind all that is on it now."""
        with self.lock, error_context("the GPU failed"):
            return Mark(self.stream.record())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock to start work on the stream. An error that leaves the GPU unusable is a `DeviceLost`."""
        with self.lock:
            self.activate()
            try:
                yield
            except DeviceLost:
                raise
            except EngineError as error:
                self.raise_if_lost(error)
                raise

    def raise_if_lost(self, error: EngineError) -> None:
        """Raise `DeviceLost` if the GPU is lost: `error` may have said less."""
        with self.lock:
            if self.capturing:  # the stream must not be asked then
                return
            self.activate()
            (state,) = self.driver.cuStreamQuery(self.stream.handle)
            if state and state.name != "CUDA_ERROR_NOT_READY":
                raise DeviceLost(f"{error.message} ({state.name})", remedy=RESTART) from error


def gpu_index(device: str) -> int:
    """0 for "auto" and "cuda", 1 for "cuda:1"; raises `BundleError` for what is no GPU."""
    match = re.fullmatch(r"auto|cuda(?::(\d+))?", device)
    if match is None:
        raise BundleError(
            f"a TensorRT bundle runs on a GPU, not on {device!r}.",
            remedy=f'Use device="auto" or "cuda:0". {WITHOUT_GPU}',
            field="device",
        )
    return int(match[1] or 0)


def open_gpu(index: int, extra: str = "gpu") -> Gpu:
    """A GPU by its number; raises `BundleError` if there is none, or the driver is too old.

    `extra` of this package is what has to be installed.
    """
    try:
        driver = load_driver()
    except ImportError as error:
        raise BundleError(
            f"CUDA for Python is not installed ({error}).",
            remedy=f"pip install 'mimicmotion-trt[{extra}]'. {WITHOUT_GPU}",
        ) from error
    count = count_gpus(driver)
    if index >= count:
        raise BundleError(
            f"there is no GPU {index}: this machine has {count}.",
            remedy="Choose another device; CUDA_VISIBLE_DEVICES may hide some.",
            field="device",
        )
    try:
        return Gpu(index)
    except Exception as error:
        raise BundleError(
            f"GPU {index} cannot be used: {error}", remedy="See `mimicmotion-trt doctor`.", field="device"
        ) from error


def load_driver() -> Any:
    """The bindings of the driver's interface; raises ImportError."""
    return importlib.import_module("cuda.bindings.driver")


def count_gpus(driver: Any) -> int:
    """How many GPUs there are; raises `BundleError` if there is none, or no driver that runs CUDA 13."""
    try:
        _, version = driver.cuDriverGetVersion()
    except Exception as error:  # the driver's library is not there
        raise BundleError(
            f"there is no GPU here, or no NVIDIA driver: {error}", remedy=WITHOUT_GPU
        ) from error
    if 0 < version < MINIMUM_CUDA:
        raise BundleError(
            f"the NVIDIA driver is too old: it runs CUDA {version // 1000}.{version % 1000 // 10}.",
            remedy=f"Install driver release 580 or newer, which runs CUDA 13. {WITHOUT_GPU}",
        )
    (failure,) = driver.cuInit(0)
    if failure:
        raise BundleError(f"there is no GPU that answers ({failure.name}).", remedy=WITHOUT_GPU)
    failure, count = driver.cuDeviceGetCount()
    if failure or not count:
        raise BundleError("there is no GPU here.", remedy=WITHOUT_GPU)
    return int(count)
