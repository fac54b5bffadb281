"""Landmarks of faces and hands in pictures: where keypoints have them, and a small network that finds them.

The network is trained here on drawn people (stage `landmarks`). Its features tell pictures apart by what people look
at, so the VAE learns from them too (`vae.perceptual_weight`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ..denoise.kernels import to_signed
from ..pose import PoseSequence

FACE = (36, 39, 42, 45, 19, 24, 30, 8, 48, 54, 51, 57)
"""Corners of the eyes, brows, nose, chin, and the mouth's corners, top and bottom, of dlib's 68 points."""
TIPS = (4, 8, 12, 20)
"""Tips of the thumb, first, second and last finger of each hand."""
COUNT = len(FACE) + 2 * len(TIPS)
PARTS = (slice(0, 12), slice(12, 16), slice(16, 20))
"""Which landmarks belong to the face, the left and the right hand."""
NEAR = 0.02
"""How far a landmark may be found from its place, in heights of the picture."""
_WIDTHS = (24, 48, 64, 96)
_SURE = 0.5


def find_landmarks(poses: PoseSequence) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Of F poses: pixels [F,20,2] and whether each is to be seen in the picture [F,20]."""
    face, hands = list(FACE), list(TIPS)
    shape = (len(poses), 2 * len(TIPS))
    points = np.concatenate([poses.face[:, face], poses.hands[:, :, hands].reshape(*shape, 2)], axis=1)
    scores = np.concatenate(
        [poses.face_score[:, face], poses.hands_score[:, :, hands].reshape(shape)], axis=1
    )
    seen = (scores > _SURE) & ((points >= 0) & (points < 1)).all(axis=-1)
    return (points * np.asarray(poses.size, np.float32)).astype(np.float32), seen


class LandmarkNet(nn.Module):
    """Pictures to 20 heatmaps of half their size, by four levels of which each halves the one before."""

    def __init__(self) -> None:
        super().__init__()
        inner = (3, *_WIDTHS)
        self.levels = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, width, 3, stride=1 if index == 0 else 2, padding=1),
                nn.GroupNorm(8, width),
                nn.SiLU(),
                nn.Conv2d(width, width, 3, padding=1),
                nn.SiLU(),
            )
            for index, (before, width) in enumerate(pairwise(inner))
        )
        self.sideways = nn.ModuleList(nn.Conv2d(width, _WIDTHS[1], 1) for width in _WIDTHS[1:])
        self.heat = nn.Sequential(
            nn.Conv2d(_WIDTHS[1], _WIDTHS[1], 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(_WIDTHS[1], COUNT, 3, padding=1),
        )

    def features(self, pictures: Tensor) -> list[Tensor]:
        """Pictures [N,3,H,W] in [-1, 1] -> features of the four levels."""
        found = []
        x = pictures
        for level in self.levels:
            x = level(x)
            found.append(x)
        return found

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures [N,3,H,W] in [-1, 1], sides multiples of 8 -> heatmaps [N,20,H/2,W/2] before the sigmoid."""
        levels = self.features(pictures)[1:]
        x: Tensor = self.sideways[-1](levels[-1])
        for level, sideways in zip(levels[-2::-1], reversed(list(self.sideways)[:-1]), strict=True):
            x = F.interpolate(x, scale_factor=2.0) + sideways(level)
        heat: Tensor = self.heat(x)
        return heat


def heatmaps(points: Tensor, seen: Tensor, height: int, width: int) -> Tensor:
    """What the network should answer: bumps around pixels [N,20,2] of pictures height x width, [N,20,H/2,W/2]."""
    x, y = torch.arange(width // 2) * 2 + 1.0, torch.arange(height // 2) * 2 + 1.0
    across, down = x - points[..., 0, None], y - points[..., 1, None]
    bump = torch.exp(-(across[..., None, :] ** 2 + down[..., :, None] ** 2) / (2 * 2.0**2))
    return bump * seen[..., None, None]


def located(heat: Tensor) -> tuple[Tensor, Tensor]:
    """The highest place of each heatmap [N,20,h,w] (before the sigmoid) in pixels [N,20,2], and its height [N,20]."""
    height, place = heat.flatten(2).max(dim=-1)
    x, y = place % heat.shape[-1], place // heat.shape[-1]
    return torch.stack([x, y], dim=-1) * 2 + 1.0, height.sigmoid()


@torch.inference_mode()
def found_again(
    finder: LandmarkNet, video: NDArray[np.uint8], truth: NDArray[np.uint8], poses: PoseSequence
) -> dict[str, float | None]:
    """What the network finds in a video [F,H,W,3] of what it finds in the truth, whose exact poses are given.

    `face_found` and `hands_found`: the share of faces and hands of which at least half of the landmarks are near
    their places. `landmark_error`: how far those that are found in the truth are from their places in the video,
    the median, in percent of the height. None where the truth has nothing to be found.
    """
    points, seen = find_landmarks(poses)
    height = truth.shape[1]

    def away(pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
        places, _ = located(finder(torch.from_numpy(to_signed(pictures))))
        return np.asarray(np.linalg.norm(places.numpy() - points, axis=-1) / height, np.float64)

    wanted, given = away(truth), away(video)
    known = seen & (wanted < NEAR)

    def share(parts: Sequence[slice]) -> float | None:
        again = []
        for part in parts:
            there = 2 * known[:, part].sum(axis=1) > known[:, part].shape[1]
            near = (known & (given < NEAR))[:, part].sum(axis=1)
            again += (2 * near >= known[:, part].sum(axis=1))[there].tolist()
        return float(np.mean(again)) if again else None

    error = 100 * float(np.median(given[known])) if known.any() else None
    return {"face_found": share(PARTS[:1]), "hands_found": share(PARTS[1:]), "landmark_error": error}


def feature_distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """How far apart features are: squared differences of their directions at each place, the mean of the levels."""
    apart = [
        (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(dim=1).mean()
        for a, b in zip(one, other, strict=True)
    ]
    return torch.stack(apart).mean()


def load_landmark_net(path: str | Path) -> LandmarkNet:
    """The network of a file that the stage `landmarks` wrote, frozen. Raises `CheckpointError`."""
    from .checkpoints import assign, read_state

    network = LandmarkNet()
    assign({"": network}, read_state(Path(path)), str(path), torch.float32)
    return network.eval().requires_grad_(False)
