"""The trunk: shirt with its pattern, hips, skirt, neck."""

from __future__ import annotations

import numpy as np

from .character import Character
from .limbs import LEG_DEPTH
from .palette import Colour
from .rotation import Array, unit
from .shapes import Layer, Part, Shade, between, round_tube
from .skeleton import LEGS, NECK
from .view import View

_ROWS = np.array([-0.07, 0.03, 0.2, 0.45, 0.72, 0.92, 1.1])
"""Levels of the trunk's outline, from 0 at the shoulders to 1 at the hips."""
_FINE = 4


class Trunk:
    """The trunk as a stack of ellipses, whose left and right ends make its outline."""

    def __init__(self, view: View, character: Character) -> None:
        size = character.body
        neck, hips = view.body[:, NECK], view.hips
        levels = np.linspace(_ROWS[0], _ROWS[-1], _FINE * (len(_ROWS) - 1) + 1)
        self.levels = levels
        arm, hip = size.shoulder + 0.75 * size.arm_radius, size.hip + size.thigh_radius * 1.02
        loose = 0.5 + 0.5 * character.top.loose
        ribs = 0.55 * size.shoulder + 0.5 * max(size.waist, 0.08)
        widths = (0.42 * arm, arm, ribs * 1.08, ribs, size.waist * loose, hip * 0.97, hip * loose)
        depths = np.array([0.5, 0.75, 1.0, 1.0, 0.92, 1.02, 1.05]) * size.depth
        self._width = np.interp(levels, _ROWS, widths)
        self._thick = np.interp(levels, _ROWS, depths)
        share = np.clip(levels, 0, 1)[None, :, None, None]
        axes = view.skeleton.chest[:, None] * (1 - share) + view.skeleton.pelvis[:, None] * share
        axes = axes * view.scale[:, None, None, None]
        self._sideways, self._forward = axes[..., :2, 0], axes[..., :2, 2]
        self._centre = neck[:, None] + (hips - neck)[:, None] * levels[:, None]
        self.left, self.right = self._edges(unit(hips - neck))

    def _edges(self, down: Array) -> tuple[Array, Array]:
        normal = np.stack([down[:, 1], -down[:, 0]], axis=-1)[:, None]
        normal = normal * np.where(self._sideways.mean(axis=1)[:, None, :1] < 0, -1.0, 1.0)
        wide, thick = self._width[:, None] * self._sideways, self._thick[:, None] * self._forward
        across = np.sum(wide * normal, axis=-1, keepdims=True)
        towards = np.sum(thick * normal, axis=-1, keepdims=True)
        reach = (across * wide + towards * thick) / np.maximum(np.hypot(across, towards), 1e-6)
        return self._centre + reach, self._centre - reach

    def band(self, top: float, bottom: float, size: float = 1.0, shift: Array | None = None) -> Array:
        """The outline between two levels, `size` times as wide [F,P,2]."""
        rows = (self.levels >= top - 1e-6) & (self.levels <= bottom + 1e-6)
        left, right = self.left[:, rows], self.right[:, rows]
        middle = (left + right) / 2
        outline = np.concatenate([left, right[:, ::-1]], axis=1)
        centre = np.concatenate([middle, middle[:, ::-1]], axis=1)
        shrunk: Array = centre + (outline - centre) * size
        return shrunk if shift is None else shrunk + shift[:, None]

    def patch(self, top: float, bottom: float, angle: float, half: float) -> Array:
        """A patch [F,4,2] on the front, `angle` radians to the left, `half` radians to each side."""
        corners = []
        for level, turn in ((top, -half), (top, half), (bottom, half), (bottom, -half)):
            row = int(np.argmin(np.abs(self.levels - level)))
            around = np.sin(angle + turn) * self._width[row] * self._sideways[:, row]
            ahead = np.cos(angle + turn) * self._thick[row] * self._forward[:, row]
            corners.append(self._centre[:, row] + around + ahead)
        return np.stack(corners, axis=1)


def trunk_parts(view: View, character: Character, shade: Shade) -> list[Part]:
    """Hips, skirt if worn, shirt and neck, from back to front."""
    trunk = Trunk(view, character)
    size, zero = character.body, np.zeros(len(view.scale))
    left, right = (view.body[:, leg[0]] for leg in LEGS)
    radius = view.scale * size.thigh_radius * character.bottom.loose
    hips = round_tube(left, right, radius, radius, character.bottom.colour, shade)
    parts = [Part(zero - 0.01, hips), Part(zero, _shirt(trunk, view, character, shade))]
    if character.bottom.skirt:
        thighs = np.stack([view.body_depth[:, leg[:2]].mean(axis=1) for leg in LEGS])
        over = np.maximum(thighs.max(axis=0) + LEG_DEPTH, 0) + 0.004
        parts.append(Part(over, _skirt(trunk, view, character, shade)))
    chin = between(view.body[:, NECK], view.skull, 0.6)
    thick = view.scale * size.neck_radius
    neck = round_tube(view.body[:, NECK], chin, thick * 1.15, thick, character.skin, shade)
    return [*parts, Part(zero + 0.006, neck)]


def _shirt(trunk: Trunk, view: View, character: Character, shade: Shade) -> list[Layer]:
    top = character.top
    layers = _cloth(trunk, view, character, shade, -0.07, 1.1, top.colour)
    if top.pattern == "two-tone":
        layers += _cloth(trunk, view, character, shade, 0.48, 1.1, top.second)
    if top.pattern == "stripes":
        edges = np.linspace(0.1, 1.1, 2 * top.bands + 1)
        for start, end in zip(edges[:-1:2], edges[1::2], strict=True):
            layers += _cloth(trunk, view, character, shade, start, end, top.second)
    if top.pattern == "logo":
        front = view.skeleton.chest[:, 2, 2] > 0.15
        layers.append(Layer(trunk.patch(0.24, 0.6, 0.0, 0.52), top.second, front, "any"))
        layers.append(Layer(trunk.patch(0.35, 0.5, 0.05, 0.2), top.colour, front, "any"))
    return layers


def _cloth(
    trunk: Trunk, view: View, character: Character, shade: Shade, top: float, bottom: float, colour: Colour
) -> list[Layer]:
    radius = view.scale * character.body.shoulder
    return [
        Layer(
            trunk.band(top, bottom, 0.35 + 0.65 * size, shade.shift(radius, size) * [1, 0]), tone, None, "any"
        )
        for size, tone in shade.tones(colour)
    ]


def _skirt(trunk: Trunk, view: View, character: Character, shade: Shade) -> list[Layer]:
    bottom, size = character.bottom, character.body
    waist = trunk.band(0.86, 0.93)
    ends = waist.reshape(len(waist), -1, 2)[:, [0, -1]]
    hems = [between(view.body[:, leg[0]], view.body[:, leg[1]], bottom.cover) for leg in LEGS]
    flare = (view.scale * size.thigh_radius * 1.5)[:, None] * [1.0, 0.0]
    out = np.where(ends[:, 0, :1] >= ends[:, 1, :1], 1.0, -1.0)
    left, right = hems[0] + out * flare, hems[1] - out * flare
    layers = []
    for part, tone in shade.tones(bottom.colour):
        middle = (ends[:, 0] + ends[:, 1] + left + right) / 4
        corners = np.stack([ends[:, 0], left, right, ends[:, 1]], axis=1)
        narrowed = middle[:, None] + (corners - middle[:, None]) * np.array([0.3 + 0.7 * part, 1.0])
        layers.append(Layer(narrowed, tone, None, "hull"))
    return layers
