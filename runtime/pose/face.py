"""The face of the person in the picture, moved with the driver's head."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ..errors import PictureError
from .rescale import VISIBLE
from .sequence import PoseSequence

Complex = npt.NDArray[np.complex128]
"""Points of a picture in pixels, x + iy: a rotation with a scale is a product."""

STABLE = (*range(27, 36), 36, 39, 42, 45)
"""Points that do not move with the expression: the nose and the corners of the eyes."""
_LEAST = 3  # of them, for a fit


def keep_face(poses: PoseSequence, reference: PoseSequence) -> PoseSequence:
    """Poses with the shape of another face: that of `reference`, one frame in fractions of the same picture.

    In each frame it is the reference's face under the rotation, uniform scale and shift that bring its stable points
    nearest to the driver's (Procrustes, least squares weighted by the driver's confidences). The confidences are the
    driver's. Where fewer than three stable points of the driver are seen, no face is (scores 0), and points that the
    reference does not show have score 0 everywhere.

    Raises `PictureError` if the reference shows fewer than three stable points.
    """
    there = reference.face_score[0] > VISIBLE
    if there[list(STABLE)].sum() < _LEAST:
        raise PictureError(
            "the face of the person in the reference picture is not seen.",
            remedy="Give a picture that shows it, or choose face driver or none.",
            field="settings.face",
        )
    own, driving = _pixels(reference.face[0], poses.size), _pixels(poses.face, poses.size)
    weights = poses.face_score.astype(np.float64) * there
    face, score = poses.face.copy(), np.where(there, poses.face_score, np.float32(0))
    for index in range(len(poses)):
        fitted = _fitted(own, driving[index], weights[index])
        if fitted is None:
            score[index] = 0
        else:
            face[index] = np.stack([fitted.real, fitted.imag], axis=-1) / poses.size
    return replace(poses, face=face, face_score=score)


def _pixels(points: npt.NDArray[np.float32], size: tuple[int, int]) -> Complex:
    scaled = points.astype(np.float64) * size
    return np.asarray(scaled[..., 0] + 1j * scaled[..., 1])


def _fitted(own: Complex, driving: Complex, weights: npt.NDArray[np.float64]) -> Complex | None:
    """All points of a face [68], its stable ones as near as may be to another's; None if too few are seen."""
    chosen = list(STABLE)
    shape, target, share = own[chosen], driving[chosen], weights[chosen]
    if (share > 0).sum() < _LEAST:
        return None
    share = share / share.sum()
    middle, place = (share * shape).sum(), (share * target).sum()
    spread = (share * np.abs(shape - middle) ** 2).sum()
    if not spread > 0:
        return None
    turn = (share * np.conj(shape - middle) * (target - place)).sum() / spread
    return np.asarray(turn * (own - middle) + place)
