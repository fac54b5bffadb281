"""Finding a person and the 33 points of the body (MediaPipe's pose networks).

Method: BlazePose, arXiv 2006.10204; numbers are those of MediaPipe's published pose graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .crops import Crop, Picture, Points
from .models import FOLDER, Network, sigmoid
from .people import distinct_boxes

PRESENT = 0.5
"""A person, hand or face is there if its network says so with at least this probability."""
_DETECTOR_PIXELS, _LANDMARK_PIXELS, _CROP_SCALE = 224, 256, 1.25
_STRIDES = ((8, 2), (16, 2), (32, 6))  # of the detector's grids, with the number of anchors per cell
_SAME_PERSON = 0.3  # overlap of boxes
_WINDOW, _SURE = 3, 0.5  # heatmap cells on each side; least peak that may move a point
_POINTS = 33  # of the network's 39: two more give the next crop, the rest are unused
_CENTRE, _EDGE = 33, 34


@dataclass(frozen=True, slots=True)
class Candidate:
    """A person that the detector sees: the middle of the hips and a point on the circle around the body."""

    centre: Points
    edge: Points

    @property
    def radius(self) -> float:
        """In picture pixels."""
        return float(np.hypot(*(self.edge - self.centre)))

    @property
    def crop(self) -> Crop:
        return Crop.pointing(self.centre, self.edge, 2 * self.radius * _CROP_SCALE)


@dataclass(frozen=True, slots=True)
class Body:
    """The 33 points of MediaPipe's body in picture pixels, and where to look in the next picture."""

    points: Points
    """[33,2]"""
    visibility: Points
    """[33] in [0,1]; falls for what is hidden or outside the picture"""
    presence: float
    """Probability that the crop showed a person."""
    next_crop: Crop


class BodyDetector:
    """Finds all people in a picture."""

    def __init__(self, threads: int | None) -> None:
        self._network = Network(FOLDER / "pose_detection.onnx", threads)
        self._anchors = _anchors()

    def __call__(self, picture: Picture) -> list[Candidate]:
        """The people in an RGB picture, the surest first."""
        crop = Crop.whole(picture)
        values = crop.cut(picture, _DETECTOR_PIXELS) / np.float32(127.5) - np.float32(1)
        raw, logits = self._network(values, ["Identity", "Identity_1"])
        scores = sigmoid(logits[0, :, 0])
        order = np.argsort(-scores, kind="stable")
        order = order[scores[order] >= PRESENT]
        raw = raw[0, order].astype(np.float64) / _DETECTOR_PIXELS
        anchors = self._anchors[order]
        centres = raw[:, :2] + anchors
        boxes = np.concatenate([centres - raw[:, 2:4] / 2, centres + raw[:, 2:4] / 2], axis=1)
        hips, edges = (crop.to_picture(raw[:, i : i + 2] + anchors) for i in (4, 6))
        return [Candidate(hips[i], edges[i]) for i in distinct_boxes(boxes, _SAME_PERSON)]


class BodyTracker:
    """Finds the points of the body inside a crop."""

    def __init__(self, threads: int | None) -> None:
        self._network = Network(FOLDER / "pose_landmark_full.onnx", threads)

    def __call__(self, picture: Picture, crop: Crop) -> Body:
        values = crop.cut(picture, _LANDMARK_PIXELS) / np.float32(255)
        rows, presence, heatmaps = self._network(values, ["Identity", "Identity_1", "Identity_3"])
        rows = rows.reshape(-1, 5).astype(np.float64)
        fractions = refine(rows[:, :2] / _LANDMARK_PIXELS, sigmoid(heatmaps[0]))
        points = crop.to_picture(fractions)
        following = Candidate(points[_CENTRE], points[_EDGE])
        return Body(points[:_POINTS], sigmoid(rows[:_POINTS, 3]), float(presence.item()), following.crop)


def refine(points: Points, heatmaps: Points) -> Points:
    """Move points [P,2] (fractions) to the centre of mass of their heatmaps [H,W,P] in a 7x7 window.

    A point keeps its place if it lies outside, or if its window has no peak of at least 0.5.
    """
    height, width = heatmaps.shape[:2]
    refined = points.copy()
    for index, (x, y) in enumerate(points):
        column, row = int(np.floor(x * width)), int(np.floor(y * height))
        if not (0 <= column < width and 0 <= row < height):
            continue
        top, left = max(0, row - _WINDOW), max(0, column - _WINDOW)
        window = heatmaps[top : row + _WINDOW + 1, left : column + _WINDOW + 1, index]
        if window.max() >= _SURE:
            rows, columns = np.indices(window.shape)
            total = window.sum()
            refined[index] = (
                (left + (columns * window).sum() / total) / width,
                (top + (rows * window).sum() / total) / height,
            )
    return refined


def _anchors() -> Points:
    """Centres [2254,2] of the detector's anchors in fractions of the picture."""
    grids = []
    for stride, repeats in _STRIDES:
        cells = _DETECTOR_PIXELS // stride
        rows, columns = np.indices((cells, cells))
        grid = (np.stack([columns, rows], axis=-1).reshape(-1, 2) + 0.5) / cells
        grids.append(np.repeat(grid, repeats, axis=0))
    return np.concatenate(grids)
