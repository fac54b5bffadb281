"""Smoothing of keypoints over time: the One Euro filter (Casiez, Roussel, Vogel 2012), weighted by confidence."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..settings import PARTS
from .rescale import VISIBLE
from .sequence import PoseSequence

Points = npt.NDArray[np.float64]

SPEED_CUTOFF = 1.0
"""Hz, of the filter of the speeds, as in the paper."""
BETA = 20.0
"""By how many Hz the cutoff rises for each person's size that a point moves in a second."""


def smooth_poses(poses: PoseSequence, cutoff: float) -> PoseSequence:
    """The keypoints without their jitter; scores stay as they are.

    A point at rest is filtered with a cutoff of `cutoff` Hz; the faster it moves, the higher is the cutoff, so that
    fast motion does not lag. Each place is an exponentially weighted mean of what was seen so far, and confidences
    are weights in it: what is hardly seen counts little, and points of score 0 neither count nor are moved.
    """
    scale = np.array(poses.size, np.float64) / _person_size(poses)
    smoothed: dict[str, Any] = {}
    for name in PARTS:
        points = getattr(poses, name).astype(np.float64) * scale
        weights = getattr(poses, f"{name}_score").astype(np.float64)
        smoothed[name] = _filtered(points, weights[..., None], poses.fps, cutoff) / scale
    return replace(poses, **smoothed)


def _person_size(poses: PoseSequence) -> float:
    """The usual diagonal of the visible body in pixels; that of the picture if it is never seen."""
    diagonals = []
    for points, scores in zip(poses.body * np.array(poses.size, np.float32), poses.body_score, strict=True):
        seen = points[scores > VISIBLE]
        if len(seen) > 1:
            diagonals.append(float(np.hypot(*np.ptp(seen, axis=0))))
    usual = float(np.median(diagonals)) if diagonals else 0.0
    return usual or math.hypot(*poses.size)


def _filtered(points: Points, weights: Points, fps: float, cutoff: float) -> Points:
    """`points` [F,…,2] in sizes of the person, `weights` [F,…,1]."""
    smoothed = points.copy()
    place, known = points[0], weights[0]
    speed = np.zeros_like(place)
    for index in range(1, len(points)):
        seen, weight = points[index], weights[index]
        moved = np.where(known > 0, (seen - place) * fps, 0)
        speed = speed + _share(SPEED_CUTOFF, fps) * weight * (moved - speed)
        share = _share(cutoff + BETA * np.linalg.norm(speed, axis=-1, keepdims=True), fps)
        old, new = (1 - share) * known, share * weight
        known = old + new
        mean = (old * place + new * seen) / np.maximum(known, np.finfo(np.float64).tiny)
        place = np.where(known > 0, mean, place)
        smoothed[index] = np.where(weight > 0, place, seen)
    return smoothed


def _share(cutoff: Any, fps: float) -> Any:
    """Of a new value in an exponential mean with a cutoff in Hz."""
    return 1 / (1 + fps / (2 * math.pi * cutoff))
