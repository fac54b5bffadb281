"""Geometry: rotations and vectors in space, outlines in the picture.

In space x points to the picture's right, y down and z to the viewer. Angles are radians [F]; matrices [F,3,3]
turn columns, so their columns are the body's own right (in the picture), down and forward. In the picture points
are [F,2] and outlines [F,P,2] in pixels, radii [F].
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Rng = np.random.Generator


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
    return np.asarray(np.einsum("fij,...j->fi" if vector.ndim == 1 else "fij,fj->fi", matrix, vector))


def unit(vector: Array) -> Array:
    """The vectors [...,n] of length 1; a zero stays zero."""
    length = np.linalg.norm(vector, axis=-1, keepdims=True)
    return np.asarray(vector / np.maximum(length, 1e-9))


def across(vector: Array, direction: Array) -> Array:
    """The part of `vector` at a right angle to the unit `direction`, as a unit vector [...,3]."""
    along = np.sum(vector * direction, axis=-1, keepdims=True)
    return unit(vector - along * direction)


def about(vector: Array, axis: Array, angle: Array) -> Array:
    """`vector` [F,3], at a right angle to the unit `axis` [F,3], turned about it by `angle` [F]."""
    return np.cos(angle)[:, None] * vector + np.sin(angle)[:, None] * np.cross(axis, vector)


def between(start: Array, end: Array, share: float) -> Array:
    """The point at this share of the way from `start` to `end`."""
    return start + (end - start) * share


def tube(start: Array, end: Array, wide: Array, narrow: Array, cap: Array | None = None) -> Array:
    """A tapered rod with round ends [F,12,2]; `cap` is `half_circle(start, end)` where that is known already."""
    cap = half_circle(start, end) if cap is None else cap
    first = start[:, None] + wide[:, None, None] * cap
    last = end[:, None] - narrow[:, None, None] * cap
    return np.concatenate([first, last], axis=1)


def half_circle(start: Array, end: Array, points: int = 6) -> Array:
    """Half a circle [F,points,2] of radius 1 that rounds off a rod at its start."""
    arc = np.linspace(np.pi / 2, 3 * np.pi / 2, points)
    along = end - start
    length = np.hypot(along[:, 0], along[:, 1])[:, None]
    along = np.where(length < 1e-6, (0.0, 1.0), along / np.maximum(length, 1e-6))
    normal = np.stack([-along[:, 1], along[:, 0]], axis=-1)
    return np.cos(arc)[:, None] * along[:, None] + np.sin(arc)[:, None] * normal[:, None]


def ring(points: int) -> tuple[Array, Array]:
    """Cosines and sines [P] around a circle."""
    turn = np.arange(points) * (2 * np.pi / points)
    return np.cos(turn), np.sin(turn)


def ellipse(middle: Array, axes: Array, points: int = 20) -> Array:
    """The outline [F,points,2] of an ellipsoid around `middle` with half axes [F,3,3], in columns."""
    cosine, sine = ring(points)
    flat = axes[:, :2]
    spread = flat @ flat.transpose(0, 2, 1)
    # The outline is the ellipse of this covariance; its root turns a circle into it.
    a = np.sqrt(np.maximum(spread[:, 0, 0], 1e-9))
    b = spread[:, 0, 1] / a
    c = np.sqrt(np.maximum(spread[:, 1, 1] - b * b, 1e-9))
    x = a[:, None] * cosine
    y = b[:, None] * cosine + c[:, None] * sine
    return np.asarray(middle[:, None] + np.stack([x, y], axis=-1))


def disc(middle: Array, radius: Array, points: int = 10) -> Array:
    """The outline [F,points,2] of a circle."""
    return np.asarray(middle[:, None] + radius[:, None, None] * np.stack(ring(points), axis=-1))


def _plane(angle: Array, first: int, second: int) -> Array:
    matrix: Array = np.tile(np.eye(3), (len(angle), 1, 1))
    cosine, sine = np.cos(angle), np.sin(angle)
    matrix[:, first, first] = matrix[:, second, second] = cosine
    matrix[:, first, second], matrix[:, second, first] = sine, -sine
    return matrix
