"""Networks in float16 as tensor cores run them: strongly typed graphs whose precision is safe.

- *Group norms* take their statistics in float32 whatever they read (ONNX's `stash_type`): sums of squares
  over a group leave float16's range long before its values do.
- *U-Net, PoseNet and CLIP* are float16 throughout; time steps and micro-conditions are embedded in float32.
- *The VAE's residual stream* leaves float16's range in trained models (SVD's config says `force_upcast`), so
  it stays float32. Convolutions and linear layers still multiply in float16, but read what they are given over
  a power of two, which costs no precision, so that neither what they read nor what they write leaves the range.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .rewrite import SelfAttention

STREAM_SCALE = 256.0
"""The stream may reach 65504 times this; what is under 6e-5 times this keeps 1.5e-5 of absolute precision."""


def wide_group_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """PyTorch's group norm in float32, rounded to the dtype of x."""
    return F.group_norm(x.float(), groups, weight.float(), bias.float(), eps).to(x.dtype)


class _GroupNorm(torch.autograd.Function):
    """PyTorch's group norm in float32; `GroupNormalization` with float32 statistics in a traced graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        return wide_group_norm(x, weight, bias, groups, eps)

    @staticmethod
    def symbolic(g: Any, x: Any, weight: Any, bias: Any, groups: int, eps: float) -> Any:
        return g.op(
            "mimicmotion::GroupNormalization", x, weight, bias,
            num_groups_i=groups, epsilon_f=eps, stash_type_i=1,
        ).setType(x.type())  # fmt: skip


class StableGroupNorm(nn.Module):
    """A group norm [B,C,…] whose statistics are float32 whatever the dtype of x."""

    def __init__(self, groups: int, norm: Any) -> None:
        super().__init__()
        self.groups, self.eps, self.weight, self.bias = groups, norm.eps, norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        arguments = (x, self.weight, self.bias, self.groups, self.eps)
        if not torch.onnx.is_in_onnx_export():
            return wide_group_norm(*arguments)
        y: Tensor = _GroupNorm.apply(*arguments)  # type: ignore[no-untyped-call]
        return y


class Narrow(nn.Module):
    """A linear layer or convolution that multiplies in float16, whatever it is given.

    `wide`: the result is float32, and may be what float16 cannot hold: the input is divided by `STREAM_SCALE`
    before it is narrowed, and the result multiplied (the layer is linear).
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
    """A network whose answer is rounded to float16 at the very end."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Tensor:
        answer: Tensor = self.network(*inputs)
        return answer.half()


def to_half(engine_form: nn.Module, network: str) -> nn.Module:
    """An engine's module (`networks`) in float16; in place. The VAE keeps a float32 stream."""
    stable_norms(engine_form)
    if network.startswith("vae"):
        narrow_layers(engine_form)
        return HalfOutput(engine_form)
    return engine_form.half()


def stable_norms(module: nn.Module) -> None:
    """Replace every group and instance norm, in place."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.GroupNorm):
            setattr(module, name, StableGroupNorm(child.num_groups, child))
        elif isinstance(child, nn.InstanceNorm2d):
            setattr(module, name, StableGroupNorm(child.num_features, child))
        else:
            stable_norms(child)


def narrow_layers(module: nn.Module) -> None:
    """Let every convolution and linear layer multiply in float16 and answer in float32, attention in float16."""
    attention = isinstance(module, SelfAttention)
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Conv2d | nn.Linear):
            setattr(module, name, Narrow(child, wide=not attention or name == "to_out"))
        else:
            narrow_layers(child)
