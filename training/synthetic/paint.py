"""Painting: parts in flat layers over a room, frame by frame, at a multiple of the size and then brought down."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from .camera import Camera, View
from .character import Colour, Light
from .geometry import Array, half_circle, tube
from .scenery import Picture, cast_shadow, seen
from .skeleton import LEGS

Kind = Literal["convex", "any", "hull"]
Flags = npt.NDArray[np.bool_]

_SHIFT = 4  # fractional bits of OpenCV's coordinates
_FARTHEST = 1 << 13  # pixels; OpenCV's whole numbers hold no more with those bits and room to spare


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One flat shape: outline [F,P,2] in pixels."""

    outline: Array
    colour: Colour
    shown: Flags | None = None  # [F]; None: always
    kind: Kind = "convex"  # `any` outlines may be hollow; of `hull` the convex hull is painted


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Layers that are painted one over the other; parts are painted from the lowest depth [F] up."""

    depth: Array
    layers: list[Layer]


def round_tube(
    start: Array, end: Array, wide: Array, narrow: Array, colour: Colour, light: Light,
    joints: tuple[float, float] = (1.0, 1.0),
) -> list[Layer]:  # fmt: skip
    """A rod that looks round. `joints` narrow the dark rim at its two ends, where the next rod goes on."""
    cap, layers = half_circle(start, end), []
    for index, (size, tone) in enumerate(light.tones(colour)):
        first, last = joints if index == 0 else (1.0, 1.0)
        head, tail = start + light.shift(wide, size), end + light.shift(narrow, size)
        layers.append(Layer(tube(head, tail, wide * size * first, narrow * size * last, cap), tone))
    return layers


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
        for stroke in chain(*(strokes[index] for index in order[frame]), things):
            stroke.paint(canvas, frame)
        pictures[frame] = cv2.resize(canvas, (width // times, height // times), interpolation=cv2.INTER_AREA)
    return pictures


def light_up(pictures: npt.NDArray[np.float32], light: Light) -> Picture:
    """RGB [...,H,W,3] under the fall-off of the light, uint8."""
    height, width = pictures.shape[-3:-1]
    x, y = np.linspace(-1, 1, width), np.linspace(-1, 1, height)[:, None]
    far = np.clip(0.5 - 0.4 * light.side * x + 0.25 * y, 0, 1)
    gain = (1 - light.falloff * far).astype(np.float32)
    lit: Picture = np.rint(pictures[..., :3] * gain[..., None]).clip(0, 255).astype(np.uint8)
    return lit
