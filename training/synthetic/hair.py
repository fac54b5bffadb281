"""Hair and caps: what lies behind the trunk, over the skull, and over the forehead."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .character import Character
from .head import RADII, surface
from .palette import shaded
from .rotation import Array
from .shapes import Kind, Layer, Part, Shade, round_tube
from .view import View

if TYPE_CHECKING:
    from .portrait import Head

_FALLING = {"bob": 0.62, "long": 1.25, "ponytail": 1.0}
"""How far below the head's middle hair ends, in heights of a head."""


def back_parts(head: Head, view: View, character: Character, shade: Shade) -> list[Part]:
    """Hair that hangs or stands behind the head."""
    hair, unit = character.hair, head.unit
    ahead = view.skeleton.head[:, 2, 2]
    behind = view.skull_depth + 0.02 - 0.11 * ahead
    behind = np.where(ahead > 0, np.minimum(behind, -0.004), behind)
    if hair.style == "afro":
        size = 1.35 + 0.25 * (hair.length - 0.75)
        ball = head.ball((0, -0.12, -0.12), size, np.array([0.45, 0.48, 0.45]))
        return [Part(behind, _layers(head, ball, character, shade))]
    if hair.style not in _FALLING:
        return []
    top = head.at(np.array([[0.0, -0.1, -0.25]]))[:, 0]
    end = top + (unit * _FALLING[hair.style] * hair.length)[:, None] * [0.0, 1.0]  # hangs straight down
    wide, narrow = (0.16, 0.06) if hair.style == "ponytail" else (0.42, 0.34)
    return [Part(behind, round_tube(top, end, unit * wide, unit * narrow, hair.colour, shade))]


def skull_layers(head: Head, character: Character, shade: Shade) -> list[Layer]:
    """The round of the head, below the face."""
    style = character.hair.style
    layers = [Layer(head.ball((0, 0, 0), 1.0), shaded(character.skin, 1 - 0.2 * shade.contrast))]
    if style == "bald":
        return layers
    if style == "bun":
        bun = head.ball((0, -0.52, -0.2), 1.0, np.array([0.2, 0.2, 0.2]) * character.hair.length)
        layers += _layers(head, bun, character, shade)
    if style in ("bob", "long", "afro"):
        return layers + _layers(head, head.ball((0, -0.03, -0.03), 1.07), character, shade)
    return layers + _layers(head, head.at(_dome()), character, shade, "hull")


def _dome() -> Array:
    """Points [48,3] of the skull's upper part, down to the brow in front, the ears, and the nape behind."""
    around = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    rim = 0.07 - 0.22 * np.cos(around)
    y = np.concatenate([rim + (-0.5 - rim) * share for share in (0.0, 0.4, 0.7, 0.93)])
    wide = 1.07 * np.sqrt(1 - (y / 0.5) ** 2)
    x, z = np.tile(np.sin(around), 4), np.tile(np.cos(around), 4)
    return np.stack([RADII[0] * wide * x, 1.07 * y, RADII[2] * wide * z], axis=-1)


def front_layers(head: Head, character: Character, shade: Shade) -> list[Layer]:
    """Fringe, locks beside the face, or a cap."""
    hair, front = character.hair, head.faces((0, 0, 1), -0.05)
    if hair.style == "cap":
        return _cap(head, character, shade)
    layers = []
    if hair.style in ("fringe", "bob"):
        turn = np.linspace(-1.25, 1.25, 9)
        x = 0.39 * np.sin(turn)
        low = np.where(np.arange(9) % 2 == 0, -0.17, -0.22)
        low[[0, -1]] = -0.02
        high = -0.1 - 0.42 * np.cos(turn)
        lower, upper = (np.stack([x, y, surface(x, y) + 0.02], axis=-1) for y in (low, high))
        outline = head.at(np.concatenate([lower, upper[::-1]]))
        layers.append(Layer(outline, shaded(hair.colour, 0.94), front, "any"))
    if hair.style in ("bob", "long"):
        drop = 0.35 if hair.style == "bob" else 0.6 * hair.length
        for side in (-1.0, 1.0):
            roots = head.at(np.array([[side * 0.37, -0.2, 0.05], [side * 0.4, drop, 0.05]]))
            unit = head.unit
            lock = round_tube(roots[:, 0], roots[:, 1], unit * 0.1, unit * 0.08, hair.colour, shade)
            layers += lock[:2]
    return layers


def _cap(head: Head, character: Character, shade: Shade) -> list[Layer]:
    colour, front = character.hair.cap, head.faces((0, 0, 1), -0.2)
    turn = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    ring = np.stack([0.42 * np.cos(turn), np.full(20, -0.17), 0.46 * np.sin(turn)], axis=-1)
    dome = np.stack([0.36 * np.cos(turn), np.full(20, -0.42), 0.4 * np.sin(turn)], axis=-1)
    crown = np.array([[0.0, -0.58, 0.0], [0.16, -0.54, 0.0], [-0.16, -0.54, 0.0]])
    half = np.linspace(0, np.pi, 9)
    brim = np.stack([0.36 * np.cos(half), np.full(9, -0.17), 0.2 + 0.5 * np.sin(half)], axis=-1)
    brim[:, 1] += 0.1 * np.sin(half)
    return [
        Layer(head.at(np.concatenate([ring, dome, crown])), colour, None, "hull"),
        Layer(head.at(np.concatenate([dome * [0.75, 1, 0.75], crown])), shaded(colour, 1.1), None, "hull"),
        Layer(head.at(brim), shaded(colour, 1 - 0.4 * shade.contrast), front, "hull"),
    ]


def _layers(
    head: Head, outline: Array, character: Character, shade: Shade, kind: Kind = "convex"
) -> list[Layer]:
    middle = outline.mean(axis=1, keepdims=True)
    return [
        Layer(
            middle + (outline - middle) * size + shade.shift(head.unit * 0.45, size)[:, None],
            tone,
            None,
            kind,
        )
        for size, tone in shade.tones(character.hair.colour)
    ]
