"""Painting: parts over a room, frame by frame, at a multiple of the size and then brought down."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from .character import Light
from .scenery import Picture, cast_shadow, seen
from .shapes import Layer, Part
from .skeleton import LEGS
from .view import Camera, View

_SHIFT = 4  # fractional bits of OpenCV's coordinates
_FARTHEST = 1 << 13  # pixels; OpenCV's whole numbers hold no more with those bits and room to spare


@dataclass(frozen=True, slots=True)
class _Stroke:
    points: npt.NDArray[np.int32]
    colour: tuple[float, ...]
    shown: list[bool] | None
    kind: str

    @staticmethod
    def of(layer: Layer, alpha: float) -> _Stroke:
        # A pixel's middle is a whole number for OpenCV and a half for us.
        fixed = np.rint((np.clip(layer.outline, -_FARTHEST, _FARTHEST) - 0.5) * (1 << _SHIFT))
        shown = None if layer.shown is None else layer.shown.tolist()
        return _Stroke(fixed.astype(np.int32, order="C"), (*layer.colour, alpha), shown, layer.kind)

    def paint(self, canvas: Picture, frame: int) -> None:
        if self.shown is not None and not self.shown[frame]:
            return
        points = self.points[frame]
        if self.kind == "any":
            cv2.fillPoly(canvas, [points], self.colour, cv2.LINE_AA, _SHIFT)
            return
        if self.kind == "hull":
            points = cv2.convexHull(points)
        cv2.fillConvexPoly(canvas, points, self.colour, cv2.LINE_AA, _SHIFT)


def paint(
    room: Picture, camera: Camera, view: View, parts: list[Part], passing: list[Layer], times: int
) -> npt.NDArray[np.float32]:
    """Pictures, float32 [F,H,W,4] in [0,255]: RGB, and how much of the pixel is person.

    `room` [times*H,times*W,4]; `view`, `parts` and the `passing` things in front are in its pixels.
    """
    frames, (height, width) = len(view.scale), room.shape[:2]
    order = np.argsort(np.stack([part.depth for part in parts]), axis=0, kind="stable").T.tolist()
    strokes = [[_Stroke.of(layer, 255.0) for layer in part.layers] for part in parts]
    things = [_Stroke.of(layer, 0.0) for layer in passing]
    feet = view.body[:, [leg[2] for leg in LEGS]]
    pictures = np.empty((frames, height // times, width // times, 4), np.float32)
    for frame in range(frames):
        canvas = seen(room, camera, frame)
        (x0, y0), (x1, y1) = feet[frame].tolist()
        reach = 0.1 * float(view.scale[frame]) + abs(x1 - x0) / 2
        cast_shadow(canvas, ((x0 + x1) / 2, max(y0, y1) + 0.03 * float(view.scale[frame])), reach)
        for index in order[frame]:
            for stroke in strokes[index]:
                stroke.paint(canvas, frame)
        for stroke in things:
            stroke.paint(canvas, frame)
        small = cv2.resize(canvas, (width // times, height // times), interpolation=cv2.INTER_AREA)
        pictures[frame] = small
    return pictures


def light_up(pictures: npt.NDArray[np.float32], light: Light) -> Picture:
    """RGB [...,H,W,3] under the fall-off of the light, uint8."""
    height, width = pictures.shape[-3:-1]
    x, y = np.linspace(-1, 1, width), np.linspace(-1, 1, height)[:, None]
    far = np.clip(0.5 - 0.4 * light.side * x + 0.25 * y, 0, 1)
    gain = (1 - light.falloff * far).astype(np.float32)
    lit: Picture = np.rint(pictures[..., :3] * gain[..., None]).clip(0, 255).astype(np.uint8)
    return lit
