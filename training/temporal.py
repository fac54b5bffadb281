"""How networks from scratch start, and a form of convolutions along time that CPUs compute well."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TimeConv(nn.Conv3d):
    """A (k,1,1) convolution computed as a 2-D one over time x cells: the same weights, keys and sums.

    Faster on CPUs, whose bfloat16 gradient of the 3-D one is NaN (seen with torch 2.13).
    """

    def forward(self, input: Tensor) -> Tensor:
        b, c, t, h, w = input.shape
        flat = input.reshape(b, c, t, h * w)
        padding = (int(self.padding[0]), 0)
        out = nn.functional.conv2d(flat, self.weight[..., 0], self.bias, padding=padding)
        return out.reshape(b, -1, t, h, w)


def flatten_time_convs(network: nn.Module) -> None:
    """Let every convolution along time alone compute as `TimeConv`; in place, parameters stay the same."""
    for module in network.modules():
        if type(module) is nn.Conv3d and module.kernel_size[1:] == (1, 1) and module.stride == (1, 1, 1):
            module.__class__ = TimeConv


def still_time_convs(network: nn.Module) -> None:
    """Zero all taps along time but the middle one, so that training starts with frames on their own."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d) and module.kernel_size[1:] == (1, 1):
            taps = torch.arange(module.kernel_size[0]) != module.kernel_size[0] // 2
            with torch.no_grad():
                module.weight[:, :, taps] = 0


def quiet_branches(network: nn.Module) -> None:
    """Zero what ends each residual branch of a U-Net, so that it starts as the identity (Dhariwal & Nichol 2021)."""
    for name, layer in network.named_modules():
        if name.endswith(("conv2", "proj_out")) and isinstance(layer, nn.Conv2d | nn.Conv3d | nn.Linear):
            nn.init.zeros_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
