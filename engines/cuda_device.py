"""A GPU as the step program sees it: arrays, copies, kernels, and work captured as a CUDA graph."""

from __future__ import annotations

import gc
import importlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..errors import EngineError, KernelError
from .cuda import Gpu
from .cuda_memory import DeviceArray, Mark, Staging, check_result, error_context, translate
from .spec import Array

UPLOAD_BYTES = 16 * 2**20
"""Bytes of an upload that are copied at once."""
GRAPHS_OFF = "Run with graphs off (--graphs off), and report the text above."
Work = Callable[[Any], None]
"""Puts something on the stream that it is given."""

_capture = threading.Lock()


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel, but for its pointers."""

    kernel: str
    blocks: int
    threads: int
    """In a block."""
    scalars: tuple[np.generic, ...]


class Replay(Protocol):
    """Puts a captured graph, or the work itself, on the device's stream once."""

    def __call__(self) -> None: ...

    def close(self) -> None:
        """Free what it holds, when it is not running; no call may follow."""


class CudaDevice:
    """Arrays, copies, kernels and graphs on a GPU's stream. Everything runs in the order in which it was asked for.

    `cubin` are kernels compiled for this GPU, `kernels` their names. Raises `KernelError` if they do not load.
    """

    def __init__(self, gpu: Gpu, cubin: bytes, kernels: tuple[str, ...]) -> None:
        self._core: Any = importlib.import_module("cuda.core")
        self.gpu, self._staging = gpu, Staging(gpu.pin)
        with gpu.lock:
            gpu.activate()
            self._copies = self._core.Device(gpu.index).create_stream()
            self._last_fetch: Mark | None = None
            self._kernels: Mapping[str, Any]
            try:
                code = self._core.ObjectCode.from_cubin(cubin)
                self._kernels = {name: code.get_kernel(name) for name in kernels}
            except Exception as error:  # cuda.core's own kinds
                raise KernelError(
                    f"the CUDA kernels cannot be loaded on {gpu.name}: {error}",
                    remedy="Update the driver, or empty the cache folder (MIMICMOTION_CACHE).",
                ) from error

    def empty(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        """An array on the device; its contents are undefined."""
        kind = np.dtype(dtype)
        with self.gpu.locked():
            memory = self.gpu.allocate(max(int(np.prod(shape)) * kind.itemsize, 16))
        return DeviceArray(memory.address, shape, kind, True, memory)

    def part(self, array: DeviceArray, start: int, stop: int) -> DeviceArray:
        """Items `start` to `stop` of an array's first dimension, the same memory."""
        stride = int(np.prod(array.shape[1:])) * array.dtype.itemsize
        shape = (stop - start, *array.shape[1:])
        return DeviceArray(array.address + start * stride, shape, array.dtype, True, array.owner)

    def upload(self, values: Array, array: DeviceArray) -> None:
        """Values of the host into an array of the same shape and dtype; they may change afterwards."""
        self.gpu.activate()
        raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        for start in range(0, raw.size, UPLOAD_BYTES):
            part = raw[start : start + UPLOAD_BYTES]
            pinned = self._staging.take(part.size)
            pinned.as_array(part.shape, part.dtype)[...] = part
            with self.gpu.locked():
                owner = (pinned, array.owner)
                self._copy(pinned.address, array.address + start, part.size, owner, self.gpu.stream)
                self._staging.give_back(pinned, self.gpu.mark())

    def download(self, array: DeviceArray) -> Array:
        """The values of an array, once all work that was asked for is done."""
        return self.read(array)()

    def read(self, array: DeviceArray) -> Callable[[], Array]:
        """Copy an array's values to the host after all work that was asked for by now.

        The result waits for them; work that is asked for later may write into the array.
        """
        return self._start_fetch(array, self.gpu.stream)

    def fetch(self, array: DeviceArray) -> Callable[[], Array]:
        """Start to copy an array's values to the host, beside work that is asked for later.

        The result waits for them; nothing may be written into the array before it was called.
        """
        with self.gpu.locked(), error_context("the GPU cannot copy"):
            self._copies.wait(self.gpu.stream)
            return self._start_fetch(array, self._copies)

    def _start_fetch(self, array: DeviceArray, stream: Any) -> Callable[[], Array]:
        """Put the copy on a stream; the result waits for it, and for no later work."""
        shape, dtype = array.shape, array.dtype  # the result must not keep the array alive
        self.gpu.activate()
        pinned = self._staging.take(array.nbytes)
        with self.gpu.locked():
            self._copy(array.address, pinned.address, array.nbytes, (pinned, array.owner), stream)
            with error_context("the GPU failed"):
                self._last_fetch = mark = Mark(stream.record())

        def values() -> Array:
            self.gpu.activate()
            mark.wait()  # without the lock: others may start work meanwhile
            found = pinned.as_array(shape, dtype).copy()
            self._staging.give_back(pinned, None)
            return found

        return values

    def enqueue(self, work: Work) -> None:
        """Put `work(stream)` on the device's stream, all of it under the lock."""
        with self.gpu.locked():
            work(self.gpu.stream)

    def copy(self, source: DeviceArray, target: DeviceArray) -> None:
        """One array of the device into another of the same size."""
        with self.gpu.locked():
            owner = (source.owner, target.owner)
            self._copy(source.address, target.address, source.nbytes, owner, self.gpu.stream)

    def _copy(self, source: int, target: int, size: int, owner: Any, stream: Any) -> None:
        buffer = self._core.Buffer
        with error_context("the GPU cannot copy"):
            into = buffer.from_handle(target, size, owner=owner)
            into.copy_from(buffer.from_handle(source, size, owner=owner), stream=stream)

    def launch(self, what: Launch, *arrays: DeviceArray, stream: Any) -> None:
        """One kernel."""
        pointers = (array.address for array in arrays)
        with error_context(f"the kernel {what.kernel} could not be launched"):
            config = self._core.LaunchConfig(grid=what.blocks, block=what.threads)
            self._core.launch(stream, config, self._kernels[what.kernel], *pointers, *what.scalars)

    def call(self, binding: Any, stream: Any) -> None:
        """One engine that is bound to arrays of this device."""
        binding.enqueue(stream)

    def record(self, work: Work, *, graphs: bool) -> Replay:
        """`work(stream)` as something that can be repeated; as one captured graph if `graphs`."""
        self.enqueue(work)  # the first run may allocate and compile: that must not happen under capture
        self.gpu.wait()
        return Graph(self.gpu, work) if graphs else Plain(self.enqueue, work)

    def release_after(self, release: Callable[[], None]) -> None:
        """Once all work that was asked for is done, call `release`, which frees arrays, bindings and replays."""
        if self._last_fetch is not None:
            with suppress(EngineError):  # whoever waits for the values gets it
                self.gpu.activate()
                self._last_fetch.wait()
        self.gpu.release_after(release)

    def close(self) -> None:
        """Free what the device holds of its own; no call may follow."""
        self.release_after(self._staging.close)
        self._kernels = {}


class Plain:
    """Work without a graph, as a replay; `enqueue` is a device's."""

    def __init__(self, enqueue: Callable[[Work], None], work: Work) -> None:
        self._enqueue = enqueue
        self._work: Work | None = work

    def __call__(self) -> None:
        assert self._work is not None
        self._enqueue(self._work)

    def close(self) -> None:
        """Forget the work."""
        self._work = None


class Graph:
    """Work that was captured once, and is launched again as a whole: a CUDA graph; `close` it.

    What the work refers to lives as long: a capture keeps nothing alive. It is captured by the driver's own calls.
    The builder of `cuda.core` (1.2) keeps the graph that a capture is making; when the capture fails, the driver
    destroys that graph itself, and freeing the builder then ends the process (NVIDIA/cuda-python#2834).
    """

    def __init__(self, gpu: Gpu, work: Work) -> None:
        """Capture `work`, which must have run before, so that nothing is allocated or compiled now.

        Raises `EngineError` with the reason if that fails, `OutOfMemory` if memory is why.
        """
        self._gpu, self._executable = gpu, None
        self._work: Work | None = work
        with gpu.locked():
            try:
                with _nothing_freed(gpu):
                    graph = self._captured(work)
                self._executable = self._instance(graph)
            except Exception as error:
                raise translate(
                    error, "the step could not be captured as a CUDA graph", GRAPHS_OFF
                ) from error

    def __call__(self) -> None:
        """Put it on the GPU's stream."""
        with self._gpu.locked():
            result = self._gpu.driver.cuGraphLaunch(self._executable, self._gpu.stream.handle)
            check_result(result, "a CUDA graph could not be launched")

    def close(self) -> None:
        """Destroy it; it must not be running."""
        executable, self._executable, self._work = self._executable, None, None
        if executable is not None:
            self._gpu.driver.cuGraphExecDestroy(executable)

    def _captured(self, work: Work) -> Any:
        driver, stream = self._gpu.driver, self._gpu.stream
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        check_result(driver.cuStreamBeginCapture(stream.handle, mode), "the capture could not begin")
        try:
            work(stream)
        except BaseException:  # whatever it is, the stream must not stay in capture
            _, graph = driver.cuStreamEndCapture(stream.handle)
            if graph is not None:
                driver.cuGraphDestroy(graph)
            raise
        return check_result(driver.cuStreamEndCapture(stream.handle), "the capture did not end well")

    def _instance(self, graph: Any) -> Any:
        driver, stream = self._gpu.driver, self._gpu.stream
        try:
            executable = check_result(driver.cuGraphInstantiate(graph, 0), "it could not be made executable")
        finally:
            driver.cuGraphDestroy(graph)
        error, *_ = driver.cuGraphUpload(executable, stream.handle)
        if error:
            driver.cuGraphExecDestroy(executable)
        check_result((error,), "it could not be brought to the GPU")
        return executable


@contextmanager
def _nothing_freed(gpu: Gpu) -> Iterator[None]:
    """A time for one capture: memory freed on the stream, or by this thread, would end it.

    Python's collector may free anything at any time, so it runs before and is off meanwhile.
    """
    with _capture:  # of two at once, the first to end would switch the collector on
        gc.collect()
        gpu.collect()
        enabled = gc.isenabled()
        gc.disable()
        gpu.capturing = True
        try:
            yield
        finally:
            gpu.capturing = False
            if enabled:
                gc.enable()
