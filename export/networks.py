"""The networks as engines see them: plain tensors in and out, sizes free, blocks rewritten; and their configs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import CheckpointError
from .rewrite import Clip, padded_conv, rewrite, time_conv
from .weight_origins import mark_origins, marked_layers


class UNetEngine(nn.Module):
    """The U-Net for a batch of rows; a row is one branch of one segment of one job."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.layers = marked_layers(unet)
        """Layers whose weights can be changed when the engine is loaded, by path, with the shapes of these."""
        self.unet = rewrite(unet)

    def forward(
        self, latents: Tensor, timestep: Tensor, embedding: Tensor, time_ids: Tensor, pose: Tensor
    ) -> Tensor:
        """latents [R,F,8,h,w], timestep [R], embedding [R,1,D], time_ids [R,3], pose [R,F,C,h,w].

        Returns the prediction [R,F,4,h,w].
        """
        return self.run(latents, timestep, embedding, time_ids, pose)[0]

    def run(
        self, latents: Tensor, timestep: Tensor, embedding: Tensor, time_ids: Tensor, pose: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The prediction, and what enters the last up block from below [R*F,C',h,w]."""
        unet: Any = self.unet
        x, temb, levels = self.enter(latents, timestep, embedding, time_ids, pose)
        skips: tuple[Tensor, ...] = (x,)
        for block, level in zip(unet.down_blocks, levels, strict=True):
            x, more = _run(block, x, temb, level)
            skips += more
        x = unet.mid_block(x, temb, image_only_indicator=levels[-1])
        for block, level in zip(unet.up_blocks[:-1], levels[:0:-1], strict=True):
            count = len(block.resnets)
            x = _run(block, x, temb, level, res_hidden_states_tuple=skips[-count:])
            skips = skips[:-count]
        return self.leave(x, skips, temb, levels[0]), x

    def enter(
        self, latents: Tensor, timestep: Tensor, embedding: Tensor, time_ids: Tensor, pose: Tensor
    ) -> tuple[Tensor, Tensor, list[Clip]]:
        """The first convolution with the pose added [R*F,C,h,w], time embeddings [R*F,E], every level's sizes."""
        unet: Any = self.unet
        rows, frames, _, height, width = latents.shape
        temb = unet.time_embedding(unet.time_proj(timestep).to(latents.dtype))
        ids = unet.add_time_proj(time_ids.flatten()).reshape(rows, -1)
        temb = temb + unet.add_embedding(ids.to(latents.dtype))
        levels = [Clip(rows, frames, height, width, F.silu(temb), embedding)]
        for _ in unet.down_blocks[1:]:
            levels.append(levels[-1].scaled(levels[-1].height // 2, levels[-1].width // 2))
        temb = temb[:, None].expand(rows, frames, temb.shape[1]).flatten(0, 1)
        x: Tensor = unet.conv_in(latents.flatten(0, 1)) + pose.flatten(0, 1)
        return x, temb, levels

    def leave(self, features: Tensor, skips: tuple[Tensor, ...], temb: Tensor, level: Clip) -> Tensor:
        """The last up block and the last convolution."""
        unet: Any = self.unet
        x: Tensor = _run(unet.up_blocks[-1], features, temb, level, res_hidden_states_tuple=skips)
        x = unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))
        return x.reshape(level.rows, level.frames, x.shape[1], level.height, level.width)


class CachingUNetEngine(UNetEngine):
    """The full U-Net, whose second output is what enters its last up block, cached for later steps.

    DeepCache (Ma et al. 2024): what the lower levels give hardly changes from one step to the next. The cut is where
    the first down block's skip connections end.
    """

    def forward(  # type: ignore[override]
        self, latents: Tensor, timestep: Tensor, embedding: Tensor, time_ids: Tensor, pose: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Inputs as of `UNetEngine`; the prediction [R,F,4,h,w] and its cached features [R,F,C',h,w]."""
        prediction, features = self.run(latents, timestep, embedding, time_ids, pose)
        rows, frames, _, height, width = latents.shape
        return prediction, features.reshape(rows, frames, features.shape[1], height, width)


class ShallowUNetEngine(UNetEngine):
    """The first level of the U-Net alone, around cached features of an earlier step; drops all other weights."""

    def __init__(self, unet: Any) -> None:
        unet.down_blocks, unet.up_blocks = unet.down_blocks[:1], unet.up_blocks[-1:]
        unet.down_blocks[0].downsamplers = unet.mid_block = None
        super().__init__(unet)

    def forward(  # type: ignore[override]
        self,
        latents: Tensor,
        timestep: Tensor,
        embedding: Tensor,
        time_ids: Tensor,
        pose: Tensor,
        cached_features: Tensor,
    ) -> Tensor:
        """Inputs as of `UNetEngine`, and cached_features [R,F,C',h,w]. Returns the prediction [R,F,4,h,w]."""
        unet: Any = self.unet
        x, temb, (level,) = self.enter(latents, timestep, embedding, time_ids, pose)
        _, more = _run(unet.down_blocks[0], x, temb, level)
        return self.leave(cached_features.flatten(0, 1), (x, *more), temb, level)


def _run(block: Any, x: Tensor, temb: Tensor, level: Clip, **more: Any) -> Any:
    return block(hidden_states=x, temb=temb, image_only_indicator=level, **more)


class PoseNetEngine(nn.Module):
    """PoseNet: pose [F,3,H,W] in [-1, 1] -> features [F,C,H/8,W/8].

    The three channels between its first two convolutions are padded with zeros to eight, as vector units
    want: SiLU keeps zeros, so only the time changes.
    """

    def __init__(self, pose_net: Any) -> None:
        super().__init__()
        first, _, second = pose_net.conv_layers[:3]
        pose_net.conv_layers[0] = padded_conv(first, outputs=8)
        pose_net.conv_layers[2] = padded_conv(second, inputs=8)
        self.pose_net = pose_net

    def forward(self, pose: Tensor) -> Tensor:
        return self.pose_net(pose)  # type: ignore[no-any-return]


class EncoderEngine(nn.Module):
    """VAE encoder: image [B,3,H,W] in [-1, 1] -> mode of the posterior [B,4,h,w], not scaled."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.encoder, self.quant_conv = rewrite(vae.encoder), vae.quant_conv

    def forward(self, image: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(image)).chunk(2, dim=1)[0]  # type: ignore[no-any-return]


class DecoderEngine(nn.Module):
    """Temporal VAE decoder: latents [F,4,h,w] of one clip, over the scaling factor -> [F,3,H,W]."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.decoder = rewrite(vae.decoder)
        self.decoder.time_conv_out = time_conv(vae.decoder.time_conv_out)

    def forward(self, latents: Tensor) -> Tensor:
        decoder: Any = self.decoder
        frames, _, height, width = latents.shape
        clip = Clip(1, frames, height, width)
        x = decoder.mid_block(decoder.conv_in(latents), image_only_indicator=clip)
        for block in decoder.up_blocks:
            x = block(x, image_only_indicator=clip)
            if block.upsamplers is not None:
                clip = clip.scaled(clip.height * 2, clip.width * 2)
        x = decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(x)))
        channels = x.shape[1]
        x = x.reshape(1, frames, channels, clip.height * clip.width).transpose(1, 2)
        x = decoder.time_conv_out(x).transpose(1, 2)
        return x.reshape(frames, channels, clip.height, clip.width)  # type: ignore[no-any-return]


class ImageEncoderEngine(nn.Module):
    """CLIP's image tower: pixels [B,3,S,S], normalised -> embedding [B,1,D]."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = rewrite(encoder)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.encoder(pixels).image_embeds[:, None]  # type: ignore[no-any-return]


FORMS: dict[str, tuple[Callable[[Any], nn.Module], str]] = {
    "unet": (UNetEngine, "unet"),
    "pose_net": (PoseNetEngine, "pose_net"),
    "vae_encoder": (EncoderEngine, "vae"),
    "vae_decoder": (DecoderEngine, "vae"),
    "image_encoder": (ImageEncoderEngine, "image_encoder"),
    "unet_caching": (CachingUNetEngine, "unet"),
    "unet_shallow": (ShallowUNetEngine, "unet"),
}
"""Network -> the module that engines run, and the part of a model that it is made of."""


def engine_form(network: str, model: Any) -> nn.Module:
    """A network of a model in the form that engines run; the model's part is rewritten in place."""
    form, name = FORMS[network]
    part = getattr(model, name)
    mark_origins(part)
    return form(part)


def check_scheduler(config: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` unless the base's scheduler is the one that the runtime implements."""
    wanted = {
        "_class_name": "EulerDiscreteScheduler",
        "prediction_type": "v_prediction",
        "timestep_type": "continuous",
        "use_karras_sigmas": True,
    }
    wrong = {key: config.get(key) for key, value in wanted.items() if config.get(key) != value}
    low, high = (config.get(key) for key in ("sigma_min", "sigma_max"))
    ordered = isinstance(low, int | float) and isinstance(high, int | float) and 0 < low < high
    if wrong or not ordered:
        raise CheckpointError(
            f"the base's scheduler is not SVD's ({wrong or 'sigma_min, sigma_max'}).",
            remedy=f"Expected {wanted} with 0 < sigma_min < sigma_max.",
            field="base",
        )


def check_scaling_factor(value: Any) -> None:
    """Raise `CheckpointError` unless latents can be divided by the VAE's scaling factor."""
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise CheckpointError(
            f"vae/config.json: scaling_factor is {value!r}.",
            remedy="Expected a positive number, 0.18215 for SVD.",
            field="base",
        )
