"""A posed body in space: everything that is drawn hangs on these points."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from .character import Character
from .head import Expression, face_points
from .rotation import Array, turn

LEFT, RIGHT = 0, 1
SIDES = (1.0, -1.0)
"""Where a side of the body lies along the chest's own right (in the picture): the person's left is at +x."""
ARMS = ((5, 6, 7), (2, 3, 4))
"""Shoulder, elbow and wrist of the left and the right arm among OpenPose's 18 points."""
LEGS = ((11, 12, 13), (8, 9, 10))
"""Hip, knee and ankle of the left and the right leg."""
NOSE, NECK = 0, 1


@dataclass(frozen=True, slots=True, eq=False)
class Skeleton:
    """F poses of one person. Points are float64 in standing heights: x right, y down, z to the viewer."""

    body: Array
    """[F,18,3], OpenPose order."""
    hands: Array
    """[F,2,21,3], left then right."""
    face: Array
    """[F,68,3], dlib's order."""
    toes: Array
    """[F,2,3], left then right."""
    skull: Array
    """[F,3], middle of the head."""
    chest: Array
    """[F,3,3]; columns are the chest's right, down and forward. So are `pelvis` and `head`."""
    pelvis: Array
    head: Array

    def __len__(self) -> int:
        return len(self.body)

    def take(self, frames: slice) -> Skeleton:
        """Some of the poses."""
        return Skeleton(*(getattr(self, field.name)[frames] for field in fields(self)))


def complete(
    character: Character,
    body: Array,
    hands: Array,
    toes: Array,
    frames: tuple[Array, Array, Array],
    expression: Expression,
) -> Skeleton:
    """The skeleton of a `body` [F,18,3] whose limbs and neck are set, with the head put on.

    `frames` are the rotations of chest, pelvis and head.
    """
    chest, pelvis, head = frames
    size = character.body
    stem = turn(chest, np.array([0.0, -0.5 * size.neck, 0.0])) + turn(
        head, np.array([0.0, -0.5 * size.neck - 0.45 * size.head, 0.1 * size.head])
    )
    skull = body[:, NECK] + stem
    points = face_points(character.face, expression) * size.head
    face = skull[:, None] + np.einsum("fij,fpj->fpi", head, points)
    body = body.copy()
    body[:, NOSE] = face[:, 30]
    body[:, 14], body[:, 15] = face[:, 36:42].mean(axis=1), face[:, 42:48].mean(axis=1)
    for joint, side in ((16, -1.0), (17, 1.0)):
        body[:, joint] = skull + turn(head, np.array([side * 0.385, 0.04, -0.02]) * size.head)
    return Skeleton(body, hands, face, toes, skull, chest, pelvis, head)
