"""From MediaPipe's 33 body points and 468 face points to OpenPose's 18 and dlib's 68."""

from __future__ import annotations

import numpy as np

from .crops import Points

_LEFT_SHOULDER, _RIGHT_SHOULDER = 11, 12
_BODY = (
    0,
    12,
    12,
    14,
    16,
    11,
    13,
    15,
    24,
    26,
    28,
    23,
    25,
    27,
    5,
    2,
    8,
    7,
)  # the second is put in as the neck
_NECK = 1
FACE = (
    127, 234, 93, 132, 58, 172, 150, 176, 152, 400, 379, 397, 288, 361, 323, 454, 356,  # jaw, right to left
    70, 63, 105, 66, 107, 336, 296, 334, 293, 300,  # brows
    168, 197, 5, 4, 98, 97, 2, 326, 327,  # nose
    33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,  # eyes
    61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181,  # lips outside
    78, 81, 13, 311, 308, 402, 14, 178,  # lips inside
)  # fmt: skip
"""Which of the mesh's 468 points stands for each of dlib's 68."""


def to_openpose(points: Points, visibility: Points) -> tuple[Points, Points]:
    """18 points [18,2] and scores [18] from MediaPipe's 33.

    The neck is the middle of the shoulders, as sure as the less sure of them.
    """
    body, score = points[list(_BODY)], visibility[list(_BODY)]
    shoulders = [_LEFT_SHOULDER, _RIGHT_SHOULDER]
    body[_NECK] = points[shoulders].mean(axis=0)
    score[_NECK] = np.min(visibility[shoulders])
    return body, score


FACE_IN_BODY = (0, 14, 15)
"""Nose, right eye and left eye among OpenPose's points."""
_NOSE_TIP, _RIGHT_EYE, _LEFT_EYE = 4, (33, 133), (362, 263)  # an eye is the middle of its corners


def face_in_body(mesh: Points) -> Points:
    """Nose, right eye and left eye [3,2] from the face's 468 points."""
    eyes = [mesh[list(corners)].mean(axis=0) for corners in (_RIGHT_EYE, _LEFT_EYE)]
    return np.stack([mesh[_NOSE_TIP], *eyes])
