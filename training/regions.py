"""Where in the latents a mistake counts more: in the boxes of well-seen hands, and near the limbs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..pose.draw import BODY_THRESHOLD, LIMBS
from .config import ObjectiveConfig

Float = NDArray[np.float32]
Mask = NDArray[np.bool_]


def region_weights(
    config: ObjectiveConfig, cells: tuple[int, int], *,
    body: Float, body_score: Float, hands: Float, hands_score: Float,
) -> Float:  # fmt: skip
    """Loss weights [F,1,h,w] of a clip's latents, `cells` = (h, w); where regions overlap the larger counts.

    body [F,18,2], body_score [F,18], hands [F,2,21,2], hands_score [F,2,21] as in `PoseSequence`.
    """
    weights = np.ones((len(body), *cells), np.float32)
    if config.skeleton_weight != 1:
        near = skeleton_mask(body, body_score, cells, config.skeleton_radius)
        weights[near] = config.skeleton_weight
    if config.hand_weight != 1:
        boxes = hand_mask(hands, hands_score, cells, config.hand_threshold)
        weights[boxes] = np.maximum(weights[boxes], config.hand_weight)
    return weights[:, None]


def hand_mask(hands: Float, scores: Float, cells: tuple[int, int], threshold: float) -> Mask:
    """Cells [F,h,w] touched by the box of a hand of which every keypoint's confidence exceeds the threshold.

    MimicMotion, sec. 3.3; a box that leaves the picture is cut, the points are fractions of its sides.
    """
    mask = np.zeros((len(hands), *cells), np.bool_)
    for frame, hand in np.argwhere((scores > threshold).all(axis=-1)):
        top, bottom, left, right = box_cells(hands[frame, hand], cells)
        mask[frame, top:bottom, left:right] = True
    return mask


def box_cells(points: Float, cells: tuple[int, int]) -> tuple[int, int, int, int]:
    """(top, bottom, left, right), ends excluded, of the cells that the box around points [P,2] touches."""
    size = np.array([cells[1], cells[0]], np.float64)
    low = np.floor(points.min(axis=0) * size).astype(int)
    high = np.floor(points.max(axis=0) * size).astype(int) + 1
    left, top = np.clip(low, 0, size.astype(int))
    right, bottom = np.clip(high, 0, size.astype(int))
    return int(top), int(bottom), int(left), int(right)


def skeleton_mask(body: Float, scores: Float, cells: tuple[int, int], radius: float) -> Mask:
    """Cells [F,h,w] whose centre is at most `radius` of the picture's height from a limb that is drawn.

    Cells are square, so that h and w also tell the picture's shape.
    """
    high, wide = cells
    y, x = np.mgrid[:high, :wide].astype(np.float32) + np.float32(0.5)
    centres = np.stack([x, y], axis=-1)
    points = body * np.array([wide, high], np.float32)
    mask = np.zeros((len(body), high, wide), np.bool_)
    for start, end in LIMBS:
        drawn = np.minimum(scores[:, start], scores[:, end]) >= BODY_THRESHOLD
        a = points[drawn, start][:, None, None]
        along = points[drawn, end][:, None, None] - a
        length = np.maximum((along**2).sum(-1), 1e-9)
        share = np.clip(((centres - a) * along).sum(-1) / length, 0, 1)
        distance = np.linalg.norm(centres - a - share[..., None] * along, axis=-1)
        mask[drawn] |= distance <= radius * high
    return mask
