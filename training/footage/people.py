"""How many people a picture shows."""

from __future__ import annotations

import numpy as np

from ...pose.landmarks import PRESENT, Body, BodyDetector, BodyTracker
from ...pose.network import Picture, shrink

_LONGEST = 1280  # pixels
_MOST = 4  # nobody counts on
_NOTABLE = 0.4  # a person less tall than this share of the tallest is background
_APART = 0.25  # hips nearer than this share of the tallest's height belong to one person
_MARGIN = 0.08  # around a body's points, in its height
_HIPS = (23, 24)
_CLEAR = 0.5


class PeopleCounter:
    """Counts people who are seen by a detector, confirmed by the body network, and no mere background.

    The detector is made for one person, so whoever is found is painted over and it looks again. It comes with
    the package and works beside every estimator. Not for use by two threads at once.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._detect, self._track = BodyDetector(threads), BodyTracker(threads)

    def __call__(self, frame: Picture) -> int:
        """The number of people in an RGB picture uint8 [H,W,3], 4 at most."""
        picture = shrink(frame, _LONGEST)
        painted = picture.copy()
        found: list[Body] = []
        while len(found) < _MOST and (body := self._next(picture, painted, found)) is not None:
            found.append(body)
            left, top, right, bottom = _box(body)
            painted[top:bottom, left:right] = picture.mean(axis=(0, 1)).astype(np.uint8)
        tallest = max(map(_height, found), default=0.0)
        return sum(_height(body) >= _NOTABLE * tallest for body in found)

    def _next(self, picture: Picture, painted: Picture, found: list[Body]) -> Body | None:
        """Somebody else, well seen."""
        for candidate in self._detect(painted):
            body = self._track(picture, candidate.crop)
            if body.presence >= PRESENT and all(_differ(body, other) for other in found):
                return body
        return None


def _differ(one: Body, other: Body) -> bool:
    hips, others = (body.points[list(_HIPS)].mean(axis=0) for body in (one, other))
    return float(np.hypot(*(hips - others))) > _APART * max(_height(one), _height(other))


def _height(body: Body) -> float:
    """From the highest to the lowest of the points that are seen, in pixels."""
    rows = body.points[body.visibility >= _CLEAR, 1]
    return float(np.ptp(rows)) if len(rows) else 0.0


def _box(body: Body) -> tuple[int, int, int, int]:
    """Left, top, right, bottom in pixels."""
    points = body.points[body.visibility >= _CLEAR]
    points = points if len(points) else body.points
    margin = _MARGIN * float(np.ptp(points[:, 1]))
    low, high = np.maximum(points.min(axis=0) - margin, 0), np.maximum(points.max(axis=0) + margin, 0)
    return int(low[0]), int(low[1]), int(high[0]) + 1, int(high[1]) + 1
