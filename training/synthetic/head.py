"""The 68 points of a face on a head of height 1: origin in its middle, x to its left, y down, z forward."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .character import Face
from .rotation import Array

RADII = (0.385, 0.5, 0.43)
"""Half axes of the head."""


@dataclass(frozen=True, slots=True, eq=False)
class Expression:
    """What a face does over F frames, each [F] in [0,1]."""

    mouth: Array
    """How far it is open."""
    smile: Array
    eyes: Array
    """How far they are open."""
    brows: Array
    """How far they are raised."""


def face_points(face: Face, expression: Expression) -> Array:
    """[F,68,3] in dlib's order, for the shape of `face`."""
    flat = np.zeros((len(expression.mouth), 68, 3))
    flat[:, 0:17] = _jaw(face, expression)
    flat[:, 17:27] = _brows(face, expression)
    flat[:, 27:36] = _nose(face)
    flat[:, 36:48] = _eyes(face, expression)
    flat[:, 48:68] = _mouth(face, expression)
    return flat


def surface(x: Array, y: Array) -> Array:
    """How far forward the head reaches at (x, y)."""
    depth: Array = RADII[2] * np.sqrt(np.clip(1 - (x / RADII[0]) ** 2 - (y / RADII[1]) ** 2, 0.02, 1))
    return depth


def _jaw(face: Face, expression: Expression) -> Array:
    turn = np.linspace(-np.pi / 2, np.pi / 2, 17)
    points = np.zeros((len(expression.mouth), 17, 3))
    narrow = 1 - (1 - face.jaw) * np.cos(turn)
    points[..., 0] = 0.375 * np.sign(turn) * np.abs(np.sin(turn)) ** 0.85 * narrow
    points[..., 1] = -0.02 + 0.5 * np.cos(turn) ** 0.9 + 0.045 * expression.mouth[:, None] * np.cos(turn)
    points[..., 2] = 0.03 + 0.3 * np.cos(turn)
    return points


def _brows(face: Face, expression: Expression) -> Array:
    x = np.linspace(0.275, 0.075, 5)
    arch = -0.165 - 0.025 * face.brow_height - 0.035 * np.sin(np.linspace(0.2, 2.6, 5))
    y = arch - 0.05 * expression.brows[:, None]
    return _both_sides(x, y, order=slice(None, None, -1))


def _both_sides(x: Array, y: Array, order: slice) -> Array:
    """The points of the person's right side at (-x, y), then those of the left in the mirrored `order`."""
    points = np.zeros((len(y), 2, len(x), 3))
    points[:, 0, :, 0], points[:, 1, :, 0] = -x, x[order]
    points[:, 0, :, 1], points[:, 1, :, 1] = y, y[:, order]
    points[..., 2] = surface(points[..., 0], points[..., 1])
    return points.reshape(len(y), -1, 3)


def _nose(face: Face) -> Array:
    bridge = [(0.0, -0.07 + 0.06 * step, 0.43 + 0.03 * face.nose * step) for step in range(4)]
    base = [(0.045 * face.nose * step, 0.155 - 0.012 * abs(step), 0.43) for step in range(-2, 3)]
    return np.asarray(bridge + base)


def _eyes(face: Face, expression: Expression) -> Array:
    turn = np.pi - np.arange(6) * np.pi / 3  # outer corner, over the lid, inner corner, under it
    x = 0.165 * face.eye_distance - 0.085 * face.eye_size * np.cos(turn)
    lid = -0.055 * face.eye_size * np.sin(turn) * (0.12 + 0.88 * expression.eyes[:, None])
    mirrored = np.array([3, 2, 1, 0, 5, 4])
    points = np.zeros((len(lid), 2, 6, 3))
    points[:, 0, :, 0], points[:, 1, :, 0] = -x, x[mirrored]
    points[:, 0, :, 1], points[:, 1, :, 1] = -0.045 + lid, -0.045 + lid[:, mirrored]
    points[..., 2] = surface(points[..., 0], points[..., 1])
    return points.reshape(len(lid), 12, 3)


def _mouth(face: Face, expression: Expression) -> Array:
    outer = np.pi + np.arange(12) * np.pi / 6
    inner = np.pi + np.arange(8) * np.pi / 4
    half = 0.125 * face.mouth_width * (1 + 0.2 * expression.smile - 0.15 * expression.mouth)[:, None]
    gap = (0.1 * expression.mouth)[:, None]
    rings = []
    for angle, shrink, lip in ((outer, 1.0, 0.034 * face.lip), (inner, 0.8, 0.004)):
        x = half * shrink * np.cos(angle)
        height = np.where(np.sin(angle) < 0, lip + 0.25 * gap, lip + gap)
        y = 0.275 + height * np.sin(angle) - (0.05 * expression.smile[:, None]) * np.cos(angle) ** 2
        rings.append(np.stack([x, y, surface(x, y)], axis=-1))
    return np.concatenate(rings, axis=1)
