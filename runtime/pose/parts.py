"""Hands and face, found in crops around the body's wrists and head (MediaPipe's hand and face networks).

Each part is looked for where it was in the last picture, moved along with the body; only where it was not
seen, the crop is guessed from the body's points and improved once. Numbers are those of MediaPipe's graphs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from .body import PRESENT, Body
from .crops import Crop, Picture, Points
from .models import FOLDER, Network, sigmoid

NOSE = 0
"""Among the body's points."""
_LEFT_EYE, _RIGHT_EYE, _MOUTH = 2, 5, (9, 10)
HAND_ROOTS = ((15, 19, 17), (16, 20, 18))
"""Wrist, index and little finger's base among the body's points, of the left and of the right hand."""
_PALM = (0, 1, 2, 3, 5, 6, 9, 10, 13, 14, 17, 18)
_EYES = (33, 263)


class Part(NamedTuple):
    """Points of a hand [21,2] or face [468,2] in picture pixels, and the probability that it is there."""

    points: Points
    presence: float


class Finder(Protocol):
    """Knows one kind of part: its network and its crops."""

    root: int
    """The point that the body has too: the wrist, the nose."""

    def find(self, picture: Picture, crop: Crop) -> Part: ...

    def crop_of(self, points: Points) -> Crop: ...


class HandFinder:
    """21 points of a hand, wrist first, then thumb to little finger from the palm outwards."""

    root = 0
    _pixels = 224

    def __init__(self, threads: int | None) -> None:
        self._network = Network(FOLDER / "hand_landmark_full.onnx", threads)

    def find(self, picture: Picture, crop: Crop) -> Part:
        values = crop.cut(picture, self._pixels) / np.float32(255)
        rows, presence = self._network(values, ["Identity", "Identity_1"])
        fractions = rows.reshape(21, 3)[:, :2] / self._pixels
        return Part(crop.to_picture(fractions), float(presence.item()))

    def crop_of(self, points: Points) -> Crop:
        """The crop for the next picture: around the palm, fingers up."""
        index, middle, ring = points[5], points[9], points[13]
        x, y = ((index + ring) / 2 + middle) / 2 - points[0]
        return Crop.around(points[list(_PALM)], math.atan2(x, -y), 2.0).shifted(0, -0.1)

    @staticmethod
    def guess(body: Body, side: int) -> Crop:
        """A crop from the body alone; `side` 0 is the left hand."""
        wrist, index, little = (body.points[i] for i in HAND_ROOTS[side])
        middle = (2 * index + little) / 3
        length = float(np.hypot(*(middle - wrist)))
        crop = Crop.pointing(wrist, middle, 2 * length * 2.7)
        return crop.moved(middle - wrist).shifted(0, -0.1)


class FaceFinder:
    """468 points of a face, MediaPipe's mesh."""

    root = 4
    _pixels = 192

    def __init__(self, threads: int | None) -> None:
        self._network = Network(FOLDER / "face_landmark.onnx", threads)

    def find(self, picture: Picture, crop: Crop) -> Part:
        values = crop.cut(picture, self._pixels) / np.float32(255)
        rows, logit = self._network(values, ["conv2d_21", "conv2d_31"])
        fractions = rows.reshape(468, 3)[:, :2] / self._pixels
        return Part(crop.to_picture(fractions), float(sigmoid(logit).item()))

    def crop_of(self, points: Points) -> Crop:
        """The crop for the next picture: around the face, eyes level."""
        right, left = (points[i] for i in _EYES)
        x, y = left - right
        return Crop.around(points, math.atan2(y, x), 1.5)

    @staticmethod
    def guess(body: Body) -> Crop:
        """A crop from the body alone: a face is about 2.7 times as long as from the eyes to the mouth."""
        eyes = (body.points[_LEFT_EYE] + body.points[_RIGHT_EYE]) / 2
        mouth = body.points[list(_MOUTH)].mean(axis=0)
        apart = float(np.hypot(*(body.points[_LEFT_EYE] - body.points[_RIGHT_EYE])))
        length = max(float(np.hypot(*(eyes - mouth))), apart)
        return Crop.pointing(mouth, eyes, 1.5 * 2.7 * length).moved((eyes - mouth) / 2)


@dataclass(slots=True)
class PartTracker:
    """Follows one part from picture to picture."""

    finder: Finder
    _crop: Crop | None = None
    _anchor: Points | None = None

    def find(self, picture: Picture, guess: Crop, anchor: Points) -> Part:
        """The part in this picture.

        `guess` is where the body suggests to look, `anchor` the body's own point for it (wrist or nose), with
        whose movement the last crop is carried along.
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

    def _look(self, picture: Picture, crop: Crop, anchor: Points) -> Part:
        """Whatever lies far from its place on the body (the other hand, another face) is not this part."""
        part = self.finder.find(picture, crop)
        away = float(np.hypot(*(part.points[self.finder.root] - anchor)))
        return part if away <= crop.side / 2 else part._replace(presence=0.0)

    def forget(self) -> None:
        self._crop = None
