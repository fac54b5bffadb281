"""Painting: the room behind, and parts in flat layers over it, at a multiple of the size and then brought down."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from .camera import Camera, View
from .character import Backdrop, Colour, Light, shaded
from .geometry import Array, Rng, half_circle, tube
from .skeleton import LEGS

Picture = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Kind = Literal["convex", "any", "hull"]
Flags = npt.NDArray[np.bool_]

_SHIFT = 4  # fractional bits of OpenCV's coordinates
_FARTHEST = 1 << 13  # pixels; OpenCV's whole numbers hold no more with those bits and room to spare
_SMALL = 96  # pixels of the shorter side that soft rooms are painted at


def paint_backdrop(backdrop: Backdrop, height: int, width: int, floor: float) -> Picture:
    """The room, uint8 [height,width,4] with a fourth channel of 0; the floor begins at that share of the height."""
    rng = np.random.default_rng(backdrop.seed)
    painters = {"gradient": _gradient, "room": _room, "stripes": _stripes, "shapes": _shapes, "blobs": _blobs}
    scale = min(1.0, _SMALL / min(height, width)) if backdrop.kind in ("gradient", "blobs") else 1.0
    rows, columns = max(2, round(height * scale)), max(2, round(width * scale))
    painted = painters[backdrop.kind](backdrop, rng, rows, columns, floor)
    if (rows, columns) != (height, width):
        larger = cv2.resize(painted, (width, height), interpolation=cv2.INTER_LINEAR)
        painted = np.asarray(larger, np.float32)
    room = np.zeros((height, width, 4), np.uint8)
    room[..., :3] = np.clip(painted, 0, 255)
    return room


def seen(room: Picture, camera: Camera, frame: int) -> Picture:
    """The room as `camera` shows it in one frame, as large."""
    height, width = room.shape[:2]
    zoom, (dx, dy) = float(camera.zoom[frame]), camera.pan[frame]
    if zoom == 1 and dx == 0 and dy == 0:
        return room.copy()
    right, down = (1 - zoom) * (width - 1) / 2 + dx, (1 - zoom) * (height - 1) / 2 + dy
    matrix = np.array([[zoom, 0, right], [0, zoom, down]])
    warped = cv2.warpAffine(room, matrix, (width, height), borderMode=cv2.BORDER_REFLECT)  # linear
    return np.asarray(warped, np.uint8)


def cast_shadow(canvas: Picture, middle: tuple[float, float], reach: float) -> None:
    """Darken the floor around `middle` in pixels, softly, `reach` pixels to each side."""
    height, width = canvas.shape[:2]
    wide, high = max(2, int(reach)), max(1, int(reach * 0.28))
    left, top = int(middle[0]) - wide, int(middle[1]) - high
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + 2 * wide, width), min(top + 2 * high, height)
    if x0 >= x1 or y0 >= y1:
        return
    across = (np.arange(x0, x1, dtype=np.float32) - left + 0.5) / wide - 1
    down = (np.arange(y0, y1, dtype=np.float32) - top + 0.5) / high - 1
    dark = np.clip(1 - across**2 - down[:, None] ** 2, 0, 1) * 0.5
    canvas[y0:y1, x0:x1, :3] = canvas[y0:y1, x0:x1, :3] * (1 - dark[..., None])


def _ramp(one: Colour, other: Colour, share: Floats) -> Floats:
    """From one colour to the other by `share` [H,W]."""
    first, second = np.asarray(one, np.float32), np.asarray(other, np.float32)
    return first + (second - first) * share[..., None]


def _gradient(backdrop: Backdrop, rng: Rng, height: int, width: int, floor: float) -> Floats:
    angle = rng.uniform(0, 2 * np.pi)
    x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)
    share = 0.5 + 0.36 * (np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y[:, None])
    return _ramp(backdrop.colours[0], backdrop.colours[1], share.astype(np.float32))


def _room(backdrop: Backdrop, rng: Rng, height: int, width: int, floor: float) -> Floats:
    wall, other, ground = backdrop.colours
    edge = round(floor * height)
    share = np.broadcast_to(np.linspace(0, 0.5, height, dtype=np.float32)[:, None], (height, width))
    painted = np.ascontiguousarray(_ramp(wall, other, share))
    if rng.random() < 0.6:  # a window, a door or a picture
        x0, x1 = sorted(rng.uniform(0, width, 2))
        y0, y1 = rng.uniform(0.05, 0.3) * height, rng.uniform(0.35, 1.0) * edge
        colour = shaded(other, rng.uniform(0.6, 1.6))
        cv2.rectangle(painted, (int(x0), int(y0)), (int(x1), int(y1)), shaded(colour, 0.6), -1)
        rim = max(1, height // 60)
        cv2.rectangle(painted, (int(x0) + rim, int(y0) + rim), (int(x1) - rim, int(y1) - rim), colour, -1)
    below = np.linspace(0.75, 1.05, max(height - edge, 1), dtype=np.float32)[:, None, None]
    painted[edge:] = np.asarray(shaded(ground, 0.9), np.float32) * below[: height - edge]
    board = max(1, height // 50)
    painted[max(edge - board, 0) : edge] = shaded(wall, 0.5)
    return painted


def _stripes(backdrop: Backdrop, rng: Rng, height: int, width: int, floor: float) -> Floats:
    angle, count = rng.choice([0.0, np.pi / 2, rng.uniform(0, np.pi)]), rng.uniform(2, 5)
    x = np.arange(width, dtype=np.float32) / max(height, width)
    y = np.arange(height, dtype=np.float32) / max(height, width)
    phase = np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y[:, None]
    share = np.clip(0.5 + 6 * np.sin(2 * np.pi * np.float32(count) * phase), 0, 1).astype(np.float32)
    return _ramp(backdrop.colours[0], shaded(backdrop.colours[1], 0.8), share)


def _shapes(backdrop: Backdrop, rng: Rng, height: int, width: int, floor: float) -> Floats:
    painted = _gradient(backdrop, rng, height, width, floor)
    for index in range(int(rng.integers(3, 8))):
        x, y = int(rng.uniform(0, width)), int(rng.uniform(0, height))
        size = int(rng.uniform(0.06, 0.22) * max(height, width))
        colour = shaded(backdrop.colours[1 + index % 2], rng.uniform(0.7, 1.3))
        if rng.random() < 0.5:
            cv2.circle(painted, (x, y), size, colour, -1, cv2.LINE_AA)
        else:
            angle, corners = rng.uniform(0, 2 * np.pi), int(rng.integers(3, 6))
            turn = angle + np.arange(corners) * 2 * np.pi / corners
            points = np.stack([x + size * np.cos(turn), y + size * np.sin(turn)], axis=-1)
            cv2.fillConvexPoly(painted, points.astype(np.int32), colour, cv2.LINE_AA)
    return painted


def _blobs(backdrop: Backdrop, rng: Rng, height: int, width: int, floor: float) -> Floats:
    painted = _gradient(backdrop, rng, height, width, floor)
    longer = max(height, width)
    for index in range(int(rng.integers(6, 14))):
        x, y = int(rng.uniform(0, width)), int(rng.uniform(0, height))
        colour = shaded(backdrop.colours[index % 3], rng.uniform(0.6, 1.4))
        cv2.circle(painted, (x, y), int(rng.uniform(0.04, 0.14) * longer), colour, -1)
    blurred = cv2.GaussianBlur(painted, (0, 0), max(1.0, longer / 30))
    return np.asarray(blurred, np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One flat shape: outline [F,P,2] in pixels."""

    outline: Array
    colour: Colour
    shown: Flags | None = None  # [F]; None: always
    kind: Kind = "convex"  # `any` outlines may be hollow; of `hull` the convex hull is painted
    grown: int = 0  # pixels by which the shape is larger on every side


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


