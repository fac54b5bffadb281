"""A posed body in space, with the points of its hands and its face: everything that is drawn hangs on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .character import Character, Face
from .geometry import Array, across, turn, unit

LEFT, RIGHT = 0, 1
SIDES = (1.0, -1.0)  # the person's left is at +x, to the right in the picture
NOSE, NECK = 0, 1  # of OpenPose's 18 points, as the following ones
ARMS = ((5, 6, 7), (2, 3, 4))  # shoulder, elbow and wrist of the left and the right arm
LEGS = ((11, 12, 13), (8, 9, 10))  # hip, knee and ankle of the left and the right leg
RADII = (0.385, 0.5, 0.43)  # half axes of the head, in heights of a head
_ROOTS = ((0.13, 0.14), (0.47, 0.12), (0.49, 0.03), (0.46, -0.06), (0.41, -0.14))
"""Where each finger begins: along the hand and towards the thumb, in lengths of the hand."""
_BONES = ((0.2, 0.16, 0.13), (0.22, 0.15, 0.12), (0.24, 0.16, 0.12), (0.22, 0.15, 0.12), (0.17, 0.12, 0.1))
_SPREAD = (0.85, 0.2, 0.03, -0.14, -0.32)  # radians that each finger of an open hand leans to the thumb
_BENDS = (1.2, 1.6, 1.1)  # radians that the three joints of a closed finger bend


@dataclass(frozen=True, slots=True, eq=False)
class Skeleton:
    """F poses of one person. Points are float64 in standing heights: x right, y down, z to the viewer."""

    character: Character
    body: Array  # [F,18,3], OpenPose order
    hands: Array  # [F,2,21,3], left then right
    face: Array  # [F,68,3], dlib's order
    toes: Array  # [F,2,3], left then right
    skull: Array  # [F,3], middle of the head
    chest: Array  # [F,3,3]; columns are the chest's right, down and forward, and so those of:
    pelvis: Array
    head: Array


@dataclass(frozen=True, slots=True, eq=False)
class Expression:
    """What a face does over F frames, each [F] in [0,1]."""

    mouth: Array  # how far it is open
    smile: Array
    eyes: Array  # how far they are open
    brows: Array  # how far they are raised


def complete(
    character: Character, body: Array, hands: Array, toes: Array, axes: tuple[Array, Array, Array],
    expression: Expression,
) -> Skeleton:  # fmt: skip
    """The skeleton of a `body` [F,18,3] whose limbs and neck are set, with the head put on.

    `axes` are the rotations of chest, pelvis and head.
    """
    chest, pelvis, head = axes
    size = character.body
    upper = np.array([0.0, -0.5 * size.neck - 0.45 * size.head, 0.1 * size.head])
    skull = body[:, NECK] + (turn(chest, np.array([0.0, -0.5 * size.neck, 0.0])) + turn(head, upper))
    points = face_points(character.face, expression) * size.head
    face = skull[:, None] + np.einsum("fij,fpj->fpi", head, points)
    body = body.copy()
    body[:, NOSE] = face[:, 30]
    body[:, 14], body[:, 15] = face[:, 36:42].mean(axis=1), face[:, 42:48].mean(axis=1)
    for joint, side in ((16, -1.0), (17, 1.0)):
        body[:, joint] = skull + turn(head, np.array([side * 0.385, 0.04, -0.02]) * size.head)
    return Skeleton(character, body, hands, face, toes, skull, chest, pelvis, head)


def hand_points(wrist: Array, along: Array, palm: Array, curl: Array, length: float, side: float) -> Array:
    """[F,21,3]: wrist, then four points outwards for each finger, thumb first.

    `wrist` [F,3]; `along` [F,3]: unit vectors to the fingers; `palm` [F,3]: unit vectors to where the palm looks,
    at a right angle to `along`; `curl` [F,5] from 0 open to 1 closed; `length` of the open hand; `side` +1: left.
    """
    thumb = side * np.cross(along, palm)
    points = np.empty((len(wrist), 21, 3))
    points[:, 0] = wrist
    for finger, (root, bones, spread) in enumerate(zip(_ROOTS, _BONES, _SPREAD, strict=True)):
        at = wrist + length * (root[0] * along + root[1] * thumb)
        straight = np.cos(spread) * along + np.sin(spread) * thumb
        inward = palm if finger else unit(0.75 * palm - 0.65 * thumb)
        points[:, 1 + 4 * finger] = at
        angle = np.zeros(len(wrist))
        for joint, (bone, bend) in enumerate(zip(bones, _BENDS, strict=True)):
            angle = angle + bend * curl[:, finger] * (1.0 if finger else 0.55)
            at = at + length * bone * (np.cos(angle)[:, None] * straight + np.sin(angle)[:, None] * inward)
            points[:, 2 + 4 * finger + joint] = at
    return points


def facing(along: Array, side: float) -> Array:
    """Where a palm looks when the hand is at rest: to the body, and forward when the arm is raised [F,3]."""
    return across(np.broadcast_to(np.array([-side * 0.6, 0.15, 0.8]), along.shape), along)


def face_points(face: Face, expression: Expression) -> Array:
    """The 68 points of a face on a head of height 1, [F,68,3] in dlib's order.

    The origin is the middle of the head, x goes to the person's left, y down, z forward.
    """
    nose = np.broadcast_to(_nose(face), (len(expression.mouth), 9, 3))
    parts = [_jaw(face, expression), _brows(face, expression), nose]
    return np.concatenate([*parts, _eyes(face, expression), _mouth(face, expression)], axis=1)


def surface(x: Array, y: Array) -> Array:
    """How far forward the head reaches at (x, y)."""
    return RADII[2] * np.sqrt(np.clip(1 - (x / RADII[0]) ** 2 - (y / RADII[1]) ** 2, 0.02, 1))


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
    arch = -0.165 - face.brow_lift - 0.025 * face.brow_height - 0.035 * np.sin(np.linspace(0.2, 2.6, 5))
    y = arch - 0.05 * expression.brows[:, None]
    return _both_sides(x, y, order=[4, 3, 2, 1, 0])


def _both_sides(x: Array, y: Array, order: list[int]) -> Array:
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
    wide, high = face.eye
    x = 0.165 * face.eye_distance - wide * face.eye_size * np.cos(turn)
    lid = -high * face.eye_size * np.sin(turn) * (0.12 + 0.88 * expression.eyes[:, None])
    return _both_sides(x, -0.045 + lid, order=[3, 2, 1, 0, 5, 4])


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
