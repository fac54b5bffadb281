"""A GPU as the step program sees it: arrays, the fused kernels, graphs; `cuda.core` underneath."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..engines.cuda_gpu import Gpu, Mark
from ..engines.cuda_memory import DeviceArray
from ..errors import EngineError, KernelError
from .compiler import compile_kernels
from .graph import Graph, Work
from .launches import KERNELS, Launch
from .staging import Staging

PIECE = 16 * 2**20
"""Bytes of an upload that are copied at once."""


class Replay(Protocol):
    """Puts a captured graph, or the work itself, on the device's stream once."""

    def __call__(self) -> None: ...

    def close(self) -> None:
        """Give back what it holds, when it is not under way; no call may follow."""


class Device(Protocol):
    """What a step program needs. Everything happens in the order in which it was asked for."""

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """An array on the device; its contents are undefined."""

    def part(self, array: Any, start: int, stop: int) -> Any:
        """Items `start` to `stop` of an array's first dimension, the same memory."""

    def upload(self, values: NDArray[Any], array: Any) -> None:
        """Values of the host into an array of the same shape and dtype; they may change afterwards."""

    def download(self, array: Any) -> NDArray[Any]:
        """The values of an array, once all work that was asked for is done."""

    def fetch(self, array: Any) -> Callable[[], NDArray[Any]]:
        """Start to bring an array's values to the host, beside work that is asked for later.

        The answer waits for them; nothing may be written into the array before it was taken.
        """

    def mark(self) -> Callable[[], None]:
        """What waits until all work that was asked for by now is done."""

    def do(self, work: Work) -> None:
        """Put `work(stream)` on the device's stream, all of it in one turn."""

    def copy(self, source: Any, target: Any) -> None:
        """One array of the device into another of the same size."""

    def launch(self, what: Launch, *arrays: Any, stream: Any) -> None:
        """One fused kernel."""

    def call(self, binding: Any, stream: Any) -> None:
        """One engine that is bound to arrays of this device."""

    def record(self, work: Work, *, graphs: bool) -> Replay:
        """`work(stream)` as something that can be repeated; as one captured graph if `graphs`."""

    def release_after(self, release: Callable[[], None]) -> None:
        """Let go of arrays, bindings and replays by `release`, once all work that was asked for is done."""

    def close(self) -> None:
        """Give back what the device holds of its own; no call may follow."""


