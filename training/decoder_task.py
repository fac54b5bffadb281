"""The last stage of a model from scratch: the VAE's decoder learns from what the U-Net believes.

A small U-Net's latents are never quite those of the truth. Encoder, U-Net and PoseNet are frozen here; the decoder
sees what the U-Net samples in two steps, and the truth's own latents for some, and learns to draw the true frames.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..denoise.kernels import to_signed
from . import objective
from .base import open_base, replace_part
from .checkpoints import load_vae
from .config import Config, VaeConfig
from .data.store import clip_at
from .metrics import similarity
from .motion_task import MotionTask
from .task import Batch, Measures, Report, generator_at
from .temporal import flatten_time_convs
from .vae_task import open_frames, trained_vae, validate_vae


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


class DecoderTask:
    """See `task.Task`. The result is a base folder whose VAE has another decoder and the same latents."""

    def __init__(self, config: Config, device: torch.device, output: Path) -> None:
        self._config, self._device = config, device
        self._motion = MotionTask(config, device, output)
        self._motion.network.requires_grad_(False).eval()
        self._first_sigma = float(self._motion.settings["sigma_max"])
        self._base, _ = open_base(config, output)
        self.beginning = self._motion.beginning
        vae: Any = load_vae(self._base)
        flatten_time_convs(vae)
        self.network = Decoding(vae.train()).to(device)
        self._store, self._clips = open_frames(config, output)

    def prepare(self, positions: Iterable[int], report: Report) -> None:
        """Draw and encode the clips that are not stored yet."""
        chosen = list(positions)
        self._motion.prepare(chosen, report)
        indices = (clip_at(self._config.seed, self._clips, position) for position in chosen)
        self._store.fill(indices, self._config.data.workers, report)

    def batch(self, positions: Sequence[int]) -> Batch:
        """The motion stage's batch, the true frames [B,T,3,S,S] of a cut, its place [B,3], who sees the truth [B]."""
        settings, seed = self._config.vae, self._config.seed
        cuts, places, true = [], [], []
        for position in positions:
            frames = self._store[clip_at(seed, self._clips, position)]["frames"]
            sides = (settings.crop, settings.crop) if settings.crop else frames.shape[1:3]
            cells = [len(frames), frames.shape[1] // 8, frames.shape[2] // 8]
            sizes = [min(settings.frames, len(frames)), sides[0] // 8, sides[1] // 8]
            generator = generator_at(seed + 1, position)  # not the motion batch's own chance
            t, y, x = (
                int(torch.randint(whole - part + 1, (), generator=generator))
                for whole, part in zip(cells, sizes, strict=True)
            )
            true.append(bool(torch.rand((), generator=generator) < settings.true_latents))
            cut = frames[t : t + sizes[0], 8 * y : 8 * (y + sizes[1]), 8 * x : 8 * (x + sizes[2])]
            cuts.append(to_signed(cut))
            places.append((t, y, x))
        return {
            **self._motion.batch(positions),
            "frames": torch.from_numpy(np.stack(cuts)),
            "place": torch.tensor(places),
            "true": torch.tensor(true),
        }

    def loss(self, network: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Absolute and squared errors, and what structural similarity lacks of 1."""
        with torch.no_grad():
            x0 = self._motion.predict(self._motion.network, batch, self._step(batch), batch["sigma"])
        return picture_loss(self._config.vae, network(self._cut(batch, x0)), batch["frames"])

    def _step(self, batch: Batch) -> Tensor:
        """An Euler step from pure noise to the batch's sigma: noisy latents [B,F,4,h,w] of unit variance."""
        noise, sigma = batch["noise"], batch["sigma"]
        first = torch.full_like(sigma, self._first_sigma)
        noisy = noise * objective.spread(first, noise)
        x0 = self._motion.predict(self._motion.network, batch, noisy, first)
        slope = (noisy - x0) / objective.spread(first, noise)
        return x0 + slope * objective.spread(sigma, noise)

    def _cut(self, batch: Batch, x0: Tensor) -> Tensor:
        """What the decoder sees, not scaled: the batch's place in x0 [B,F,4,h,w], or in the truth."""
        latents = torch.where(objective.spread(batch["true"], x0), batch["latents"], x0 / self._motion.scale)
        count, _, high, wide = batch["frames"].shape[1:]
        cuts = [
            clip[t : t + count, :, y : y + high // 8, x : x + wide // 8]
            for clip, (t, y, x) in zip(latents, batch["place"].tolist(), strict=True)
        ]
        return torch.stack(cuts)

    @torch.inference_mode()
    def validate(self) -> tuple[Measures, NDArray[np.uint8]]:
        """PSNR and SSIM of whole held-out clips, encoded to the mode and decoded."""
        clips = [sample["frames"] for sample in self._motion.held_out.samples()]
        return validate_vae(self.network.vae, clips, self._device)

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write `base/`: the base folder with this decoder."""
        vae = trained_vae(self._base, state)
        replace_part(self._base, folder / "base", "vae", vae.half() if self._config.half_weights else vae)

    def skipped(self) -> Counter[str]:
        """See `task.Task`: both stores read the same clips."""
        return self._store.skipped | self._motion.skipped()


def picture_loss(settings: VaeConfig, decoded: Tensor, truth: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Absolute and squared errors, and what structural similarity lacks of 1, of [B,T,3,H,W] in [-1, 1]."""
    with torch.autocast(decoded.device.type, enabled=False):  # variances in two bytes would be noise
        decoded = decoded.float()
        error = decoded - truth
        l1, mse = error.abs().mean(), (error**2).mean()
        alike = similarity((decoded.flatten(0, 1) + 1) / 2, (truth.flatten(0, 1) + 1) / 2)
    total = settings.l1_weight * l1 + settings.mse_weight * mse + settings.ssim_weight * (1 - alike)
    return total, {"mse": mse.detach(), "ssim": alike.detach()}
