"""Fitting a driving skeleton to the person in the reference picture."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import MotionError
from .sequence import SHAPES, PoseSequence

FITTED = (0, 1, 2, 5, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17)
"""Body points that the fit looks at: all but elbows and wrists, which move too much."""
VISIBLE = 0.3
"""A point of the reference counts if its score is above this."""
_LEAST_SPREAD = 1e-4  # of the picture's height, under which two points have the same height

_Points = npt.NDArray[np.float64]


def rescale_to_reference(
    sequence: PoseSequence, reference: PoseSequence, height: int, width: int
) -> PoseSequence:
    """Move and scale a motion so that its skeleton has the build and the place of the reference's.

    `reference` is one frame: the pose found in the reference picture as it is animated, `height` x `width`
    pixels. The whole clip gets one map per axis, as in the reference implementation: `y' = ay y + by` is the
    least-squares fit of all frames' heights to the reference's; `ax` is `ay` corrected for the two aspect
    ratios, and `bx` is the mean of what then remains. Body, hands and face are moved alike. Frames with
    nobody in them are left out of the fit. The result's size is (width, height).

    Raises `MotionError` when the reference is not one frame, or when too little of the person is visible to
    tell heights apart.
    """
    if len(reference) != 1:
        raise MotionError(
            f"The reference pose has {len(reference)} frames.", remedy="Give one frame.", field="reference"
        )
    if height < 1 or width < 1:
        raise MotionError(f"The picture's size is {width}x{height}.", field="settings.size")
    return moved(sequence, *fit(sequence, reference, height / width), (width, height))


def moved(sequence: PoseSequence, scale: _Points, shift: _Points, size: tuple[int, int]) -> PoseSequence:
    """The sequence with every point times `scale` plus `shift`, in fractions of a picture of `size`."""
    points: dict[str, Any] = {
        name: getattr(sequence, name).astype(np.float64) * scale + shift
        for name in SHAPES
        if not name.endswith("score")
    }
    return replace(sequence, **points, size=size)


def fit(sequence: PoseSequence, reference: PoseSequence, tallness: float) -> tuple[_Points, _Points]:
    """Scale (ax, ay) and shift (bx, by); `tallness` is the height of the reference picture over its width."""
    points = [index for index in FITTED if reference.body_score[0, index] > VISIBLE]
    somebody = sequence.body_score.max(axis=1) > 0
    target = reference.body[0, points].astype(np.float64)
    driving = sequence.body[somebody][:, points].astype(np.float64)
    _check_spread(target[:, 1], "reference picture", "reference")
    _check_spread(driving[..., 1], "motion", "motion")

    target_y = np.broadcast_to(target[:, 1], driving.shape[:2])
    offsets = driving[..., 1] - driving[..., 1].mean()
    ay = float((offsets * target_y).sum() / (offsets**2).sum())
    by = float(target_y.mean() - ay * driving[..., 1].mean())
    frame_width, frame_height = sequence.size
    ax = ay * tallness / (frame_height / frame_width)
    bx = float((target[:, 0] - ax * driving[..., 0]).mean())
    return np.array([ax, ay]), np.array([bx, by])


def _check_spread(heights: _Points, where: str, field: str) -> None:
    if heights.size == 0 or np.ptp(heights) < _LEAST_SPREAD:
        raise MotionError(
            f"Too little of the person in the {where} is visible to compare heights.",
            remedy="Show at least the head and the shoulders, or switch rescaling off (settings.rescale).",
            field=field,
        )
