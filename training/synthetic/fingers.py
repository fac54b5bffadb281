"""Hands: a palm and five tapered fingers."""

from __future__ import annotations

from .character import Character
from .limbs import ARM_DEPTH
from .palette import shaded
from .shapes import Layer, Part, Shade, tube
from .view import View


def hand_parts(view: View, character: Character, shade: Shade, side: int) -> list[Part]:
    """Palm and fingers of the left (0) or right (1) hand."""
    points, depth = view.hands[:, side], view.hands_depth[:, side]
    unit = view.scale * character.body.hand
    skin, dark = character.skin, shaded(character.skin, 1 - 0.34 * shade.contrast)
    palm = [
        Layer(tube(points[:, 0], points[:, knuckle], unit * 0.17, unit * 0.12), dark) for knuckle in (5, 17)
    ]
    palm += [
        Layer(tube(points[:, 0], points[:, knuckle], unit * 0.14, unit * 0.1), skin)
        for knuckle in (17, 13, 9, 5)
    ]
    fingers: list[Layer] = []
    for finger in (4, 3, 2, 1, 0):
        chain = [points[:, 4 * finger + joint] for joint in range(1, 5)]
        thick = 0.085 if finger else 0.1
        for grow, colour in ((1.45, dark), (1.0, skin)):
            radii = [unit * thick * grow * share for share in (1.0, 0.92, 0.84, 0.7)]
            fingers += [Layer(tube(chain[j], chain[j + 1], radii[j], radii[j + 1]), colour) for j in range(3)]
    return [
        Part(depth[:, [0, 5, 17]].mean(axis=1) + ARM_DEPTH + 0.006, palm),
        Part(depth[:, 5:].mean(axis=1) + ARM_DEPTH + 0.007, fingers),
    ]
