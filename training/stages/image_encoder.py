"""The second stage of a model from nothing: a small stand-in for CLIP learns to name colours.

Its token has to tell the colours of a person's clothes, skin and surroundings, at points that the reference pose
gives. A linear layer reads them from the token; it is thrown away afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...denoise.kernels import clip_pixels, to_signed
from ...pose import PoseSequence
from ...pose.draw import BODY_THRESHOLD
from ..checkpoints import PREPROCESSOR, drop_prefix, image_statistics, load_image_encoder, read_config
from ..config import Config
from ..data.samples import Sample
from ..data.store import Arrays
from .base import Batch, Losses, Measures, TrainingStage

BODY_POINTS = (
    (0,), (1, 8, 11), (2, 3), (3, 4), (5, 6), (6, 7), (8, 9), (9, 10), (11, 12), (12, 13), (10,), (13,)
)  # fmt: skip
"""Means of these body points: face, chest, upper arms and forearms, thighs and shins, feet."""
CORNERS = ((0.06, 0.06), (0.94, 0.06), (0.06, 0.94), (0.94, 0.94))
PATCH = 0.012
"""Radius of the patch whose mean colour is named, as a fraction of the picture's height."""


class ColourNamer(nn.Module):
    """The image encoder, and the layer that reads colours from its token."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.read = nn.Linear(encoder.config.projection_dim, 3 * (len(BODY_POINTS) + len(CORNERS)))

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels [B,3,S,S], normalised as CLIP's -> colours [B,K,3], 0 to 1."""
        colours: Tensor = self.read(self.encoder(pixels).image_embeds)
        return colours.reshape(len(colours), -1, 3)


class ImageEncoderStage(TrainingStage):
    """The result is a base folder with the trained image encoder."""

    def __init__(self, config: Config, device: torch.device, output: Path) -> None:
        super().__init__(config, device, output)
        encoder: Any = load_image_encoder(self.base).requires_grad_(True).train()
        self.statistics = image_statistics(read_config(self.base / PREPROCESSOR), encoder)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.network = ColourNamer(encoder).to(device)
        self.colours = self.open_store("colours", store_colours)

    def batch(self, positions: Sequence[int]) -> Batch:
        """Pixels [B,3,S,S], colours [B,K,3], and which of them are visible [B,K]."""
        return self.collate([self.colours[self.order[position]] for position in positions])

    def collate(self, clips: Sequence[Arrays]) -> Batch:
        """A batch of what `store_colours` gave."""
        pixels = [clip_pixels(to_signed(clip["reference"]), self.statistics)[0] for clip in clips]
        return {
            "pixels": torch.from_numpy(np.stack(pixels)),
            "colours": torch.from_numpy(np.stack([clip["colours"] for clip in clips])),
            "visible": torch.from_numpy(np.stack([clip["visible"] for clip in clips])),
        }

    def loss(self, network: nn.Module, batch: Batch) -> Losses:
        """Mean squared error of the visible colours."""
        error = (network(batch["pixels"]).float() - batch["colours"]) ** 2
        seen = batch["visible"][..., None].float()
        return (error * seen).sum() / (3 * seen.sum()).clamp(min=1), {}

    @torch.inference_mode()
    def validate(self) -> tuple[Measures, NDArray[np.uint8]]:
        """Mean absolute error in levels of 255; the sheet shows each picture's colours over those that are named."""
        clips = [store_colours(sample) for sample in self.held_out.samples()]
        batch = {name: value.to(self.device) for name, value in self.collate(clips).items()}
        named = self.network(batch["pixels"]).clamp(0, 1)
        error = (named - batch["colours"]).abs()[batch["visible"]].mean()
        strips = [
            np.concatenate([_strip(clip["colours"]), _strip(given)])
            for clip, given in zip(clips, named.cpu().numpy(), strict=True)
        ]
        return {"colour_error": float(error) * 255}, np.concatenate(strips)

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write `base/`: the base folder with this image encoder."""
        encoder: Any = load_image_encoder(self.base)
        encoder.load_state_dict({key: value.cpu() for key, value in drop_prefix(state, "encoder.").items()})
        self.save_base(folder, "image_encoder", encoder)


def store_colours(sample: Sample) -> Arrays:
    """The reference picture and its colours."""
    colours, visible = colours_of(sample["reference"], sample["reference_pose"])
    return {"reference": sample["reference"], "colours": colours, "visible": visible}


def colours_of(
    picture: NDArray[np.uint8], pose: PoseSequence
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Colours [K,3], 0 to 1, at body points and corners of a picture uint8 [H,W,3], and which are visible [K]."""
    height, width = picture.shape[:2]
    body = [pose.body[0, list(points)].mean(axis=0) for points in BODY_POINTS]
    seen = [pose.body_score[0, list(points)].min() >= BODY_THRESHOLD for points in BODY_POINTS]
    places = np.concatenate([np.stack(body), CORNERS])
    inside = ((places >= 0) & (places < 1)).all(axis=1)
    side = 2 * max(1, round(PATCH * height)) + 1
    smooth = cv2.blur(picture, (side, side))
    x, y = (np.clip(places, 0, 1 - 1e-6) * (width, height)).astype(int).T
    colours = (smooth[y, x] / np.float32(255)).astype(np.float32)
    return colours, np.concatenate([seen, np.ones(len(CORNERS), bool)]) & inside


def _strip(colours: NDArray[np.float32]) -> NDArray[np.uint8]:
    tiles = np.repeat(np.repeat(colours[None], 16, axis=0), 16, axis=1)
    return (tiles * 255).astype(np.uint8)
