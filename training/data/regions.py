"""Loss weights of regions: the boxes of hands that are seen well, and what is near the limbs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...pose.draw import BODY_THRESHOLD, LIMBS
from ..config import ObjectiveConfig

Float = NDArray[np.float32]
Mask = NDArray[np.bool_]


def region_weights(
    config: ObjectiveConfig, latent_size: tuple[int, int], *,
    body: Float, body_score: Float, hands: Float, hands_score: Float,
) -> Float:  # fmt: skip
    """Loss weights [F,1,h,w] of a clip's latents, `latent_size` = (h, w). Where regions overlap the larger counts.

    body [F,18,2], body_score [F,18], hands [F,2,21,2], hands_score [F,2,21] as in `PoseSequence`.
    """
    weights = np.ones((len(body), *latent_size), np.float32)
    if config.skeleton_weight != 1:
        near = skeleton_mask(body, body_score, latent_size, config.skeleton_radius)
        weights[near] = config.skeleton_weight
    if config.hand_weight != 1:
        boxes = hand_mask(hands, hands_score, latent_size, config.hand_threshold)
        weights[boxes] = np.maximum(weights[boxes], config.hand_weight)
    return weights[:, None]


def hand_mask(hands: Float, scores: Float, size: tuple[int, int], threshold: float) -> Mask:
    """Which latents [F,h,w] the box of a hand touches whose 21 confidences are all above the threshold.

    `size` is (h, w). A box that leaves the picture is cut (MimicMotion, sec. 3.3).
    """
    mask = np.zeros((len(hands), *size), np.bool_)
    for frame, hand in np.argwhere((scores > threshold).all(axis=-1)):
        top, bottom, left, right = box_on_grid(hands[frame, hand], size)
        mask[frame, top:bottom, left:right] = True
    return mask


def box_on_grid(points: Float, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(top, bottom, left, right), ends excluded, of what the box around points [P,2] touches.

    Points are fractions of the picture's sides, `size` = (h, w) are the rows and columns of latents or pixels.
    """
    sides = np.array([size[1], size[0]], np.float64)
    low = np.floor(points.min(axis=0) * sides).astype(int)
    high = np.floor(points.max(axis=0) * sides).astype(int) + 1
    left, top = np.clip(low, 0, sides.astype(int))
    right, bottom = np.clip(high, 0, sides.astype(int))
    return int(top), int(bottom), int(left), int(right)


def skeleton_mask(body: Float, scores: Float, size: tuple[int, int], radius: float) -> Mask:
    """Which latents [F,h,w] have their centre at most `radius` of the picture's height from a limb that is drawn.

    `size` is (h, w): latents are square, so it also tells the picture's shape.
    """
    high, wide = size
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
