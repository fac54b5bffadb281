"""The networks around the denoiser, which stay as they are while it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..denoise.kernels import clip_pixels, to_signed
from ..engines import ImageStatistics
from ..errors import CheckpointError
from .checkpoints import load_image_encoder, load_vae, read_config

Picture = NDArray[np.uint8]
Float = NDArray[np.float32]


class Encoders:
    """The frozen networks that turn pictures into latents and tokens, and latents into pictures."""

    def __init__(self, vae: Any, image_encoder: Any, statistics: ImageStatistics) -> None:
        self.vae, self.image_encoder, self.statistics = vae, image_encoder, statistics
        self.scaling_factor = float(vae.config["scaling_factor"])

    @classmethod
    def load(cls, base: Path, device: torch.device) -> Encoders:
        """Those of a base folder, on a device; raises `CheckpointError`."""
        image_encoder: Any = load_image_encoder(base).to(device)
        statistics = read_statistics(base, int(image_encoder.config.image_size))
        return cls(load_vae(base).to(device), image_encoder, statistics)

    @property
    def device(self) -> torch.device:
        """Where both networks are."""
        return next(self.vae.parameters()).device  # type: ignore[no-any-return]

    def latent_weights(self) -> list[Tensor]:
        """The weights that latents depend on."""
        state: dict[str, Tensor] = self.vae.state_dict()
        return [state[name] for name in sorted(state) if not name.startswith("decoder.")]

    @torch.inference_mode()
    def latents(self, pictures: Picture, chunk: int = 8) -> Float:
        """The posterior's mode [F,4,h,w], not scaled, of pictures uint8 [F,H,W,3]."""
        parts = [
            self.mode(torch.from_numpy(to_signed(pictures[i : i + chunk])).to(self.device))
            for i in range(0, len(pictures), chunk)
        ]
        return torch.cat(parts).cpu().numpy()

    @torch.no_grad()
    def mode(self, images: Tensor) -> Tensor:
        """The posterior's mode [B,4,h,w], not scaled, of images [B,3,H,W] in [-1, 1]; always float32."""
        with torch.autocast(images.device.type, enabled=False):
            return self.vae.encode(images.float()).latent_dist.mode()  # type: ignore[no-any-return]

    @torch.inference_mode()
    def embed(self, picture: Picture) -> Float:
        """The token [1,D] of a picture uint8 [H,W,3]."""
        pixels = torch.from_numpy(clip_pixels(to_signed(picture), self.statistics)).to(self.device)
        return self.image_encoder(pixels).image_embeds.cpu().numpy()  # type: ignore[no-any-return]


def read_statistics(base: Path, size: int) -> ImageStatistics:
    """CLIP's normalisation from `preprocessor_config.json`."""
    config = read_config(base / "feature_extractor" / "preprocessor_config.json")
    try:
        (mr, mg, mb), (sr, sg, sb) = (map(float, config[key]) for key in ("image_mean", "image_std"))
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{base} lacks image_mean or image_std.", field="base") from None
    return ImageStatistics(size, (mr, mg, mb), (sr, sg, sb))
