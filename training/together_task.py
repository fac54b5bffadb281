"""After all other stages: U-Net, PoseNet and the VAE's decoder learn together, from the error in the pictures.

The U-Net is taught the two steps that the small model is sampled with: from pure noise, and from what it made of
that itself. An error in latents is worth what it does to a picture, which only the decoder knows; so the
gradient goes through it. The encoder is frozen: latents stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from . import objective
from .adapters import drop_prefix
from .config import Config
from .decoder_task import DecoderTask, Decoding, picture_loss
from .motion_task import MotionNetworks, save_weights
from .task import Batch, Measures, generator_at


class Together(nn.Module):
    """U-Net and PoseNet, and the decoder behind them."""

    def __init__(self, motion: MotionNetworks, decoding: Decoding) -> None:
        super().__init__()
        self.motion, self.decoding = motion, decoding

    def forward(self, inputs: Sequence[Tensor], finish: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Any:
        """`MotionNetworks`' inputs -> (x0, pictures); `finish` makes (x0, what is decoded) of v."""
        x0, latents = finish(self.motion(*inputs))
        return x0, self.decoding(latents)


class TogetherTask(DecoderTask):
    """See `task.Task`. The result is a checkpoint, and a base folder with its decoder and the same latents."""

    def __init__(self, config: Config, device: torch.device, output: Path) -> None:
        super().__init__(config, device, output)
        self._motion.network.requires_grad_(True).train()
        self._motion.encoders.vae = self.network.vae  # the same encoder, the decoder that trains
        self.network: Any = Together(self._motion.network, self.network)

    def batch(self, positions: Sequence[int]) -> Batch:
        """The decoder stage's batch, and which clips [B] are denoised from pure noise; their sigma is the first."""
        batch, settings = super().batch(positions), self._config.vae
        chances = [torch.rand((), generator=generator_at(self._config.seed + 2, at)) for at in positions]
        first = torch.stack(chances) < settings.first_step
        lowest = float(self._motion.settings["sigma_min"])
        sigma = torch.where(
            first, torch.full_like(batch["sigma"], self._first_sigma), batch["sigma"].clamp(min=lowest)
        )
        return {**batch, "first": first, "sigma": sigma}

    def loss(self, network: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The decoder stage's errors in pictures, and the motion stage's in latents, of one weight for all sigmas."""
        sigma, truth = batch["sigma"], batch["latents"] * self._motion.scale
        noisy = batch["noise"] * objective.spread(sigma, truth)
        if later := (~batch["first"]).nonzero().flatten().tolist():
            with torch.no_grad():
                noisy[later] = self._step({name: value[later] for name, value in batch.items()})

        def finish(v: Tensor) -> tuple[Tensor, Tensor]:
            x0 = objective.denoised(v.float(), noisy, sigma)
            return x0, self._cut(batch, x0)

        x0, decoded = network(self._motion.inputs(batch, noisy, sigma), finish)
        pictures, parts = picture_loss(self._config.vae, decoded, batch["frames"])
        latents = objective.clip_losses(x0, truth, torch.ones_like(sigma), batch["region"]).mean()
        return pictures + self._config.vae.latent_weight * latents, {**parts, "latents": latents.detach()}

    def validate(self) -> tuple[Measures, NDArray[np.uint8]]:
        """Sample held-out clips through the runtime's loop, with this decoder."""
        return self._motion.validate()

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write the checkpoint, and `base/` with its decoder."""
        save_weights(folder, drop_prefix(state, "motion."), self._config)
        super().save(folder, drop_prefix(state, "decoding."))