class CudaDevice:
    """See `Device`. The kernels are those of one dtype of engine tensors."""

    def __init__(self, gpu: Gpu, dtype: Any) -> None:
        self._core: Any = importlib.import_module("cuda.core")
        self.gpu, self._staging = gpu, Staging(gpu.pin)
        with gpu.lock:
            gpu.activate()
            self._copies = self._core.Device(gpu.index).create_stream()
            self._coming: Mark | None = None
            arch = gpu.capability.lower().replace("sm", "sm_")
            cubin = compile_kernels(arch, np.dtype(dtype).name)
            try:
                code = self._core.ObjectCode.from_cubin(cubin)
                self._kernels = {name: code.get_kernel(name) for name in KERNELS}
            except Exception as error:  # cuda.core's own kinds
                raise KernelError(
                    f"the CUDA kernels cannot be loaded on {gpu.name}: {error}",
                    remedy="Update the driver, or empty the cache folder (MIMICMOTION_CACHE).",
                ) from error

    def empty(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        kind = np.dtype(dtype)
        with self.gpu.locked():
            memory = self.gpu.allocate(max(int(np.prod(shape)) * kind.itemsize, 16))
        return DeviceArray(memory.address, shape, kind, True, memory)

    def part(self, array: DeviceArray, start: int, stop: int) -> DeviceArray:
        stride = int(np.prod(array.shape[1:])) * array.dtype.itemsize
        shape = (stop - start, *array.shape[1:])
        return DeviceArray(array.address + start * stride, shape, array.dtype, True, array.owner)

    def upload(self, values: NDArray[Any], array: DeviceArray) -> None:
        self.gpu.activate()
        raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        for start in range(0, raw.size, PIECE):
            part = raw[start : start + PIECE]
            pinned = self._staging.take(part.size)
            pinned.as_array(part.shape, part.dtype)[...] = part
            with self.gpu.locked():
                owner = (pinned, array.owner)
                self._copy(pinned.address, array.address + start, part.size, owner, self.gpu.stream)
                self._staging.give(pinned, self.gpu.mark())

    def download(self, array: DeviceArray) -> NDArray[Any]:
        return self._bring(array, self.gpu.stream)()

    def fetch(self, array: DeviceArray) -> Callable[[], NDArray[Any]]:
        with self.gpu.locked(), self.gpu.error_context("the GPU cannot copy"):
            self._copies.wait(self.gpu.stream)
            return self._bring(array, self._copies)

    def _bring(self, array: DeviceArray, stream: Any) -> Callable[[], NDArray[Any]]:
        """Put the copy on a stream; the answer waits for it, and for no later work."""
        shape, dtype = array.shape, array.dtype
        size = int(np.prod(shape)) * dtype.itemsize
        self.gpu.activate()
        pinned = self._staging.take(size)
        with self.gpu.locked():
            self._copy(array.address, pinned.address, size, (pinned, array.owner), stream)
            with self.gpu.error_context("the GPU failed"):
                self._coming = mark = Mark(stream.record())

        def values() -> NDArray[Any]:
            self.gpu.activate()
            mark.wait()  # out of turn: others may put work on the stream meanwhile
            found: NDArray[Any] = pinned.as_array(shape, dtype).copy()
            self._staging.give(pinned, None)
            return found

        return values

    def mark(self) -> Callable[[], None]:
        with self.gpu.locked():
            mark = self.gpu.mark()

        def wait() -> None:
            self.gpu.activate()
            mark.wait()

        return wait

    def do(self, work: Work) -> None:
        with self.gpu.locked():
            work(self.gpu.stream)

    def copy(self, source: DeviceArray, target: DeviceArray) -> None:
        size = int(np.prod(source.shape)) * source.dtype.itemsize
        with self.gpu.locked():
            owner = (source.owner, target.owner)
            self._copy(source.address, target.address, size, owner, self.gpu.stream)

    def _copy(self, source: int, target: int, size: int, owner: Any, stream: Any) -> None:
        buffer = self._core.Buffer
        with self.gpu.error_context("the GPU cannot copy"):
            into = buffer.from_handle(target, size, owner=owner)
            into.copy_from(buffer.from_handle(source, size, owner=owner), stream=stream)

    def launch(self, what: Launch, *arrays: DeviceArray, stream: Any) -> None:
        pointers = (array.address for array in arrays)
        with self.gpu.error_context(f"the kernel {what.kernel} could not be launched"):
            config = self._core.LaunchConfig(grid=what.blocks, block=what.threads)
            self._core.launch(stream, config, self._kernels[what.kernel], *pointers, *what.scalars)

    def call(self, binding: Any, stream: Any) -> None:
        binding.enqueue(stream)

    def record(self, work: Work, *, graphs: bool) -> Replay:
        self.do(work)  # the first run may allocate and compile: that must not happen under capture
        self.gpu.wait()
        return Graph(self.gpu, work) if graphs else Plain(self.do, work)

    def release_after(self, release: Callable[[], None]) -> None:
        if self._coming is not None:
            with suppress(EngineError):  # told to whoever waits for the values
                self.gpu.activate()
                self._coming.wait()
        self.gpu.release_after(release)

    def close(self) -> None:
        self.release_after(self._staging.close)
        self._kernels = {}


class Plain:
    """Work without a graph, as a replay; `do` is a device's."""

    def __init__(self, do: Callable[[Work], None], work: Work) -> None:
        self._do = do
        self._work: Work | None = work

    def __call__(self) -> None:
        assert self._work is not None
        self._do(self._work)

    def close(self) -> None:
        """Let go of the work."""
        self._work = None
