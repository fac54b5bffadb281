"""From the 133 points of COCO-WholeBody to the 18 + 2x21 + 68 of pose pictures, as DWPose does it."""

from __future__ import annotations

import numpy as np

from .crops import Points
from .frames import single
from .sequence import PoseSequence

POINTS = 133
_LEFT_SHOULDER, _RIGHT_SHOULDER = 5, 6
_BODY = (0, 17, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)  # of COCO's 17 and the neck after them
_FACE, _LEFT_HAND, _RIGHT_HAND = slice(23, 91), slice(91, 112), slice(112, 133)  # 17 to 22 are the feet
_SHOULDER_SEEN = 0.3


def from_wholebody(points: Points, scores: Points, size: tuple[int, int]) -> PoseSequence:
    """One frame from points [133,2] in pixels of a picture of `size` (width, height) and scores [133].

    The neck is the middle of the shoulders, with score 1 if both are above 0.3 and 0 otherwise. Scores are
    brought to [0,1].
    """
    points, scores = points / np.array(size), np.clip(scores, 0, 1)
    shoulders = [_LEFT_SHOULDER, _RIGHT_SHOULDER]
    body = np.concatenate([points[:17], points[shoulders].mean(axis=0, keepdims=True)])
    body_score = np.append(scores[:17], float((scores[shoulders] > _SHOULDER_SEEN).all()))
    return single(
        size,
        body[list(_BODY)],
        body_score[list(_BODY)],
        np.stack([points[_LEFT_HAND], points[_RIGHT_HAND]]),
        np.stack([scores[_LEFT_HAND], scores[_RIGHT_HAND]]),
        points[_FACE],
        scores[_FACE],
    )
