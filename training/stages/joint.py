"""The last stage: U-Net, PoseNet and the VAE's decoder learn together, from the error in the pictures.

The U-Net is taught the two steps that the small model is sampled with: from pure noise, and from its own result of
that. What an error in latents does to a picture only the decoder knows; so the gradient goes through it. The encoder
is frozen: latents stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import objective
from ..checkpoints import drop_prefix, save_weights
from ..config import Config
from .base import Batch, Losses, Measures, generator_at
from .decoder import DecoderStage, Decoding
from .motion import MotionNetworks, MotionStage


class JointNetworks(nn.Module):
    """U-Net and PoseNet, and the decoder behind them."""

    def __init__(self, motion: MotionNetworks, decoding: Decoding) -> None:
        super().__init__()
        self.motion, self.decoding = motion, decoding

    def forward(self, inputs: Sequence[Tensor], finish: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Any:
        """`MotionNetworks`' inputs -> (x0, pictures); `finish` makes (x0, what is decoded) of v."""
        x0, latents = finish(self.motion(*inputs))
        return x0, self.decoding(latents)


class JointStage(DecoderStage):
    """Stage `together`. The result is a checkpoint, and a base folder with its decoder and the same latents."""

    def __init__(self, config: Config, device: torch.device, output: Path) -> None:
        super().__init__(config, device, output)
        self.motion.requires_grad_(True).train()
        self.encoders.vae = self.decoding.vae  # the same encoder, the decoder that trains
        self.network = JointNetworks(self.motion, self.decoding)

    def batch(self, positions: Sequence[int]) -> Batch:
        """The decoder stage's batch, and which clips [B] are denoised from pure noise; their sigma is the first."""
        batch, settings = super().batch(positions), self.config.vae
        chances = [torch.rand((), generator=generator_at(self.config.seed + 2, at)) for at in positions]
        first = torch.stack(chances) < settings.first_step
        lowest = float(self.sampling["sigma_min"])
        sigma = torch.where(
            first, torch.full_like(batch["sigma"], self.first_sigma), batch["sigma"].clamp(min=lowest)
        )
        return {**batch, "first": first, "sigma": sigma}

    def loss(self, network: nn.Module, batch: Batch) -> Losses:
        """The errors in pictures, and those in latents with the same weight for every sigma."""
        sigma, truth = batch["sigma"], batch["latents"] * self.scale
        noisy = batch["noise"] * objective.spread(sigma, truth)
        if later := (~batch["first"]).nonzero().flatten().tolist():
            with torch.no_grad():
                noisy[later] = self.step_from_noise({name: value[later] for name, value in batch.items()})

        def finish(v: Tensor) -> tuple[Tensor, Tensor]:
            x0 = objective.denoised(v.float(), noisy, sigma)
            return x0, self.cut(batch, x0)

        x0, decoded = network(self.inputs(batch, noisy, sigma), finish)
        pictures, parts = objective.picture_loss(self.config.vae, decoded, batch["frames"])
        latents = objective.clip_losses(x0, truth, torch.ones_like(sigma), batch["region"]).mean()
        return pictures + self.config.vae.latent_weight * latents, {**parts, "latents": latents.detach()}

    def validate(self) -> tuple[Measures, NDArray[np.uint8]]:
        """Sample held-out clips through the runtime's loop, with this decoder."""
        return MotionStage.validate(self)

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write the checkpoint, and `base/` with its decoder."""
        weights = drop_prefix(state, "motion.")
        save_weights(folder, weights, half=self.config.half_weights, comfyui=self.config.comfyui)
        super().save(folder, drop_prefix(state, "decoding."))
