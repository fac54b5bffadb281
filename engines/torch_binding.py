"""A PyTorch network bound to arrays on the GPU, so that it can be put on any stream, a captured one too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..errors import EngineError
from .cuda_memory import DeviceArray


class TorchBinding:
    """A network on arrays of the GPU. Calls only put work on a stream; nobody waits.

    PyTorch's own memory comes from a pool of this binding's, so that a graph which was captured with it finds
    it untouched: run it once before a capture, and keep the binding for as long as the graph.
    """

    def __init__(
        self, run: Callable[..., torch.Tensor], inputs: Mapping[str, Any], output: Any, device: torch.device
    ) -> None:
        self._run, self._device = run, device
        self._arrays = (
            {name: DeviceArray.of(array) for name, array in inputs.items()},
            DeviceArray.of(output),
        )
        self._given = [torch.as_tensor(array, device=device) for array in self._arrays[0].values()]
        self._into = torch.as_tensor(self._arrays[1], device=device)
        self._pool = torch.cuda.MemPool()

    def __call__(self) -> None:
        """Put the network on PyTorch's current stream."""
        with torch.inference_mode(), torch.cuda.use_mem_pool(self._pool):
            self._into.copy_(self._run(*self._given))

    def enqueue(self, stream: Any) -> None:
        """Put the network on a `cuda.core` stream; raises `EngineError` if PyTorch refuses."""
        outer: Any = torch.cuda.ExternalStream(int(stream.handle), device=self._device)  # type: ignore[no-untyped-call]
        try:
            with torch.inference_mode(), torch.cuda.stream(outer), torch.cuda.use_mem_pool(self._pool):
                self._into.copy_(self._run(*self._given))
        except RuntimeError as error:
            raise EngineError(
                f"PyTorch failed: {error}", remedy="Use fewer pixels, frames or rows if memory ran out."
            ) from error
