"""The networks of MimicMotion: SVD's U-Net with pose after `conv_in`, PoseNet, and convolutions along time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import torch
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.models.resnet import ResnetBlock2D, SpatioTemporalResBlock
from torch import Tensor, nn

from ..engines import EngineSpec, network_specs
from ..errors import SettingsError
from .config import LoraConfig

ADAPTER = "default"
"""The name of our low-rank adapters (LoRA) in peft."""


class PoseNet(nn.Module):
    """Pose pictures to features that are added to the output of the U-Net's `conv_in`.

    Eight convolutions with SiLU, three of them halving the size, then a 1x1 projection (zero at the start
    of training, so that training begins at plain SVD) times a learned scalar (MimicMotion, sec. 3.2).
    """

    def __init__(self, out_channels: int = 320) -> None:
        super().__init__()
        channels, strides = (3, 3, 16, 16, 32, 32, 64, 64, 128), (1, 2, 1, 2, 1, 2, 1, 1)
        layers: list[nn.Module] = []
        for (inner, outer), stride in zip(pairwise(channels), strides, strict=True):
            size, padding = (4, 1) if stride == 2 else (3, 1)
            layers += [nn.Conv2d(inner, outer, size, stride, padding), nn.SiLU()]
        self.conv_layers = nn.Sequential(*layers)
        self.final_proj = nn.Conv2d(128, out_channels, kernel_size=1)
        self.scale = nn.Parameter(torch.ones(1) * 2)
        nn.init.zeros_(self.final_proj.weight)
        assert self.final_proj.bias is not None
        nn.init.zeros_(self.final_proj.bias)

    def forward(self, pose: Tensor) -> Tensor:
        """pose [F,3,H,W] in [-1, 1] -> features [F,C,H/8,W/8]."""
        features: Tensor = self.final_proj(self.conv_layers(pose)) * self.scale
        return features


class PoseConvIn(nn.Conv2d):
    """`conv_in` that adds the pose features held for the running forward pass; keys as in nn.Conv2d."""

    pose: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        output = super().forward(input)
        return output if self.pose is None else output + self.pose


class UNet(UNetSpatioTemporalConditionModel):  # type: ignore[misc]
    """SVD's U-Net with pose features after `conv_in`; state-dict keys are SVD's own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        plain = getattr(self, "conv_in")  # noqa: B009 - its type is the base's
        self.conv_in = PoseConvIn(
            plain.in_channels, plain.out_channels, plain.kernel_size, padding=plain.padding
        )

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        added_time_ids: Tensor,
        pose: Tensor | None = None,
        return_dict: bool = False,
    ) -> Any:
        """sample [R,F,8,h,w], timestep [R], embedding [R,1,D], time ids [R,3], pose [R,F,C,h,w] or None.

        Returns a tuple with the prediction [R,F,4,h,w].
        """
        self.conv_in.pose = None if pose is None else pose.flatten(0, 1)
        try:
            return super().forward(
                sample, timestep, encoder_hidden_states, added_time_ids, return_dict=return_dict
            )
        finally:
            self.conv_in.pose = None


class TimeConv(nn.Conv3d):
    """A (k,1,1) convolution computed as a 2-D one over time and space: the same weights, keys and sums.

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


def zero_time_taps(network: nn.Module) -> None:
    """Zero all taps along time but the middle one, so that training starts with frames on their own."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d) and module.kernel_size[1:] == (1, 1):
            taps = torch.arange(module.kernel_size[0]) != module.kernel_size[0] // 2
            with torch.no_grad():
                module.weight[:, :, taps] = 0


class IdleBranch(ResnetBlock2D):  # type: ignore[misc]
    """A residual block whose branch ends in zeros: what is left is the way beside it."""

    def forward(self, input_tensor: Tensor, *_: Any, **__: Any) -> Tensor:
        beside: Tensor = input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)
        return beside


class IdleTimeBlock(SpatioTemporalResBlock):  # type: ignore[misc]
    """A block whose branch along time ends in zeros: frames stay on their own."""

    def forward(self, hidden_states: Tensor, temb: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        x: Tensor = self.spatial_res_block(hidden_states, temb)
        return x


def ends_in_zeros(block: Any) -> bool:
    """Whether a residual block's last convolution is zero, so that its branch adds nothing.

    Weights that have a shape and no values (PyTorch's `meta` device) count as others than zero.
    """
    return not (block.conv2.weight.is_meta or block.conv2.weight.any()) and (
        block.conv2.bias is None or not block.conv2.bias.any()
    )


def skip_idle_branches(modules: Iterable[nn.Module]) -> None:
    """Freeze the residual branches among these modules that end in zeros, and compute them no more; keys stay."""
    for module in list(modules):
        if type(module) is SpatioTemporalResBlock and ends_in_zeros(module.temporal_res_block):
            module.__class__ = IdleTimeBlock
            module.temporal_res_block.requires_grad_(False)
            module.time_mixer.requires_grad_(False)
        elif type(module) is ResnetBlock2D and ends_in_zeros(module):
            module.__class__ = IdleBranch
            for name, child in module.named_children():
                child.requires_grad_(name == "conv_shortcut")


def lean_blocks(vae: Any) -> Iterator[nn.Module]:
    """The blocks that have no branch in a lean VAE: those of full size, and the decoder's along time."""
    for block in (*vae.encoder.down_blocks[0].resnets, *vae.decoder.up_blocks[-1].resnets):
        yield getattr(block, "spatial_res_block", block)
    yield from (one for one in vae.decoder.modules() if isinstance(one, SpatioTemporalResBlock))


def zero_branches(network: nn.Module) -> None:
    """Zero the last layer of each residual branch of a U-Net: it starts as the identity (Dhariwal & Nichol 2021)."""
    for name, layer in network.named_modules():
        if name.endswith(("conv2", "proj_out")) and isinstance(layer, nn.Conv2d | nn.Conv3d | nn.Linear):
            nn.init.zeros_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def add_adapters(unet: nn.Module, config: LoraConfig) -> None:
    """Freeze the U-Net and put trainable adapters on its layers, in place; the first output is unchanged."""
    import peft

    unet.requires_grad_(False)
    lora = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=config.targets)
    try:
        peft.inject_adapter_in_model(lora, unet, ADAPTER)
    except ValueError as error:
        raise SettingsError(
            f"lora.targets fit no layer of the U-Net: {error}", field="lora.targets"
        ) from None


def model_specs(
    unet: UNet, image_size: int, dtype: str = "float32", *, deep_cache: bool = False
) -> dict[str, EngineSpec]:
    """The tensors of the networks around a U-Net; with `deep_cache` of those, too, that reuse cached features."""
    widths = unet.config["block_out_channels"]
    return network_specs(
        pose_channels=widths[0],
        token_width=unet.config["cross_attention_dim"],
        image_size=image_size,
        dtype=dtype,
        cached_channels=widths[1] if deep_cache else None,
    )
