"""What MediaPipe's networks find in crops of a picture: people, the 33 points of a body, hands and faces.

Method: BlazePose, arXiv 2006.10204; numbers are those of MediaPipe's published graphs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .network import FOLDER, OnnxNetwork, Picture, Points, distinct_boxes, sigmoid

PRESENT = 0.5
"""A person, hand or face is there if its network says so with at least this probability."""
_DETECTOR_PIXELS, _LANDMARK_PIXELS, _CROP_SCALE = 224, 256, 1.25
_STRIDES = ((8, 2), (16, 2), (32, 6))  # of the detector's grids, with the number of anchors per cell
_SAME_PERSON = 0.3  # overlap of boxes
_WINDOW, _SURE = 3, 0.5  # heatmap cells on each side; least peak that may move a point
_POINTS = 33  # of the network's 39: two more give the next crop, the rest are unused
_CENTRE, _EDGE = 33, 34

NOSE = 0
"""Among the body's points."""
_LEFT_EYE, _RIGHT_EYE, _MOUTH = 2, 5, (9, 10)
HAND_ROOTS = ((15, 19, 17), (16, 20, 18))
"""Wrist, index and little finger's base among the body's points, of the left and of the right hand."""
_PALM = (0, 1, 2, 3, 5, 6, 9, 10, 13, 14, 17, 18)
_EYES = (33, 263)


