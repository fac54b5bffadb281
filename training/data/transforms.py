"""How pictures of a clip and their keypoints are changed together: cropped, resized, mirrored, recoloured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ...pose import PoseSequence

Picture = NDArray[np.uint8]

_SEEN = 0.3
_LEAST_POINTS = 4
_BODY = (0, 1, 5, 6, 7, 2, 3, 4, 11, 12, 13, 8, 9, 10, 15, 14, 17, 16)
_FACE = (
    *range(16, -1, -1), *range(26, 16, -1), 27, 28, 29, 30, 35, 34, 33, 32, 31,  # jaw, brows, nose
    45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40,  # eyes
    54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65,  # lips
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rectangle:
    """A rectangle of whole pixels."""

    left: int
    top: int
    width: int
    height: int

    def cut(self, picture: Picture, size: tuple[int, int]) -> Picture:
        """The rectangle of uint8 [H,W,3], resized to `size` (width, height): uint8 [height,width,3]."""
        part = picture[self.top : self.top + self.height, self.left : self.left + self.width]
        if (self.width, self.height) == size:
            return np.ascontiguousarray(part)
        way = cv2.INTER_AREA if size[0] < self.width else cv2.INTER_CUBIC
        return np.asarray(cv2.resize(np.ascontiguousarray(part), size, interpolation=way), np.uint8)

    def move(self, poses: PoseSequence, size: tuple[int, int]) -> PoseSequence:
        """Keypoints of the whole picture as fractions of the rectangle; `size` becomes theirs."""
        corner, sides = np.array([self.left, self.top]), np.array([self.width, self.height])
        parts = (poses.body, poses.hands, poses.face)
        body, hands, face = ((part * np.array(poses.size, np.float64) - corner) / sides for part in parts)
        return replace(poses, body=body, hands=hands, face=face, size=size)


def around_person(
    poses: PoseSequence, shape: float, scale: float = 1.0, shift: tuple[float, float] = (0.0, 0.0)
) -> Rectangle:
    """The largest rectangle of `shape` (width over height) times `scale` in [0,1], about the person.

    `shift` moves it by fractions of its own sides; it always stays inside the picture.
    """
    whole = np.array(poses.size, np.float64)
    sides = np.array([min(whole[0], whole[1] * shape), min(whole[1], whole[0] / shape)]) * scale
    width, height = (max(1, round(float(side))) for side in sides)
    seen = (poses.body_score > _SEEN)[..., None]
    points = np.where(seen, poses.body * whole, np.nan).reshape(-1, 2)
    points = points[np.isfinite(points[:, 0])]
    centre = (points.min(axis=0) + points.max(axis=0)) / 2 if len(points) else whole / 2
    corner = np.rint(centre - sides / 2 + np.array(shift) * sides)
    left, top = np.clip(corner, 0, whole - [width, height]).astype(int).tolist()
    return Rectangle(left, top, width, height)


def somebody(poses: PoseSequence) -> NDArray[np.bool_]:
    """[F]: whether a frame shows the person, that is four body points with a confidence above 0.3."""
    shown: NDArray[np.bool_] = (poses.body_score > _SEEN).sum(axis=1) >= _LEAST_POINTS
    return shown


def share_inside(poses: PoseSequence) -> float:
    """The share in [0,1] of the visible body points that lies inside the picture."""
    seen = poses.body_score > _SEEN
    inside = np.all((poses.body >= 0) & (poses.body <= 1), axis=-1)
    return float((inside & seen).sum() / max(int(seen.sum()), 1))


@dataclass(frozen=True, slots=True)
class Augment:
    """How far clips may be varied."""

    flip: float = 0.5
    """Probability of mirroring."""
    scale: tuple[float, float] = (0.85, 1.0)
    """Sides of the crop as shares of the largest that fits."""
    shift: float = 0.05
    """How far the crop moves, in its own sides."""
    colour: float = 0.1
    """How far contrast, saturation (factors from 1) and brightness (shares of white) go."""


NONE = Augment(0.0, (1.0, 1.0), 0.0, 0.0)
"""Clips as they are."""


@dataclass(frozen=True, slots=True)
class Variation:
    """One draw from an `Augment`, for all pictures of a clip."""

    flipped: bool
    scale: float
    shift: tuple[float, float]
    contrast: float
    saturation: float
    brightness: float

    @staticmethod
    def draw(augment: Augment, rng: np.random.Generator) -> Variation:
        """A draw; it always takes seven random values."""
        chance, scale, right, down, *colours = rng.random(7)
        low, high = augment.scale
        shift = (augment.shift * (2 * right - 1), augment.shift * (2 * down - 1))
        contrast, saturation, brightness = (augment.colour * (2 * value - 1) for value in colours)
        flipped, scale = bool(chance < augment.flip), float(low + (high - low) * scale)
        return Variation(flipped, scale, shift, 1 + contrast, 1 + saturation, brightness)

    def recolour(self, picture: Picture) -> Picture:
        """uint8 [H,W,3] with other contrast (about middle grey), saturation and brightness."""
        if (self.contrast, self.saturation, self.brightness) == (1, 1, 0):
            return picture
        grey = np.array([0.299, 0.587, 0.114])
        mix = self.contrast * (self.saturation * np.eye(3) + (1 - self.saturation) * grey)
        offset = 127.5 * (1 - self.contrast) + 255 * self.brightness
        matrix = np.concatenate([mix, np.full((3, 1), offset)], axis=1)
        return np.asarray(cv2.transform(picture, matrix), np.uint8)


def mirror(poses: PoseSequence) -> PoseSequence:
    """The poses of the mirrored pictures: x is 1 - x, and left is right."""
    order = {"body": list(_BODY), "hands": [1, 0], "face": list(_FACE)}
    swapped: dict[str, Any] = {}
    for name, points in order.items():
        moved = getattr(poses, name)[:, points].copy()
        moved[..., 0] = 1 - moved[..., 0]
        swapped[name] = moved
        swapped[f"{name}_score"] = getattr(poses, f"{name}_score")[:, points]
    return replace(poses, **swapped)
