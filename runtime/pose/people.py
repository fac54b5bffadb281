"""Telling people apart, and whom to follow."""

from __future__ import annotations

import numpy as np

from .crops import Points


def distinct_boxes(boxes: Points, overlap: float) -> list[int]:
    """Which of boxes [N,4] (left, top, right, bottom), the best first, stand for things of their own.

    Non-maximum suppression: the indices of those that no better one of them overlaps by more than `overlap`
    (intersection over union).
    """
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    kept: list[int] = []
    left = np.arange(len(boxes))
    while len(left):
        best, left = left[0], left[1:]
        kept.append(int(best))
        sides = np.minimum(boxes[best, 2:], boxes[left, 2:]) - np.maximum(boxes[best, :2], boxes[left, :2])
        shared = np.prod(np.clip(sides, 0, None), axis=1)
        union = areas[best] + areas[left] - shared
        left = left[shared <= overlap * union]
    return kept


def rank(centres: Points, radii: Points, size: tuple[int, int], last: Points | None) -> list[int]:
    """The order in which people, given by centres [N,2] and radii [N] in pixels, come into question.

    After `last`, the place [2] of the person followed so far, the nearest first; without it, the large ones
    near the middle of the picture of `size` (width, height).
    """
    if last is not None:
        return [int(i) for i in np.argsort(np.hypot(*(centres - last).T), kind="stable")]
    middle = np.array(size) / 2
    off_centre = np.hypot(*(centres - middle).T) / np.hypot(*middle)  # 1 in the corners
    return [int(i) for i in np.argsort(-radii * (1 - 0.5 * off_centre), kind="stable")]
