"""A stand-in for a GPU behind `cuda.core` and the driver: memory is the host's, kernels are those of g++.

It is as unforgiving as the real one: memory that was given back is an illegal address, after which every call fails;
a capture that is disturbed is invalid; a graph keeps nothing alive. Its classes offer names of the real bindings
only; `test_device.py` holds them to that.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from cuda.bindings import driver

from mimicmotion_trt.engines import Engine
from mimicmotion_trt.engines.cuda_device import Launch
from mimicmotion_trt.engines.cuda_memory import DeviceArray

GOOD = driver.CUresult.CUDA_SUCCESS
Op = Callable[[], None]


class CUDAError(Exception):
    """As `cuda.core` raises it: the driver's name, then its text."""


class Cuda:
    """The GPU. What is put on a stream happens at once, or when the graph that took it is launched; on a stream that
    waited for another, when somebody waits for it.
    """

    def __init__(self, host: Any, room: int = 2**31) -> None:
        self.host, self.room = host, room
        self.memory: dict[int, np.ndarray[Any, Any]] = {}
        """What is taken, by its address."""
        self.pinned: set[int] = set()
        """Addresses of the host's."""
        self.ails = GOOD
        """What every call answers from now on."""
        self.captured: list[Op] | None = None
        self.valid = True
        self.graphs: dict[int, list[Op]] = {}
        """Executable ones that were not destroyed."""
        self.told: list[str] = []
        self._made = 0

    @property
    def used(self) -> int:
        """Bytes of the GPU's memory that are taken."""
        return sum(array.nbytes for address, array in self.memory.items() if address not in self.pinned)

    def take(self, size: int, *, pinned: bool = False) -> int:
        self.check()
        if pinned:
            return self._new(size, self.pinned.add)
        if self.captured is not None:
            raise RuntimeError("DeviceMemoryResource cannot perform memory operations on a capturing stream.")
        if self.used + size > self.room:
            raise CUDAError("CUDA_ERROR_OUT_OF_MEMORY: not as much is left.")
        return self._new(size, self.pinned.discard)

    def _new(self, size: int, note: Callable[[int], None]) -> int:
        array = np.full(size + 16, 0xAB, np.uint8)
        address = array.ctypes.data + -array.ctypes.data % 16
        self.memory[address] = array
        note(address)
        return address

    def give_back(self, address: int) -> None:
        self.valid = self.valid and self.captured is None
        del self.memory[address]

    def view(self, address: int, size: int | None = None) -> np.ndarray[Any, Any]:
        """The bytes from an address on, to the end of what was taken there; an illegal one is found out later."""
        for start, array in self.memory.items():
            offset = address - array.ctypes.data
            if start <= address < array.ctypes.data + array.nbytes:
                return array[offset : None if size is None else offset + size]
        self.ails = driver.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
        return np.zeros(size or 0, np.uint8)

    def check(self) -> None:
        if self.ails is not GOOD:
            raise CUDAError(f"{self.ails.name}: This leaves the process in an inconsistent state.")

    def put(self, op: Op) -> None:
        self.check()
        if self.captured is None:
            self._run([op])
        else:
            self.captured.append(op)

    def disturb(self) -> None:
        """A call that no capture survives."""
        if self.captured is not None:
            self.valid = False
            raise CUDAError("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED: not while a stream is captured.")

    def _run(self, ops: list[Op]) -> None:
        for op in ops:
            if self.ails is GOOD:
                op()

    # ---- the two interfaces ----

    def core(self) -> Any:
        """`cuda.core`."""
        cuda = self

        class Buffer:
            def __init__(self, address: int, size: int, owned: bool) -> None:
                self.handle, self.size, self._owned = address, size, owned

            @staticmethod
            def from_handle(address: int, size: int, *, owner: Any) -> Buffer:
                return Buffer(address, size, False)

            def copy_from(self, source: Buffer, *, stream: Stream) -> None:
                into, out, size = self.handle, source.handle, source.size
                stream._put(lambda: np.copyto(cuda.view(into, size), cuda.view(out, size)))

            def __del__(self) -> None:
                if self._owned:
                    cuda.give_back(self.handle)

        class Event:
            def __init__(self, stream: Stream) -> None:
                self._stream, self._place = stream, stream.asked

            @property
            def is_done(self) -> bool:
                cuda.check()
                return self._place <= self._stream.done

            def sync(self) -> None:
                self._stream._run(self._place)
                cuda.check()

        class Stream:
            """Runs at once; one that waits for another as late as it may, and only behind all that the other has."""

            handle = 7

            def __init__(self) -> None:
                self._ops: deque[Op] = deque()
                self._behind: Stream | None = None
                self._seen = self.asked = self.done = 0

            def _put(self, op: Op) -> None:
                self.asked += 1
                if self._behind is None:
                    cuda.put(op)
                    self.done = self.asked
                else:
                    assert self._seen == self._behind.asked, "work before is not waited for"
                    cuda.check()
                    self._ops.append(op)

            def _run(self, place: int) -> None:
                while self.done < place and cuda.ails is GOOD:
                    self._ops.popleft()()
                    self.done += 1

            def wait(self, other: Stream) -> None:
                cuda.check()
                self._behind, self._seen = other, other.asked

            def record(self) -> Event:
                cuda.disturb()
                cuda.check()
                return Event(self)

            def sync(self) -> None:
                cuda.disturb()
                self._run(self.asked)
                cuda.check()

        class Device:
            name = "NVIDIA L4"
            compute_capability = SimpleNamespace(major=8, minor=9)

            def __init__(self, index: int) -> None:
                pass

            def set_current(self) -> None:
                pass

            def create_stream(self) -> Stream:
                return Stream()

            def allocate(self, size: int, *, stream: Stream) -> Buffer:
                return Buffer(cuda.take(size), size, True)

        class LegacyPinnedMemoryResource:
            def allocate(self, size: int) -> Buffer:
                return Buffer(cuda.take(size, pinned=True), size, True)

        class ObjectCode:
            @staticmethod
            def from_cubin(cubin: bytes) -> ObjectCode:
                return ObjectCode()

            def get_kernel(self, name: str) -> str:
                return name

        class LaunchConfig:
            def __init__(self, grid: int, block: int) -> None:
                self.grid, self.block = grid, block

        def launch(stream: Stream, config: LaunchConfig, kernel: str, *arguments: Any) -> None:
            pointers = [argument for argument in arguments if not isinstance(argument, np.generic)]
            what = Launch(kernel, config.grid, config.block, tuple(arguments[len(pointers) :]))
            stream._put(lambda: cuda.host.run(what, *map(cuda.view, pointers)))

        kinds = (Buffer, Event, Stream, Device, LegacyPinnedMemoryResource, ObjectCode, LaunchConfig)
        return SimpleNamespace(**{kind.__name__: kind for kind in kinds}, launch=launch)

    def driver(self) -> Any:
        """`cuda.bindings.driver`: every answer is a tuple whose first item is the error."""
        return SimpleNamespace(
            CUstreamCaptureMode=driver.CUstreamCaptureMode,
            cuStreamBeginCapture=lambda stream, mode: self._begin(),
            cuStreamEndCapture=lambda stream: self._end(),
            cuGraphInstantiate=lambda graph, flags: (GOOD, self._instance(graph)),
            cuGraphUpload=lambda graph, stream: (self.ails,),
            cuGraphLaunch=lambda graph, stream: self._launch(graph),
            cuGraphDestroy=lambda graph: (GOOD,),
            cuGraphExecDestroy=lambda graph: (self.graphs.pop(graph) and self.ails,),
            cuStreamQuery=lambda stream: (self.ails,),
            cuMemGetInfo=lambda: (self.ails, self.room - self.used, self.room),
            cuDeviceGetMemPool=lambda index: (self.ails, "pool"),
            cuMemPoolTrimTo=lambda pool, kept: (self.ails,),
        )

    def _begin(self) -> Any:
        self.captured, self.valid = [], True
        return (self.ails,)

    def _end(self) -> Any:
        ops, self.captured = self.captured, None
        return (GOOD, ops) if self.valid else (driver.CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, None)

    def _instance(self, graph: list[Op]) -> int:
        self._made += 1
        self.graphs[self._made] = graph
        return self._made

    def _launch(self, graph: int) -> Any:
        if self.ails is GOOD:
            self.told.append("graph")
            self._run(self.graphs[graph])
            return (GOOD,)
        return (self.ails,)