class _Stroke:
    """A layer in OpenCV's numbers; `alpha` goes into the fourth channel."""

    def __init__(self, layer: Layer, alpha: float) -> None:
        # A pixel's middle is a whole number for OpenCV and a half for us.
        fixed = np.rint((np.clip(layer.outline, -_FARTHEST, _FARTHEST) - 0.5) * (1 << _SHIFT))
        self.points = fixed.astype(np.int32, order="C")
        self.colour, self.kind = (*layer.colour, alpha), layer.kind
        self.shown = None if layer.shown is None else layer.shown.tolist()
        self.grown = layer.grown

    def paint(self, canvas: Picture, frame: int) -> None:
        if self.shown is not None and not self.shown[frame]:
            return
        points = self.points[frame]
        if self.kind == "hull":
            points = cv2.convexHull(points)
        if self.grown:
            cv2.polylines(canvas, [points], True, self.colour, 2 * self.grown, cv2.LINE_AA, _SHIFT)
        if self.kind == "any":
            cv2.fillPoly(canvas, [points], self.colour, cv2.LINE_AA, _SHIFT)
        else:
            cv2.fillConvexPoly(canvas, points, self.colour, cv2.LINE_AA, _SHIFT)


def paint(
    room: Picture, camera: Camera, view: View, parts: list[Part], passing: list[Layer], times: int
) -> npt.NDArray[np.float32]:
    """Pictures, float32 [F,H,W,4] in [0,255]: RGB, and how much of the pixel is person.

    `room` [times*H,times*W,4]; `view`, `parts` and the `passing` things in front are in its pixels.
    """
    frames, (height, width) = len(view.scale), room.shape[:2]
    order = np.argsort(np.stack([part.depth for part in parts]), axis=0, kind="stable").T.tolist()
    strokes = [[_Stroke(layer, 255.0) for layer in part.layers] for part in parts]
    things = [_Stroke(layer, 0.0) for layer in passing]
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
