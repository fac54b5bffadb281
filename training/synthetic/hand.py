"""Hands: 21 points from a wrist, a direction, a palm and the curl of five fingers."""

from __future__ import annotations

import numpy as np

from .rotation import Array, across, unit
from .waves import Waves

_ROOTS = ((0.13, 0.14), (0.47, 0.12), (0.49, 0.03), (0.46, -0.06), (0.41, -0.14))
"""Where each finger begins: along the hand and towards the thumb, in lengths of the hand."""
_BONES = ((0.2, 0.16, 0.13), (0.22, 0.15, 0.12), (0.24, 0.16, 0.12), (0.22, 0.15, 0.12), (0.17, 0.12, 0.1))
_SPREAD = (0.85, 0.2, 0.03, -0.14, -0.32)
"""Radians that each finger of an open hand leans towards the thumb."""
_BENDS = (1.2, 1.6, 1.1)
"""Radians that the three joints of a closed finger bend."""
_GESTURES = (
    (0.05, 0.05, 0.05, 0.05, 0.05),  # open
    (0.35, 0.4, 0.45, 0.45, 0.45),  # at ease
    (0.6, 0.9, 0.95, 0.95, 0.95),  # fist
    (0.7, 0.02, 0.9, 0.95, 0.95),  # pointing
    (0.75, 0.02, 0.02, 0.95, 0.95),  # two fingers
    (0.0, 0.9, 0.95, 0.95, 0.95),  # thumb up
)


def hand_points(wrist: Array, along: Array, palm: Array, curl: Array, length: float, side: float) -> Array:
    """[F,21,3]: wrist, then four points outwards for each finger, thumb first.

    `wrist` [F,3]; `along` [F,3] unit, to the fingers; `palm` [F,3] unit, where the palm looks, at a right
    angle to it; `curl` [F,5] from 0 open to 1 closed; `length` of the open hand; `side` +1 for the left.
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


def gesture(waves: Waves, rng: np.random.Generator) -> Array:
    """Curl [F,5] of a hand that goes to and fro between two gestures."""
    first, second = (np.asarray(_GESTURES[index]) for index in rng.integers(len(_GESTURES), size=2))
    share = np.clip(waves(-0.6, 1.6, 1.2), 0, 1)[:, None]
    spare = np.stack([waves(-0.12, 0.12, 1.5) for _ in range(5)], axis=-1)
    curl: Array = np.clip(first + (second - first) * share + spare, 0, 1)
    return curl


def facing(along: Array, side: float) -> Array:
    """Where a palm looks when the hand is at rest: to the body, and forward when the arm is raised [F,3]."""
    return across(np.broadcast_to(np.array([-side * 0.6, 0.15, 0.8]), along.shape), along)
