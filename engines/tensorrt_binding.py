"""An engine of TensorRT bound to memory: what a call does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import EngineError
from .cuda_errors import kind_of
from .cuda_memory import DeviceArray, Gpu, Memory
from .spec import Array
from .tensorrt_library import Library

_SMALLER = "Use fewer pixels, frames or rows if memory ran out; else report it with the text above."


@dataclass(frozen=True)
class Session:
    """One library on one stream of a GPU, for all engines there: they take turns and share scratch memory."""

    library: Library
    gpu: Gpu
    runtime: Any = field(repr=False)


@dataclass(frozen=True)
class _Staged:
    """An array of the host, pinned memory of its size, and memory on the GPU."""

    host: Array
    pinned: Memory
    view: Array
    """The pinned memory as an array."""
    device: Memory

    @classmethod
    def of(cls, gpu: Gpu, host: Array) -> _Staged:
        size = max(host.nbytes, 1)
        pinned = gpu.pin(size)
        return cls(host, pinned, pinned.as_array(host.shape, host.dtype), gpu.allocate(size))


class Binding:
    """An engine bound to memory. Calling it runs the engine and, if arrays of the host are bound, waits for it.

    With arrays on the GPU alone a call puts the engine on the GPU's stream and returns; `enqueue` puts it on any
    other one, such as one that is being captured. Such a binding keeps its scratch memory in place: keep the
    binding for as long as the graph, and launch the graph in the order of the GPU's stream.
    """

    def __init__(
        self,
        session: Session,
        engine: Any,
        profile: int,
        inputs: Mapping[str, Any],
        outputs: Mapping[str, Any],
    ) -> None:
        self._library, self._gpu, self._engine = session.library, session.gpu, engine
        self._arrays = (dict(inputs), dict(outputs))
        self._sent = self._stage(inputs)
        self._fetched = self._stage(outputs)
        strategy = session.library.api.ExecutionContextAllocationStrategy.USER_MANAGED
        self._context: Any = engine.create_execution_context(strategy)
        if self._context is None:
            raise self._failed("no execution context could be made")
        self._set_shapes(profile)
        for name, address in self._addresses().items():
            self._check(self._context.set_tensor_address(name, address), f"{name} was not taken")
        self._need = int(engine.get_device_memory_size_for_profile_v2(profile))
        self._at = 0
        self._scratch = self._move()
        if self._sent or self._fetched:
            self._scratch = None  # looked up anew by each call, since the arena may have moved

    def __call__(self) -> None:
        gpu = self._gpu
        gpu.activate()
        for staged in self._sent.values():
            np.copyto(staged.view, staged.host)
        with gpu.turn:
            for staged in self._sent.values():
                gpu.copy(staged.pinned, staged.device)
            self._execute(gpu.stream)
            for staged in self._fetched.values():
                gpu.copy(staged.device, staged.pinned)
        if self._sent or self._fetched:
            gpu.wait()
        for staged in self._fetched.values():
            np.copyto(staged.host, staged.view)

    def enqueue(self, stream: Any) -> None:
        """Put the engine alone on a `cuda.core` stream; raises `EngineError` where arrays of the host are bound."""
        if self._sent or self._fetched:
            names = ", ".join((*self._sent, *self._fetched))
            raise EngineError(f"{names} lie on the host.", remedy="Bind arrays on the GPU.")
        with self._gpu.turn:
            self._execute(stream)

    def close(self) -> None:
        """Give up the context; no call may follow."""
        self._context = self._engine = self._scratch = None

    def _execute(self, stream: Any) -> None:
        if self._context is None:
            raise EngineError("the engine was closed.")
        if self._scratch is None:
            self._move()
        if not self._context.execute_async_v3(int(stream.handle)):
            raise self._failed("the engine failed")

    def _move(self) -> Memory | None:
        """Follow the arena."""
        memory = self._gpu.scratch.reserve(self._need)
        if memory.address != self._at:
            self._context.set_device_memory(memory.address, memory.size)
            self._at = memory.address
        return memory

    def _stage(self, arrays: Mapping[str, Any]) -> dict[str, _Staged]:
        return {
            name: _Staged.of(self._gpu, array)
            for name, array in arrays.items()
            if isinstance(array, np.ndarray)
        }

    def _set_shapes(self, profile: int) -> None:
        inputs, outputs = self._arrays
        stream = int(self._gpu.stream.handle)
        self._check(
            self._context.set_optimization_profile_async(profile, stream), "the profile was not taken"
        )
        self._gpu.wait()
        for name, array in inputs.items():
            self._check(self._context.set_input_shape(name, array.shape), f"{name}'s shape was not taken")
        for name, array in outputs.items():
            computed = tuple(self._context.get_tensor_shape(name))
            if computed != array.shape:
                raise EngineError(f"the engine computes {name} {list(computed)}, not {list(array.shape)}.")

    def _addresses(self) -> dict[str, int]:
        bound = self._arrays[0] | self._arrays[1]
        in_place = {name: array.address for name, array in bound.items() if isinstance(array, DeviceArray)}
        return in_place | {name: item.device.address for name, item in (self._sent | self._fetched).items()}

    def _check(self, done: bool, what: str) -> None:
        if not done:
            raise self._failed(what)

    def _failed(self, what: str) -> EngineError:
        said, remedy = self._library.explain(_SMALLER)
        return kind_of(said)(f"{what}: {self._library.version} says: {said}.", remedy=remedy)
