"""Rotations of bodies in space: x to the picture's right, y down, z towards the viewer.

Angles are radians [F]; matrices [F,3,3] turn columns, so that their columns are the body's own right (in
the picture), down and forward.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def yaw(angle: Array) -> Array:
    """Turns a face that looks at the viewer towards the picture's right."""
    return _plane(angle, 0, 2)


def pitch(angle: Array) -> Array:
    """Bows forward: what is above comes towards the viewer."""
    return _plane(angle, 1, 2)


def roll(angle: Array) -> Array:
    """Tilts to the picture's right: what is above moves right."""
    return _plane(-angle, 0, 1)


def turn(matrix: Array, vector: Array) -> Array:
    """[F,3,3] applied to [F,3] or [3]: [F,3]."""
    turned: Array = (
        np.einsum("fij,...j->fi", matrix, vector)
        if vector.ndim == 1
        else np.einsum("fij,fj->fi", matrix, vector)
    )
    return turned


def unit(vector: Array) -> Array:
    """The vectors [...,n] of length 1; a zero stays zero."""
    length = np.linalg.norm(vector, axis=-1, keepdims=True)
    scaled: Array = vector / np.maximum(length, 1e-9)
    return scaled


def across(vector: Array, direction: Array) -> Array:
    """The part of `vector` at a right angle to the unit `direction`, as a unit vector [...,3]."""
    along = np.sum(vector * direction, axis=-1, keepdims=True)
    return unit(vector - along * direction)


def about(vector: Array, axis: Array, angle: Array) -> Array:
    """`vector` [F,3], at a right angle to the unit `axis` [F,3], turned about it by `angle` [F]."""
    turned: Array = np.cos(angle)[:, None] * vector + np.sin(angle)[:, None] * np.cross(axis, vector)
    return turned


def _plane(angle: Array, first: int, second: int) -> Array:
    matrix = np.zeros((len(angle), 3, 3))
    matrix[:] = np.eye(3)
    cosine, sine = np.cos(angle), np.sin(angle)
    matrix[:, first, first] = matrix[:, second, second] = cosine
    matrix[:, first, second], matrix[:, second, first] = sine, -sine
    return matrix
