"""What all estimators share: checking a frame, making it smaller, wrapping up one frame's keypoints."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import MotionError
from .crops import Picture
from .sequence import PoseSequence


def check_frame(frame: Any) -> None:
    """Raise `MotionError` unless `frame` is uint8 [H,W,3] with at least one pixel."""
    if not isinstance(frame, np.ndarray):
        raise MotionError(
            f"A frame is a {type(frame).__name__}.", remedy="Give numpy arrays uint8 [H,W,3].", field="motion"
        )
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        raise MotionError(
            f"A frame has shape {list(frame.shape)} and type {frame.dtype}.",
            remedy="Give RGB frames uint8 [H,W,3].",
            field="motion",
        )


def shrink(frame: Picture, longest: int) -> Picture:
    """The frame with its longer side brought down to `longest` pixels, smoothly; as it is if small enough."""
    height, width = frame.shape[:2]
    if max(height, width) <= longest:
        return np.ascontiguousarray(frame)
    import cv2

    scale = longest / max(height, width)
    smaller = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(frame, smaller, interpolation=cv2.INTER_AREA), np.uint8)


def single(
    size: tuple[int, int],
    body: npt.NDArray[Any] | None = None,
    body_score: npt.NDArray[Any] | None = None,
    hands: npt.NDArray[Any] | None = None,
    hands_score: npt.NDArray[Any] | None = None,
    face: npt.NDArray[Any] | None = None,
    face_score: npt.NDArray[Any] | None = None,
) -> PoseSequence:
    """A sequence of one frame at 1 fps from arrays without the axis of frames; what is None was not seen."""

    def one(value: npt.NDArray[Any] | None, shape: tuple[int, ...], missing: float) -> npt.NDArray[Any]:
        return np.full((1, *shape), missing) if value is None else value[None]

    return PoseSequence(
        body=one(body, (18, 2), 0.5),
        body_score=one(body_score, (18,), 0.0),
        hands=one(hands, (2, 21, 2), 0.5),
        hands_score=one(hands_score, (2, 21), 0.0),
        face=one(face, (68, 2), 0.5),
        face_score=one(face_score, (68,), 0.0),
        fps=1.0,
        size=size,
    )
