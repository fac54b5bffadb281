"""A PyTorch network bound to arrays on the GPU, so that it can be put on any stream, a captured one too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..errors import EngineError
from .cuda_memory import DeviceArray
from .spec import EngineSpec


class TorchBinding:
    """A network on arrays of the GPU. Calls only put work on a stream; nobody waits.

    PyTorch's own memory comes from a pool of this binding's, so that a graph which was captured with it finds
    it untouched: run it once before a capture, and keep the binding for as long as the graph.
    """

    def __init__(
        self,
        run: Callable[..., torch.Tensor],
        spec: EngineSpec,
        inputs: Mapping[str, Any],
        outputs: Mapping[str, Any],
        device: torch.device,
    ) -> None:
        self._run, self._device = run, device
        (output,) = outputs.values()
        self._arrays = [DeviceArray.of(array) for array in (*(inputs[t.name] for t in spec.inputs), output)]
        *self._given, self._into = (torch.as_tensor(array, device=device) for array in self._arrays)
        self._pool = torch.cuda.MemPool()

    def __call__(self) -> None:
        """Put the network on PyTorch's current stream; raises `EngineError` if PyTorch refuses."""
        try:
            with torch.inference_mode(), torch.cuda.use_mem_pool(self._pool):
                self._into.copy_(self._run(*self._given))
        except RuntimeError as error:
            raise EngineError(
                f"PyTorch failed: {error}", remedy="Use fewer pixels, frames or rows if memory ran out."
            ) from error

    def enqueue(self, stream: Any) -> None:
        """Put the network on a `cuda.core` stream; raises `EngineError` if PyTorch refuses."""
        outer: Any = torch.cuda.ExternalStream(int(stream.handle), device=self._device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(outer):
            self()
