"""An engine of TensorRT bound to memory: what a call does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import EngineError
from .cuda import Gpu
from .cuda_memory import DeviceArray, Memory, error_class
from .spec import Array
from .tensorrt_library import Library

_SMALLER = "Use fewer pixels, frames or rows if memory ran out; else report it with the text above."


@dataclass(frozen=True)
class Session:
    """One library on one stream of a GPU, for all engines there: they take turns and share scratch memory."""

    library: Library
    gpu: Gpu
    runtime: Any = field(repr=False)

    @property
    def portable(self) -> bool:
        """Whether plans run on other GPUs than those they were compiled for, and the runtime tells on which."""
        return hasattr(self.runtime, "get_engine_validity")


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


def make_context(api: Any, engine: Any) -> Any:
    """What runs an engine, on scratch memory of ours; None if the library makes none.

    TensorRT-RTX compiles kernels for each new shape, by itself in the background. Here it is waited for: a graph
    would keep the kernels that stand in meanwhile, and last bits would depend on when it is captured.
    """
    config = engine.create_runtime_config()
    if config is None:
        return None
    config.set_execution_context_allocation_strategy(api.ExecutionContextAllocationStrategy.USER_MANAGED)
    if hasattr(api, "DynamicShapesKernelSpecializationStrategy"):
        eager = api.DynamicShapesKernelSpecializationStrategy.EAGER
        config.dynamic_shapes_kernel_specialization_strategy = eager
    return engine.create_execution_context(config)


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
        self._context: Any = make_context(session.library.api, engine)
        if self._context is None:
            raise self._failed("no execution context could be made")
        self._set_shapes(profile)
        for name, address in self._addresses().items():
            self._check(self._context.set_tensor_address(name, address), f"{name} was not taken")
        self._capturable: bool | None = None
        """Whether a CUDA graph can take it; unknown until it has run."""
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
        with gpu.lock:
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
        """Put the engine alone on a `cuda.core` stream.

        Raises `EngineError` where arrays of the host are bound, and under a capture that the library rules out.
        """
        if self._sent or self._fetched:
            names = ", ".join((*self._sent, *self._fetched))
            raise EngineError(f"{names} lie on the host.", remedy="Bind arrays on the GPU.")
        with self._gpu.lock:
            if self._gpu.capturing:
                self._check_capture()
            self._execute(stream)
            if self._capturable is None and not self._gpu.capturing:
                self._capturable = self._ask_capturable(stream)

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

    def _ask_capturable(self, stream: Any) -> bool:
        """TensorRT-RTX knows; TensorRT fails when it is tried."""
        if not hasattr(self._context, "is_stream_capturable"):
            return True
        return bool(self._context.is_stream_capturable(int(stream.handle)))

    def _check_capture(self) -> None:
        if self._capturable is False:
            raise EngineError(
                f"{self._library.version} says that CUDA graphs cannot take this plan; those built with "
                "--weight-streaming are such.",
                remedy="Run with graphs off (--graphs off), or rebuild the bundle without --weight-streaming.",
            )

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
        return error_class(said)(f"{what}: {self._library.version} says: {said}.", remedy=remedy)
