"""Outlines of body parts over all frames at once, and the flat layers that they are painted in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from .palette import Colour, shaded
from .rotation import Array

Kind = Literal["convex", "any", "hull"]
Flags = npt.NDArray[np.bool_]

_ARC = np.linspace(np.pi / 2, 3 * np.pi / 2, 6)
_RING = np.linspace(0, 2 * np.pi, 20, endpoint=False)
_TONES = ((1.0, 0.74), (0.78, 1.0), (0.36, 1.1))
"""Size and brightness of the layers that make a thing look round."""


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One flat shape: outline [F,P,2] in pixels."""

    outline: Array
    colour: Colour
    shown: Flags | None = None
    """[F]; None: always."""
    kind: Kind = "convex"
    """`any` outlines may be hollow; of `hull` the convex hull is painted."""

    def take(self, frames: slice) -> Layer:
        """The shape in some of the frames."""
        shown = None if self.shown is None else self.shown[frames]
        return Layer(self.outline[frames], self.colour, shown, self.kind)

    def larger(self, factor: float) -> Layer:
        """The shape on a picture of `factor` times the size."""
        return Layer(self.outline * factor, self.colour, self.shown, self.kind)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Layers that are painted one over the other; parts are painted from the lowest depth [F] up."""

    depth: Array
    layers: list[Layer] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Shade:
    """Where the light comes from in the picture, and how strong it is."""

    towards: tuple[float, float]
    contrast: float

    def tones(self, colour: Colour) -> list[tuple[float, Colour]]:
        """Size factor and colour of each layer, outermost first."""
        return [(size, shaded(colour, 1 + (tone - 1) * self.contrast)) for size, tone in _TONES]

    def shift(self, radius: Array, size: float) -> Array:
        """How far [F,2] a layer of that size factor moves to the light in a thing of `radius` [F]."""
        moved: Array = (0.55 * (1 - size) * radius)[:, None] * np.asarray(self.towards)
        return moved


def tube(start: Array, end: Array, wide: Array, narrow: Array) -> Array:
    """A tapered rod with round ends: points [F,2], radii [F]; [F,12,2]."""
    cap = _cap(start, end)
    first = start[:, None] + wide[:, None, None] * cap
    last = end[:, None] - narrow[:, None, None] * cap
    return np.concatenate([first, last], axis=1)


def round_tube(
    start: Array, end: Array, wide: Array, narrow: Array, colour: Colour, shade: Shade,
    joints: tuple[float, float] = (1.0, 1.0),
) -> list[Layer]:  # fmt: skip
    """A rod that looks round. `joints` narrow the dark rim at its two ends, where the next rod goes on."""
    cap, layers = _cap(start, end), []
    for index, (size, tone) in enumerate(shade.tones(colour)):
        first, last = joints if index == 0 else (1.0, 1.0)
        head = (start + shade.shift(wide, size))[:, None] + (wide * size * first)[:, None, None] * cap
        tail = (end + shade.shift(narrow, size))[:, None] - (narrow * size * last)[:, None, None] * cap
        layers.append(Layer(np.concatenate([head, tail], axis=1), tone))
    return layers


def _cap(start: Array, end: Array) -> Array:
    """Half a circle [F,6,2] of radius 1 at the rod's start."""
    along = end - start
    length = np.hypot(along[:, 0], along[:, 1])[:, None]
    along = np.where(length < 1e-6, (0.0, 1.0), along / np.maximum(length, 1e-6))
    normal = np.stack([-along[:, 1], along[:, 0]], axis=-1)
    cap: Array = np.cos(_ARC)[:, None] * along[:, None] + np.sin(_ARC)[:, None] * normal[:, None]
    return cap


def ellipse(middle: Array, axes: Array) -> Array:
    """The outline [F,20,2] of an ellipsoid around `middle` [F,2] with half axes [F,3,3], in columns."""
    flat = axes[:, :2]
    spread = flat @ flat.transpose(0, 2, 1)
    # The outline is the ellipse of this covariance; its root turns a circle into it.
    a, b, c = spread[:, 0, 0], spread[:, 0, 1], spread[:, 1, 1]
    a = np.sqrt(np.maximum(a, 1e-9))
    b = b / a
    c = np.sqrt(np.maximum(c - b * b, 1e-9))
    cosine, sine = np.cos(_RING), np.sin(_RING)
    x = a[:, None] * cosine
    y = b[:, None] * cosine + c[:, None] * sine
    return middle[:, None] + np.stack([x, y], axis=-1)


def disc(middle: Array, radius: Array) -> Array:
    """A circle's outline [F,10,2]."""
    ring = np.stack([np.cos(_RING[::2]), np.sin(_RING[::2])], axis=-1)
    outline: Array = middle[:, None] + radius[:, None, None] * ring
    return outline


def between(start: Array, end: Array, share: float) -> Array:
    """The point that far from `start` to `end`."""
    return start + (end - start) * share
