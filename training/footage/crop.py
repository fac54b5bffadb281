"""A rectangle of a picture, brought to a size, with the keypoints that lie in it."""

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


@dataclass(frozen=True, slots=True)
class Crop:
    """Whole pixels of a picture."""

    left: int
    top: int
    width: int
    height: int

    def cut(self, picture: Picture, size: tuple[int, int]) -> Picture:
        """The rectangle of uint8 [H,W,3], resized to `size` (width, height): uint8 [height,width,3]."""
        part = picture[self.top : self.top + self.height, self.left : self.left + self.width]
        if (self.width, self.height) == size:
            return np.ascontiguousarray(part)
        shrinks = size[0] < self.width
        way = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        return np.asarray(cv2.resize(np.ascontiguousarray(part), size, interpolation=way), np.uint8)

    def move(self, poses: PoseSequence, size: tuple[int, int]) -> PoseSequence:
        """Keypoints of the whole picture as fractions of the rectangle; `size` becomes theirs."""
        corner, sides = np.array([self.left, self.top]), np.array([self.width, self.height])
        whole = np.array(poses.size, np.float64)
        moved: dict[str, Any] = {
            name: (getattr(poses, name) * whole - corner) / sides for name in ("body", "hands", "face")
        }
        return replace(poses, **moved, size=size)


def around_person(
    poses: PoseSequence, shape: float, scale: float = 1.0, shift: tuple[float, float] = (0.0, 0.0)
) -> Crop:
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
    return Crop(left, top, width, height)


def somebody(poses: PoseSequence) -> NDArray[np.bool_]:
    """[F]: whether a frame shows the person: four body points with a confidence above 0.3."""
    shown: NDArray[np.bool_] = (poses.body_score > _SEEN).sum(axis=1) >= _LEAST_POINTS
    return shown


def share_inside(poses: PoseSequence) -> float:
    """Which share in [0,1] of the body points that are seen lies inside the picture."""
    seen = poses.body_score > _SEEN
    inside = np.all((poses.body >= 0) & (poses.body <= 1), axis=-1)
    return float((inside & seen).sum() / max(int(seen.sum()), 1))
