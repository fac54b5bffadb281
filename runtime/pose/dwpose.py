"""The reference's estimator, DWPose (arXiv 2307.15880): YOLOX finds people, a SimCC network 133 points.

Both are ONNX files that the user provides (usually named `yolox_l.onnx` and `dw-ll_ucoco_384.onnx`). The 133
points of COCO-WholeBody become the 18 + 2x21 + 68 of pose pictures as DWPose does it.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .follow import MOST_PEOPLE, Follower, Seen, distinct
from .network import OnnxNetwork, Picture, Points, check_frame, distinct_boxes, rank
from .sequence import PoseSequence, single_frame

DETECTOR_VARIABLE = "MIMICMOTION_DWPOSE_DETECTOR"
POSE_VARIABLE = "MIMICMOTION_DWPOSE_POSE"

_DETECTOR_PIXELS, _STRIDES, _GREY = 640, (8, 16, 32), 114
_LEAST_SCORE, _SAME_PERSON = 0.3, 0.45
_PERSON = 5  # column of a YOLOX row: box, objectness, then the classes of COCO, people first
_POSE_WIDTH, _POSE_HEIGHT, _MARGIN, _SPLIT = 288, 384, 1.25, 2
_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
_SPREAD = np.array([58.395, 57.12, 57.375], np.float32)
_POINTS = 133
_LEFT_SHOULDER, _RIGHT_SHOULDER = 5, 6
_BODY = (0, 17, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)  # of COCO's 17 and the neck after them
_FACE, _LEFT_HAND, _RIGHT_HAND = slice(23, 91), slice(91, 112), slice(112, 133)  # 17 to 22 are the feet
_SHOULDER_SEEN = 0.3

PathLike = str | os.PathLike[str]


class DwposeEstimator:
    """Follows one person through pictures given one after another; the person is chosen as by the default
    estimator.

    The networks' paths are arguments or come from MIMICMOTION_DWPOSE_DETECTOR and MIMICMOTION_DWPOSE_POSE.
    Raises `InputError` if one is missing or cannot be loaded. Not for use by two threads at once.
    """

    def __init__(
        self,
        detector: PathLike | None = None,
        pose: PathLike | None = None,
        *,
        threads: int | None = None,
        person: str | None = None,
    ) -> None:
        detector = _network_path(detector, DETECTOR_VARIABLE, "person detector (yolox_l.onnx)")
        pose = _network_path(pose, POSE_VARIABLE, "pose network (dw-ll_ucoco_384.onnx)")
        self._detector = OnnxNetwork(detector, threads, shape=(1, 3, _DETECTOR_PIXELS, _DETECTOR_PIXELS))
        self._pose = OnnxNetwork(pose, threads, shape=(1, 3, _POSE_HEIGHT, _POSE_WIDTH))
        self._person = person
        self.reset()

    def reset(self) -> None:
        """Forget the person: the next picture begins another clip."""
        self._follow = Follower(self._person)
        self._last: Points | None = None

    @property
    def people(self) -> int:
        """The most people who were seen in one picture."""
        return self._follow.most

    def check_found(self, setting: str = "person") -> None:
        """Raise `SettingsError` if the person who was asked for was never seen, though others were."""
        self._follow.check_found(setting)

    def estimate(self, frame: Picture) -> PoseSequence:
        """The pose in one RGB picture uint8 [H,W,3], as a sequence of one frame (of 1 fps).

        Nobody there gives scores of 0. Raises `MotionError` for another type or shape.
        """
        check_frame(frame)
        size = (frame.shape[1], frame.shape[0])
        boxes = self._people(frame)
        if not len(boxes):
            self._follow.update([], size)
            return single_frame(size)
        centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        order = rank(centres, np.hypot(*sides.T) / 2, size, self._last)[:MOST_PEOPLE]
        people = [Seen(*self._keypoints(frame, centres[i], sides[i])) for i in order]
        kept = distinct(people)
        chosen = self._follow.update([people[i] for i in kept], size)
        if chosen is None:
            return single_frame(size)
        self._last = centres[order[kept[chosen]]]
        return from_wholebody(people[kept[chosen]].points, people[kept[chosen]].scores, size)

    def _people(self, frame: Picture) -> Points:
        """Boxes [N,4] of people (left, top, right, bottom) in pixels."""
        values, scale = letterbox(frame)
        rows = decode_yolox(self._detector(values)[0][0].astype(np.float64))
        half = rows[:, 2:4] / 2
        boxes = np.concatenate([rows[:, :2] - half, rows[:, :2] + half], axis=1) / scale
        people = distinct_boxes(boxes, rows[:, 4] * rows[:, _PERSON], _LEAST_SCORE, _SAME_PERSON)
        return np.asarray(boxes[people])

    def _keypoints(self, frame: Picture, centre: Points, sides: Points) -> tuple[Points, Points]:
        """Points [133,2] in pixels and scores [133] of the person in a box."""
        import cv2

        width = max(sides[0], sides[1] * _POSE_WIDTH / _POSE_HEIGHT, 1.0) * _MARGIN
        step = width / _POSE_WIDTH  # picture pixels per pixel of the crop
        corner = centre - step * np.array([_POSE_WIDTH, _POSE_HEIGHT]) / 2
        back = np.array([[step, 0.0, corner[0]], [0.0, step, corner[1]]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        crop = cv2.warpAffine(frame, back, (_POSE_WIDTH, _POSE_HEIGHT), flags=flags)
        values = ((crop - _MEAN) / _SPREAD).transpose(2, 0, 1)[None]
        outputs = self._pose(np.ascontiguousarray(values, np.float32))
        _expect(len(outputs) == 2, [output.shape for output in outputs], "DWPose")
        points, scores = decode_simcc(outputs[0][0], outputs[1][0])
        return points * step + corner, scores


def letterbox(frame: Picture) -> tuple[npt.NDArray[np.float32], float]:
    """The detector's input float32 [1,3,640,640] (BGR, 0 to 255, padded with grey), and the scale."""
    import cv2

    height, width = frame.shape[:2]
    scale = min(_DETECTOR_PIXELS / height, _DETECTOR_PIXELS / width)
    inside = (max(1, int(width * scale)), max(1, int(height * scale)))
    padded = np.full((_DETECTOR_PIXELS, _DETECTOR_PIXELS, 3), _GREY, np.float32)
    padded[: inside[1], : inside[0]] = cv2.resize(frame, inside, interpolation=cv2.INTER_LINEAR)[..., ::-1]
    return np.ascontiguousarray(padded.transpose(2, 0, 1))[None], scale


