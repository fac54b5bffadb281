"""The late stages of a model from nothing, which learn from pictures: the VAE's decoder, alone or with the U-Net.

A small U-Net's latents are never quite those of the truth. In the stage `decoder` only the VAE's decoder trains: it
sees what the U-Net samples in two steps, for some clips the truth's own latents, and learns to draw the true frames.
In the stage `together` U-Net and PoseNet train as well, on the two steps that the small model is sampled with: only
the decoder knows what an error in latents does to a picture, so the gradient goes through it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...denoise.kernels import to_signed
from .. import objective
from ..checkpoints import drop_prefix, load_vae
from ..config import Config
from ..networks import flatten_time_convs, skip_idle_branches
from ..picture_terms import PictureTerms
from .base import Batch, Losses, Measures, TrainingStage, generator_at
from .landmarks import choose_cut, store_marked
from .motion import MotionNetworks, MotionStage, build_command
from .vae import trained_vae, validate_vae


class Decoding(nn.Module):
    """The VAE, of which only the decoder trains."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae
        vae.requires_grad_(False)
        vae.decoder.requires_grad_(True)

    def forward(self, latents: Tensor) -> Tensor:
        """latents [B,T,4,h,w], not scaled -> pictures [B,T,3,8h,8w], about -1 to 1."""
        decoded = self.vae.decode(latents.flatten(0, 1), num_frames=latents.shape[1]).sample
        planes: Tensor = decoded.unflatten(0, latents.shape[:2])
        return planes


class DecoderStage(MotionStage):
    """The result is a base folder whose VAE has another decoder and the same latents."""

    def __init__(self, config: Config, device: torch.device, output: Path) -> None:
        super().__init__(config, device, output)
        self.motion.requires_grad_(False).eval()
        self.first_sigma = float(self.sampling["sigma_max"])
        vae: Any = load_vae(self.base)
        flatten_time_convs(vae)
        skip_idle_branches(vae.modules())
        self.decoding = Decoding(vae.train()).to(device)
        self.network = self.decoding
        self.marked = self.open_store("marked", store_marked)

    def batch(self, positions: Sequence[int]) -> Batch:
        """The motion stage's batch, and of each clip a cut at a random place.

        True frames [B,T,3,S,S] of the cut, its place [B,3] in latents (frame, row, column), and whether the decoder
        sees the truth's latents [B].
        """
        cuts, places, true = [], [], []
        for position in positions:
            clip = self.marked[self.order[position]]
            generator = generator_at(self.config.seed + 1, position)  # other numbers than the motion batch's
            cut = choose_cut(clip, self.config.vae, generator, multiple=8)
            true.append(bool(torch.rand((), generator=generator) < self.config.vae.true_latents))
            cuts.append(to_signed(clip["frames"][cut]))
            places.append((cut.frames.start, cut.rows.start // 8, cut.columns.start // 8))
        return {
            **super().batch(positions),
            "frames": torch.from_numpy(np.stack(cuts)),
            "place": torch.tensor(places),
            "true": torch.tensor(true),
        }

    def loss(self, network: nn.Module, batch: Batch) -> Losses:
        """The errors in pictures, see `objective.picture_loss`."""
        with torch.no_grad():
            x0 = self.predict(self.motion, batch, self.step_from_noise(batch), batch["sigma"])
        return objective.picture_loss(self.config.vae, network(self.cut(batch, x0)), batch["frames"])

    def step_from_noise(self, batch: Batch) -> Tensor:
        """An Euler step from pure noise to the batch's sigma: noisy latents [B,F,4,h,w] of unit variance."""
        noise, sigma = batch["noise"], batch["sigma"]
        first = torch.full_like(sigma, self.first_sigma)
        noisy = noise * objective.spread(first, noise)
        x0 = self.predict(self.motion, batch, noisy, first)
        slope = (noisy - x0) / objective.spread(first, noise)
        return x0 + slope * objective.spread(sigma, noise)

    def cut(self, batch: Batch, x0: Tensor) -> Tensor:
        """What the decoder sees, not scaled: the batch's cut of x0 [B,F,4,h,w], or of the truth's latents."""
        latents = torch.where(objective.spread(batch["true"], x0), batch["latents"], x0 / self.scale)
        count, _, height, width = batch["frames"].shape[1:]
        cuts = [
            clip[t : t + count, :, y : y + height // 8, x : x + width // 8]
            for clip, (t, y, x) in zip(latents, batch["place"].tolist(), strict=True)
        ]
        return torch.stack(cuts)

    def validate(self) -> tuple[Measures, NDArray[np.uint8]]:
        """PSNR and SSIM of whole held-out clips after encoder and decoder."""
        return validate_vae(self.decoding.vae, self.held_out.samples(), self.device)

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write `base/`: the base folder with this decoder."""
        self.save_base(folder, "vae", trained_vae(self.base, state))

    def next_step(self, final: Path) -> str:
        """The command that builds a bundle of the networks that this run began with, and this decoder."""
        if self.config.checkpoint is None:  # random networks
            return TrainingStage.next_step(self, final)
        return build_command(str(final / "base"), self.config.checkpoint, self.output)


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
        self.terms = PictureTerms(config, device)
        self.parts = self.terms.parts

    def batch(self, positions: Sequence[int]) -> Batch:
        """The decoder stage's batch, which clips [B] are denoised from pure noise (their sigma is the first), and how
        much the discriminator counts."""
        batch, settings = super().batch(positions), self.config.vae
        chances = [torch.rand((), generator=generator_at(self.config.seed + 2, at)) for at in positions]
        first = torch.stack(chances) < settings.first_step
        lowest = float(self.sampling["sigma_min"])
        sigma = torch.where(
            first, torch.full_like(batch["sigma"], self.first_sigma), batch["sigma"].clamp(min=lowest)
        )
        share = self.terms.adversarial_share(positions)
        return {**batch, "first": first, "sigma": sigma, "adversarial": share}

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
        made, wanted = decoded.float(), batch["frames"]
        pictures = made.detach().requires_grad_()
        plain, logged = objective.picture_loss(self.config.vae, pictures, wanted)
        total, parts = self.terms.added(plain, pictures, made, wanted, float(batch["adversarial"][0]))
        latents = objective.clip_losses(x0, truth, torch.ones_like(sigma), batch["region"]).mean()
        return total + self.config.vae.latent_weight * latents, {
            **logged,
            **parts,
            "latents": latents.detach(),
        }

    def validate(self) -> tuple[Measures, NDArray[np.uint8]]:
        """Sample held-out clips through the runtime's loop, with this decoder."""
        return MotionStage.validate(self)

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write the checkpoint, and `base/` with its decoder."""
        self.save_checkpoint(folder, drop_prefix(state, "motion."))
        super().save(folder, drop_prefix(state, "decoding."))

    def next_step(self, final: Path) -> str:
        """The command that builds a bundle of all that was trained."""
        return build_command(str(final / "base"), final / "mimicmotion.safetensors", self.output)
