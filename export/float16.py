"""Networks in float16 as tensor cores run them: strongly typed graphs whose precision is safe, and their check.

- *Group norms* take their statistics in float32 whatever they read (ONNX's `stash_type`): sums of squares over a
  group leave float16's range long before its values do.
- *U-Net, PoseNet and CLIP* are float16 throughout; time steps and micro-conditions are embedded in float32.
- *The VAE's residual stream* leaves float16's range in trained models (SVD's config says `force_upcast`), so it stays
  float32. Convolutions and linear layers still multiply in float16, but read their input divided by a power of two,
  which costs no precision, so that neither what they read nor what they write leaves the range.
- *The check*, `tensor_core_engine`, rounds every product to float16, as TensorRT's layers do. ONNX Runtime does not:
  its CPU kernels compute in float32 and round the result, so a value over 65504 in between never shows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from ..engines import EngineSpec
from ..training.torch_animator import ModuleEngine
from .rewrite import SelfAttention
from .tracing import DOMAIN

STREAM_SCALE = 256.0
"""The stream may reach 65504 times this; what is under 6e-5 times this keeps 1.5e-5 of absolute precision."""


def to_float16(engine_form: nn.Module, network: str) -> nn.Module:
    """An engine's module (`networks`) in float16; in place. The VAE keeps a float32 stream."""
    stable_norms(engine_form)
    if network.startswith("vae"):
        narrow_layers(engine_form)
        return HalfOutput(engine_form)
    return engine_form.half()


def stable_norms(module: nn.Module) -> None:
    """Replace every group and instance norm, in place."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.GroupNorm | nn.InstanceNorm2d):
            groups = child.num_groups if isinstance(child, nn.GroupNorm) else child.num_features
            setattr(module, name, StableGroupNorm(groups, child))
        else:
            stable_norms(child)


def narrow_layers(module: nn.Module) -> None:
    """Let every convolution and linear layer multiply in float16 and give float32, attention in float16."""
    attention = isinstance(module, SelfAttention)
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Conv2d | nn.Linear):
            setattr(module, name, Narrow(child, wide=not attention or name == "to_out"))
        else:
            narrow_layers(child)


class StableGroupNorm(nn.Module):
    """A group norm [B,C,…] whose statistics are float32 whatever the dtype of x."""

    def __init__(self, groups: int, norm: Any) -> None:
        super().__init__()
        self.groups, self.eps, self.weight, self.bias = groups, norm.eps, norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        compute = _GroupNorm.apply if torch.onnx.is_in_onnx_export() else wide_group_norm
        y: Tensor = compute(x, self.weight, self.bias, self.groups, self.eps)
        return y


class _GroupNorm(torch.autograd.Function):
    """PyTorch's group norm in float32; `GroupNormalization` with float32 statistics in a traced graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        return wide_group_norm(x, weight, bias, groups, eps)

    @staticmethod
    def symbolic(g: Any, x: Any, weight: Any, bias: Any, groups: int, eps: float) -> Any:
        return g.op(
            f"{DOMAIN}::GroupNormalization", x, weight, bias,
            num_groups_i=groups, epsilon_f=eps, stash_type_i=1,
        ).setType(x.type())  # fmt: skip


def wide_group_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """PyTorch's group norm in float32, rounded to the dtype of x."""
    return F.group_norm(x.float(), groups, weight.float(), bias.float(), eps).to(x.dtype)


class Narrow(nn.Module):
    """A linear layer or convolution that multiplies in float16, whatever it is given.

    `wide`: the result is float32 and may be over float16's range: the input is divided by `STREAM_SCALE` before it
    is rounded, and the result multiplied (the layer is linear).
    """

    def __init__(self, layer: Any, *, wide: bool) -> None:
        super().__init__()
        self.layer, self.wide = layer, wide
        if wide and layer.bias is not None:
            layer.bias = nn.Parameter(layer.bias / STREAM_SCALE, requires_grad=False)
        layer.half()

    def forward(self, x: Tensor) -> Tensor:
        if not self.wide:
            return self.layer(x.half())  # type: ignore[no-any-return]
        y: Tensor = self.layer((x * (1 / STREAM_SCALE)).half())
        return y.float() * STREAM_SCALE


class HalfOutput(nn.Module):
    """A network whose result is rounded to float16 at the very end."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Tensor:
        result: Tensor = self.network(*inputs)
        return result.half()


class TensorCores(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Products of float16 are summed in float32 and rounded to float16 once; all else runs as it is."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        narrow = any(isinstance(given, Tensor) and given.dtype == torch.half for given in args)
        if not narrow or func.overloadpacket not in flop_registry:
            return func(*args, **kwargs)
        result = func(*tree_map_only(Tensor, Tensor.float, args), **kwargs)
        return tree_map_only(Tensor, Tensor.half, result)


def tensor_core_engine(module: nn.Module, spec: EngineSpec) -> ModuleEngine:
    """A network's float16 module in PyTorch on a CPU, whose products are as tensor cores round them."""

    def run(*inputs: Tensor) -> Any:
        with TensorCores():  # type: ignore[no-untyped-call]
            return module(*inputs)

    return ModuleEngine(run, spec, torch.device("cpu"))