def decode_yolox(rows: Points) -> Points:
    """Raw YOLOX rows [8400,5+classes] with their boxes in input pixels: centre x and y, width, height.

    Centres are offsets from the cells of three grids, sizes logarithms, both in units of the grid's stride.
    """
    cells, strides = [], []
    for stride in _STRIDES:
        count = _DETECTOR_PIXELS // stride
        ys, xs = np.indices((count, count))
        cells.append(np.stack([xs, ys], axis=-1).reshape(-1, 2))
        strides.append(np.full((count * count, 1), stride))
    stride_of = np.concatenate(strides)
    _expect(rows.ndim == 2 and len(rows) == len(stride_of) and rows.shape[1] > _PERSON, rows.shape, "YOLOX")
    decoded = rows.copy()
    decoded[:, :2] = (rows[:, :2] + np.concatenate(cells)) * stride_of
    decoded[:, 2:4] = np.exp(rows[:, 2:4]) * stride_of
    return decoded


def decode_simcc(horizontal: Points, vertical: Points) -> tuple[Points, Points]:
    """Points [133,2] in pixels of the crop and scores [133] from one row of classes per point and axis.

    Two classes stand for a pixel; the score is the smaller of the two peaks.
    """
    shapes = (_POINTS, _POSE_WIDTH * _SPLIT), (_POINTS, _POSE_HEIGHT * _SPLIT)
    _expect((horizontal.shape, vertical.shape) == shapes, (horizontal.shape, vertical.shape), "DWPose")
    points = np.stack([horizontal.argmax(axis=1), vertical.argmax(axis=1)], axis=1) / _SPLIT
    return points, np.minimum(horizontal.max(axis=1), vertical.max(axis=1)).astype(np.float64)


def from_wholebody(points: Points, scores: Points, size: tuple[int, int]) -> PoseSequence:
    """One frame from points [133,2] in pixels of a picture of `size` (width, height) and scores [133].

    The neck is the middle of the shoulders, with score 1 if both are above 0.3 and 0 otherwise. Scores are
    brought to [0,1].
    """
    points, scores = points / np.array(size), np.clip(scores, 0, 1)
    shoulders = [_LEFT_SHOULDER, _RIGHT_SHOULDER]
    body = np.concatenate([points[:17], points[shoulders].mean(axis=0, keepdims=True)])
    body_score = np.append(scores[:17], float((scores[shoulders] > _SHOULDER_SEEN).all()))
    return single_frame(
        size,
        body=body[list(_BODY)],
        body_score=body_score[list(_BODY)],
        hands=np.stack([points[_LEFT_HAND], points[_RIGHT_HAND]]),
        hands_score=np.stack([scores[_LEFT_HAND], scores[_RIGHT_HAND]]),
        face=points[_FACE],
        face_score=scores[_FACE],
    )


def _expect(fits: bool, shape: object, network: str) -> None:
    if not fits:
        raise InputError(
            f"The {network} network gives outputs of shape {shape}.",
            remedy="Give yolox_l.onnx as the detector and dw-ll_ucoco_384.onnx as the pose network.",
            field="estimator",
        )


def _network_path(given: PathLike | None, variable: str, what: str) -> PathLike:
    path = given or os.environ.get(variable)
    if not path or not Path(path).is_file():
        raise InputError(
            f"DWPose's {what} is " + (f"not at {path}." if path else "not given."),
            remedy=f"Set {variable} to the ONNX file's path, or use the estimator 'mediapipe'.",
            field="estimator",
        )
    return path
