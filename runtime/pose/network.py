"""ONNX networks that find people in pictures: what goes in, how they run, and whom of those found to follow."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import EngineError, InputError, MotionError
from ..validation import described

Picture = npt.NDArray[np.uint8]
Points = npt.NDArray[np.float64]

FOLDER = Path(__file__).parent.parent / "models"
"""Where the networks that come with the package lie."""
_ERRORS_ONLY = 3  # ONNX Runtime's severity


class OnnxNetwork:
    """One network on the CPU, with one input.

    `threads` is the number of threads within one run; None leaves it to ONNX Runtime (all cores). Raises
    `InputError` when the file is missing, is no ONNX network, or does not take an input of `shape`.
    """

    def __init__(
        self, path: str | os.PathLike[str], threads: int | None = None, *, shape: tuple[int, ...] = ()
    ) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        options.intra_op_num_threads = threads or 0
        # Several small networks take turns: threads that spin after a run would slow the next one.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session: Any = onnxruntime.InferenceSession(
                os.fspath(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the library's own exceptions share no base class
            raise _unfit(path, f"cannot be loaded: {_first_line(error)}") from error
        entry = self._session.get_inputs()[0]
        self._input: str = entry.name
        self._path = path
        if shape and not _fits(entry.shape, shape):
            raise _unfit(path, f"takes inputs of shape {entry.shape}, not {list(shape)}.")

    def __call__(self, value: npt.NDArray[np.float32], outputs: list[str] | None = None) -> list[Any]:
        """Run on one input; the named outputs (None: all, in the file's order) as arrays.

        Raises `EngineError` if the network fails.
        """
        try:
            return list(self._session.run(outputs, {self._input: value}))
        except Exception as error:
            raise EngineError(f"The pose network {self._path} failed: {_first_line(error)}") from error


def check_frame(frame: Any) -> None:
    """Raise `MotionError` unless `frame` is uint8 [H,W,3] with at least one pixel."""
    array = isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3
    if not array or frame.shape[2] != 3 or not frame.size:
        raise MotionError(
            f"A frame is {described(frame)}.", remedy="Give RGB frames uint8 [H,W,3].", field="motion"
        )


def shrink(frame: Picture, longest: int) -> Picture:
    """The frame with its longer side reduced to `longest` pixels (area average); unchanged if small enough."""
    height, width = frame.shape[:2]
    if max(height, width) <= longest:
        return np.ascontiguousarray(frame)
    import cv2

    scale = longest / max(height, width)
    smaller = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(frame, smaller, interpolation=cv2.INTER_AREA), np.uint8)


def sigmoid(logits: npt.ArrayLike) -> Points:
    """1 / (1 + exp(-x)) in float64, without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * np.asarray(logits, np.float64))))


def distinct_boxes(boxes: Points, scores: Points, least: float, overlap: float) -> list[int]:
    """Which of boxes [N,4] (left, top, right, bottom) with a score above `least` stand for different people.

    Non-maximum suppression, best score first: a box is dropped if a better one that stays overlaps it by more
    than `overlap` (intersection over union).
    """
    import cv2

    corners_and_sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    return [int(i) for i in cv2.dnn.NMSBoxes(corners_and_sides.tolist(), scores.tolist(), least, overlap)]


def rank(centres: Points, radii: Points, size: tuple[int, int], last: Points | None) -> list[int]:
    """The order in which to try people, given by centres [N,2] and radii [N] in pixels.

    After `last`, the place [2] of the person followed so far, the nearest first; without it, the large ones
    near the middle of the picture of `size` (width, height).
    """
    if last is not None:
        return [int(i) for i in np.argsort(np.hypot(*(centres - last).T), kind="stable")]
    middle = np.array(size) / 2
    off_centre = np.hypot(*(centres - middle).T) / np.hypot(*middle)  # 1 in the corners
    return [int(i) for i in np.argsort(-radii * (1 - 0.5 * off_centre), kind="stable")]


def _fits(stated: list[Any], shape: tuple[int, ...]) -> bool:
    """Axes of any length are stated by a name or None."""
    return len(stated) == len(shape) and all(
        side == axis or not isinstance(axis, int) for axis, side in zip(stated, shape, strict=True)
    )


def _unfit(path: str | os.PathLike[str], fault: str) -> InputError:
    return InputError(
        f"The pose network {os.fspath(path)} {fault}",
        remedy="Check the path; for a network of this package, install the package again.",
        field="estimator",
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
