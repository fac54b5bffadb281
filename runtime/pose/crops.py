"""Square, upright crops of a picture, and the way back from crop to picture coordinates."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]
Points = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Crop:
    """A square of `side` pixels around `centre`, turned by `angle` (radians, clockwise as seen)."""

    centre: tuple[float, float]
    side: float
    angle: float = 0.0

    @classmethod
    def whole(cls, picture: Picture) -> Crop:
        """The smallest upright square around a picture; what is beyond its edge is black."""
        height, width = picture.shape[:2]
        return cls((width / 2, height / 2), float(max(width, height)))

    @classmethod
    def pointing(cls, start: npt.ArrayLike, end: npt.ArrayLike, side: float) -> Crop:
        """Around `start`, turned so that `end` lies straight above it."""
        (x0, y0), (x1, y1) = np.asarray(start, float), np.asarray(end, float)
        return cls((float(x0), float(y0)), max(side, 1.0), math.atan2(x1 - x0, y0 - y1))

    @classmethod
    def around(cls, points: Points, angle: float, scale: float) -> Crop:
        """The box of points [P,2] in a frame turned by `angle`, made square, its side times `scale`."""
        turn = _rotation(angle)
        turned = points @ turn  # by the transpose: into the crop's own axes
        low, high = turned.min(axis=0), turned.max(axis=0)
        x, y = turn @ ((low + high) / 2)
        return cls((float(x), float(y)), max(float((high - low).max()) * scale, 1.0), angle)

    def shifted(self, right: float, down: float) -> Crop:
        """Moved along its own axes, in fractions of its side."""
        x, y = _rotation(self.angle) @ np.array([right, down]) * self.side
        return self.moved((x, y))

    def moved(self, step: npt.ArrayLike) -> Crop:
        """Moved by `step` picture pixels (x, y)."""
        x, y = np.asarray(step, float)
        return replace(self, centre=(self.centre[0] + float(x), self.centre[1] + float(y)))

    def to_picture(self, points: npt.NDArray[Any]) -> Points:
        """Points [...,2] in fractions of the crop to picture pixels, float64."""
        offsets = (points.astype(np.float64) - 0.5) * self.side
        return np.asarray(offsets @ _rotation(self.angle).T + np.array(self.centre))

    def cut(self, picture: Picture, pixels: int) -> npt.NDArray[np.float32]:
        """The crop as float32 [1,pixels,pixels,3] with values 0 to 255, bilinear, black beyond the edge."""
        import cv2

        corners = self.to_picture(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
        back = np.column_stack([(corners[1:] - corners[0]).T / pixels, corners[0]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        cut = cv2.warpAffine(picture, back, (pixels, pixels), flags=flags)
        return cut[None].astype(np.float32)


def _rotation(angle: float) -> Points:
    """From the axes of a crop to those of the picture."""
    cosine, sine = math.cos(angle), math.sin(angle)
    return np.array([[cosine, -sine], [sine, cosine]])
