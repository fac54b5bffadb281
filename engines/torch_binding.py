"""A PyTorch network bound to arrays on the GPU, so that it can be put on any stream, a captured one too."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .cuda import Gpu
from .cuda_memory import DeviceArray
from .spec import EngineSpec
from .torch_backend import exact_floats, fill, run_twice


class TorchMemory:
    """PyTorch's memory for the networks on one stream: a pool in which they take turns, as in `Gpu.scratch`.

    A graph captured with it finds its addresses again, for nothing in the pool goes back while a binding lives that
    has run in it. Without one the pool is kept for the next: to give it back, and to take as much again, waits for
    all that the GPU does, on other streams too. It goes where memory is wanted back: PyTorch frees none of its own
    when a call inside a pool finds none (pytorch#159674).
    """

    def __init__(self, gpu: Gpu | None) -> None:
        self.lock = threading.RLock() if gpu is None else gpu.lock
        """Held by each call: a pool serves one at a time."""
        self.gpu = gpu
        self._kept: torch.cuda.MemPool | None = None
        self._last: weakref.ref[torch.cuda.MemPool] | None = None
        if gpu is not None:
            gpu.reclaimable.add(self)

    def pool(self) -> torch.cuda.MemPool:
        """The pool, a new one if there is none any more; it is kept until `free_unused`."""
        found = self._last() if self._last else None
        if found is None:
            found = torch.cuda.MemPool()
            self._last = weakref.ref(found)
        self._kept = found
        return found

    def free_unused(self) -> None:
        """What PyTorch keeps: outside of pools, and the pool itself, now or with the last binding that ran in it."""
        with self.lock:
            self._kept = None
            torch.cuda.empty_cache()


@functools.cache  # as the `Gpu` is
def memory_of(gpu: Gpu) -> TorchMemory:
    """The memory of all networks on a stream."""
    return TorchMemory(gpu)


class TorchBinding:
    """A network on arrays of the GPU. Calls only put work on a stream; nobody waits.

    Run it once before a capture, and keep it for as long as the graph: both use the same memory of PyTorch's.
    """

    def __init__(
        self,
        run: Callable[..., torch.Tensor | Sequence[torch.Tensor]],
        spec: EngineSpec,
        inputs: Mapping[str, Any],
        outputs: Mapping[str, Any],
        device: torch.device,
        memory: TorchMemory | None = None,
    ) -> None:
        """`memory` is shared by the bindings of one stream; None: some of its own."""
        self._run, self._device = run, device
        given, made = ([t.name for t in tensors] for tensors in (spec.inputs, spec.outputs))
        self._arrays = [DeviceArray.of(array) for array in (*map(inputs.get, given), *map(outputs.get, made))]
        tensors = [torch.as_tensor(array, device=device) for array in self._arrays]
        self._given, self._into = tensors[: len(given)], tensors[len(given) :]
        self._memory = memory or TorchMemory(None)
        self._pool: torch.cuda.MemPool | None = None
        """Where it ran, and a graph may have addresses; until then any pool will do."""

    def __call__(self) -> None:
        """Put the network on PyTorch's current stream; raises `EngineError` if PyTorch refuses."""
        with self._memory.lock:
            run_twice(self._put, self._memory.gpu)

    def _put(self) -> None:
        pool = self._pool or self._memory.pool()
        with torch.inference_mode(), exact_floats(), torch.cuda.use_mem_pool(pool):
            fill(self._into, self._run(*self._given))
        self._pool = pool

    def enqueue(self, stream: Any) -> None:
        """Put the network on a `cuda.core` stream; raises `EngineError` if PyTorch refuses."""
        outer: Any = torch.cuda.ExternalStream(int(stream.handle), device=self._device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(outer):
            self()
