"""A float16 network in PyTorch on a CPU, every product rounded as tensor cores round it: the strict judge.

ONNX Runtime is none of what float16 cannot hold: its CPU kernels widen float16 to float32 and round no more than
the answer, so that a value beyond 65504 in between never shows. TensorRT's strongly typed layers round each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from ..engines import Array, EngineSpec
from ..engines.backend import Call


class TensorCores(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Products of float16 are summed in float32 and rounded to float16 once; all else runs as it is."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        narrow = any(isinstance(given, Tensor) and given.dtype == torch.half for given in args)
        if not narrow or func.overloadpacket not in flop_registry:
            return func(*args, **kwargs)
        answer = func(*tree_map_only(Tensor, Tensor.float, args), **kwargs)
        return tree_map_only(Tensor, Tensor.half, answer)


class TensorCoreEngine:
    """A network's float16 form as an engine, to be compared."""

    def __init__(self, module: nn.Module, spec: EngineSpec) -> None:
        self.module, self.spec = module, spec

    @property
    def gpu(self) -> None:
        """It runs on the CPU."""
        return None

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Call:
        """Raises `EngineError` if an array is not what the spec says."""
        self.spec.check(inputs, outputs)
        given = [torch.from_numpy(inputs[tensor.name]) for tensor in self.spec.inputs]
        into = [torch.from_numpy(outputs[tensor.name]) for tensor in self.spec.outputs]

        def call() -> None:
            # Not inference mode, in which operators arrive before they are taken apart.
            with torch.no_grad(), TensorCores():  # type: ignore[no-untyped-call]
                answer = self.module(*given)
            for target, value in zip(into, answer if isinstance(answer, tuple) else (answer,), strict=True):
                target.copy_(value)

        return call

    def close(self) -> None:
        """Nothing is held."""