@dataclass(frozen=True, slots=True)
class Region:
    """A square of `side` pixels around `centre`, turned by `angle` (radians, clockwise as seen)."""

    centre: tuple[float, float]
    side: float
    angle: float = 0.0

    @classmethod
    def whole(cls, picture: Picture) -> Region:
        """The smallest upright square around a picture; what is beyond its edge is black."""
        height, width = picture.shape[:2]
        return cls((width / 2, height / 2), float(max(width, height)))

    @classmethod
    def squares(cls, picture: Picture) -> list[Region]:
        """Squares as large as a long picture is narrow, each half over the next; none of one that is not long."""
        height, width = picture.shape[:2]
        side = float(min(height, width))
        count = math.ceil(2 * max(height, width) / side) - 1
        if count < 2:
            return []
        places = np.linspace(side / 2, max(height, width) - side / 2, count).tolist()
        return [cls((place, side / 2) if width > height else (side / 2, place), side) for place in places]

    @classmethod
    def pointing(cls, start: npt.ArrayLike, end: npt.ArrayLike, side: float) -> Region:
        """Around `start`, turned so that `end` lies straight above it."""
        (x0, y0), (x1, y1) = np.asarray(start, float), np.asarray(end, float)
        return cls((float(x0), float(y0)), max(side, 1.0), math.atan2(x1 - x0, y0 - y1))

    @classmethod
    def around(cls, points: Points, angle: float, scale: float) -> Region:
        """The box of points [P,2] in a frame turned by `angle`, made square, its side times `scale`."""
        turn = _rotation(angle)
        turned = points @ turn  # by the transpose: into the crop's own axes
        low, high = turned.min(axis=0), turned.max(axis=0)
        x, y = turn @ ((low + high) / 2)
        return cls((float(x), float(y)), max(float((high - low).max()) * scale, 1.0), angle)

    def shifted(self, right: float, down: float) -> Region:
        """Moved along its own axes, in fractions of its side."""
        x, y = _rotation(self.angle) @ np.array([right, down]) * self.side
        return self.moved((x, y))

    def moved(self, step: npt.ArrayLike) -> Region:
        """Moved by `step` picture pixels (x, y)."""
        x, y = np.asarray(step, float)
        return replace(self, centre=(self.centre[0] + float(x), self.centre[1] + float(y)))

    def to_picture(self, points: npt.NDArray[Any]) -> Points:
        """Points [...,2] in fractions of the crop to picture pixels, float64."""
        offsets = (points.astype(np.float64) - 0.5) * self.side
        return np.asarray(offsets @ _rotation(self.angle).T + np.array(self.centre))

    def cut(self, picture: Picture, pixels: int) -> npt.NDArray[np.float32]:
        """The crop as float32 [1,pixels,pixels,3] with values 0 to 255, bilinear, black beyond the edge."""
        import cv2

        corners = self.to_picture(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
        back = np.column_stack([(corners[1:] - corners[0]).T / pixels, corners[0]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        cut = cv2.warpAffine(picture, back, (pixels, pixels), flags=flags)
        return cut[None].astype(np.float32)


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
    def crop(self) -> Region:
        return Region.pointing(self.centre, self.edge, 2 * self.radius * _CROP_SCALE)


@dataclass(frozen=True, slots=True)
class Body:
    """The 33 points of MediaPipe's body in picture pixels, and where to look in the next picture."""

    points: Points
    """[33,2]"""
    visibility: Points
    """[33] in [0,1]; falls for what is hidden or outside the picture"""
    presence: float
    """Probability that the crop showed a person."""
    next_crop: Region


class BodyDetector:
    """Finds all people in a picture."""

    def __init__(self, threads: int | None) -> None:
        self._network = OnnxNetwork(FOLDER / "pose_detection.onnx", threads)
        self._anchors = _anchors()

    def __call__(self, picture: Picture, crop: Region | None = None) -> list[Candidate]:
        """The people in an RGB picture, or in a crop of it, the surest first."""
        crop = crop or Region.whole(picture)
        values = crop.cut(picture, _DETECTOR_PIXELS) / np.float32(127.5) - np.float32(1)
        raw, logits = self._network(values, ["Identity", "Identity_1"])
        raw = raw[0].astype(np.float64) / _DETECTOR_PIXELS
        centres = raw[:, :2] + self._anchors
        boxes = np.concatenate([centres - raw[:, 2:4] / 2, centres + raw[:, 2:4] / 2], axis=1)
        hips, edges = (crop.to_picture(raw[:, i : i + 2] + self._anchors) for i in (4, 6))
        people = distinct_boxes(boxes, sigmoid(logits[0, :, 0]), PRESENT, _SAME_PERSON)
        return [Candidate(hips[i], edges[i]) for i in people]


class BodyTracker:
    """Finds the points of the body inside a crop."""

    def __init__(self, threads: int | None) -> None:
        self._network = OnnxNetwork(FOLDER / "pose_landmark_full.onnx", threads)

    def __call__(self, picture: Picture, crop: Region) -> Body:
        values = crop.cut(picture, _LANDMARK_PIXELS) / np.float32(255)
        rows, presence, heatmaps = self._network(values, ["Identity", "Identity_1", "Identity_3"])
        rows = rows.reshape(-1, 5).astype(np.float64)
        fractions = refine(rows[:, :2] / _LANDMARK_PIXELS, sigmoid(heatmaps[0]))
        points = crop.to_picture(fractions)
        following = Candidate(points[_CENTRE], points[_EDGE])
        return Body(points[:_POINTS], sigmoid(rows[:_POINTS, 3]), float(presence.item()), following.crop)


class Part(NamedTuple):
    """Points of a hand [21,2] or face [468,2] in picture pixels, and the probability that it is there."""

    points: Points
    presence: float


class PartFinder(ABC):
    """One kind of part: its network, which comes with the package, and its crops."""

    file: str
    outputs: list[str]
    """The network's points [P,3] and presence."""
    pixels: int
    """Sides of its input."""
    root: int
    """The point that the body has too: the wrist, the nose."""

    def __init__(self, threads: int | None) -> None:
        self._network = OnnxNetwork(FOLDER / self.file, threads)

    def find(self, picture: Picture, crop: Region) -> Part:
        """The part in a crop."""
        values = crop.cut(picture, self.pixels) / np.float32(255)
        rows, presence = self._network(values, self.outputs)
        fractions = rows.reshape(-1, 3)[:, :2] / self.pixels
        return Part(crop.to_picture(fractions), self.probability(presence.item()))

    @staticmethod
    def probability(presence: float) -> float:
        """The presence that the network states, as a probability."""
        return presence

    @abstractmethod
    def crop_of(self, points: Points) -> Region:
        """The crop for the next picture."""


class HandFinder(PartFinder):
    """21 points of a hand, wrist first, then thumb to little finger from the palm outwards."""

    file, outputs, pixels, root = "hand_landmark_full.onnx", ["Identity", "Identity_1"], 224, 0

    def crop_of(self, points: Points) -> Region:
        """The crop for the next picture: around the palm, fingers up."""
        index, middle, ring = points[5], points[9], points[13]
        x, y = ((index + ring) / 2 + middle) / 2 - points[0]
        return Region.around(points[list(_PALM)], math.atan2(x, -y), 2.0).shifted(0, -0.1)

    @staticmethod
    def guess(body: Body, side: int) -> Region:
        """A crop from the body alone; `side` 0 is the left hand."""
        wrist, index, little = (body.points[i] for i in HAND_ROOTS[side])
        middle = (2 * index + little) / 3
        length = float(np.hypot(*(middle - wrist)))
        crop = Region.pointing(wrist, middle, 2 * length * 2.7)
        return crop.moved(middle - wrist).shifted(0, -0.1)


class FaceFinder(PartFinder):
    """468 points of a face, MediaPipe's mesh."""

    file, outputs, pixels, root = "face_landmark.onnx", ["conv2d_21", "conv2d_31"], 192, 4

    @staticmethod
    def probability(presence: float) -> float:
        return float(sigmoid(presence))

    def crop_of(self, points: Points) -> Region:
        """The crop for the next picture: around the face, eyes level."""
        right, left = (points[i] for i in _EYES)
        x, y = left - right
        return Region.around(points, math.atan2(y, x), 1.5)

    @staticmethod
    def guess(body: Body) -> Region:
        """A crop from the body alone: a face is about 2.7 times as long as from the eyes to the mouth."""
        eyes = (body.points[_LEFT_EYE] + body.points[_RIGHT_EYE]) / 2
        mouth = body.points[list(_MOUTH)].mean(axis=0)
        apart = float(np.hypot(*(body.points[_LEFT_EYE] - body.points[_RIGHT_EYE])))
        length = max(float(np.hypot(*(eyes - mouth))), apart)
        return Region.pointing(mouth, eyes, 1.5 * 2.7 * length).moved((eyes - mouth) / 2)


@dataclass(slots=True)
class PartTracker:
    """Follows one part from picture to picture.

    The part is looked for where it was in the last picture, moved along with the body. Only where it was not
    seen, the crop is guessed from the body's points and improved once.
    """

    finder: PartFinder
    _crop: Region | None = None
    _anchor: Points | None = None

    def find(self, picture: Picture, guess: Region, anchor: Points) -> Part:
        """The part in this picture.

        `guess` is the crop that the body suggests. `anchor` is the body's own point for the part (wrist or
        nose); the last crop is moved as far as this point has moved.
        """
        part = None
        if self._crop is not None and self._anchor is not None:
            part = self._look(picture, self._crop.moved(anchor - self._anchor), anchor)
        if part is None or part.presence < PRESENT:
            part = self._look(picture, guess, anchor)
            if part.presence >= PRESENT:
                better = self._look(picture, self.finder.crop_of(part.points), anchor)
                part = better if better.presence >= PRESENT else part
        self._crop = self.finder.crop_of(part.points) if part.presence >= PRESENT else None
        self._anchor = anchor
        return part

    def _look(self, picture: Picture, crop: Region, anchor: Points) -> Part:
        """A part far from its place on the body is another one (the other hand, another face): presence 0."""
        part = self.finder.find(picture, crop)
        away = float(np.hypot(*(part.points[self.finder.root] - anchor)))
        return part if away <= crop.side / 2 else part._replace(presence=0.0)

    def forget(self) -> None:
        self._crop = None


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


def _rotation(angle: float) -> Points:
    """From the axes of a crop to those of the picture."""
    cosine, sine = math.cos(angle), math.sin(angle)
    return np.array([[cosine, -sine], [sine, cosine]])