class OnStream:
    """A CPU's engine that is put on the stand-in's stream. As with TensorRT's, a call dies with its binding.

    What lies on the host is computed at once.
    """

    def __init__(self, cuda: Cuda, engine: Engine, gpu: Any = None) -> None:
        self.spec, self.gpu, self.close = engine.spec, gpu, engine.close
        self._cuda, self._engine = cuda, engine
        self.bound: weakref.WeakSet[Bound] = weakref.WeakSet()

    def bind(self, inputs: dict[str, Any], outputs: dict[str, Any]) -> Any:
        if any(isinstance(array, np.ndarray) for array in inputs.values()):
            return self._engine.bind(inputs, outputs)
        binding = Bound(self._cuda, self._engine, inputs, outputs)
        self.bound.add(binding)
        return binding


class Bound:
    def __init__(self, cuda: Cuda, engine: Engine, inputs: Any, outputs: Any) -> None:
        self._cuda, self._engine, self._arrays = cuda, engine, (inputs, outputs)

    def enqueue(self, stream: Any) -> None:
        alive, cuda = weakref.ref(self), self._cuda

        def run() -> None:
            if (binding := alive()) is None:
                cuda.ails = driver.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
            else:
                binding._compute()

        cuda.put(run)

    def _compute(self) -> None:
        seen = [{name: self._seen(array) for name, array in some.items()} for some in self._arrays]
        if self._cuda.ails is GOOD:
            self._engine.bind(*seen)()

    def _seen(self, array: DeviceArray) -> Any:
        size = int(np.prod(array.shape)) * array.dtype.itemsize
        return self._cuda.view(array.address, size).view(array.dtype).reshape(array.shape)
