"""Networks in float16 as tensor cores run them: strongly typed graphs whose precision is safe.

- *Group norms* take their statistics in float32 whatever they read (ONNX's `stash_type`): sums of squares
  over a group leave float16's range long before its values do.
- *U-Net, PoseNet and CLIP* are float16 throughout; time steps and micro-conditions are embedded in float32.
- *The VAE's residual stream* leaves float16's range in trained models (SVD's config says `force_upcast`), so
  it stays float32. Convolutions and linear layers still multiply in float16: most of them read what a norm
  has just scaled; those that read the stream itself read it over a power of two, which costs no precision.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .rewrite import SelfAttention

STREAM_SCALE = 256.0
"""The stream may reach 65504 times this; what is under 6e-5 times this keeps 1.5e-5 of absolute precision."""
READS_STREAM = ("upsamplers", "downsamplers", "conv_shortcut")
"""Layers of a VAE that read the residual stream without a norm before them."""


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

    `wide`: the result is float32 again. `scale`: the input is divided by it before it is narrowed, and the
    result multiplied (the layer is linear).
    """

    def __init__(self, layer: Any, *, wide: bool, scale: float = 1.0) -> None:
        super().__init__()
        self.layer, self.wide, self.scale = layer, wide, scale
        if scale != 1 and layer.bias is not None:
            layer.bias = nn.Parameter(layer.bias / scale, requires_grad=False)
        layer.half()

    def forward(self, x: Tensor) -> Tensor:
        if self.scale != 1:
            x = x * (1 / self.scale)
        y: Tensor = self.layer(x.half())
        if self.wide:
            y = y.float()
        return y * self.scale if self.scale != 1 else y


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


def narrow_layers(module: nn.Module, path: str = "") -> None:
    """Let every convolution and linear layer multiply in float16 and answer in float32, attention in float16."""
    attention = isinstance(module, SelfAttention)
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Conv2d | nn.Linear):
            whole = f"{path}.{name}"
            scale = STREAM_SCALE if any(part in whole for part in READS_STREAM) else 1.0
            wide = not attention or name == "to_out"
            setattr(module, name, Narrow(child, wide=wide, scale=scale))
        else:
            narrow_layers(child, f"{path}.{name}")
