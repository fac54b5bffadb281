"""How many people a picture shows."""

from __future__ import annotations

import numpy as np

from ...pose.body import PRESENT, BodyDetector, BodyTracker
from ...pose.crops import Picture, Points
from ...pose.frames import shrink

_LONGEST = 1280  # pixels
_NOTABLE = 0.4  # a person smaller than this share of the largest is background
_APART = 0.35  # two bodies nearer than this share of the largest's radius are one
_HIPS = (23, 24)


class PeopleCounter:
    """Counts people who are seen by a detector, confirmed by the body network, and no mere background.

    It comes with the package and works beside every estimator. Not for use by two threads at once.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._detect, self._track = BodyDetector(threads), BodyTracker(threads)

    def __call__(self, frame: Picture) -> int:
        """The number of people in an RGB picture uint8 [H,W,3]."""
        picture = shrink(frame, _LONGEST)
        seen = self._detect(picture)
        if len(seen) < 2:
            return len(seen)
        largest = max(person.radius for person in seen)
        places: list[Points] = []
        for person in seen:
            if person.radius < _NOTABLE * largest:
                continue
            body = self._track(picture, person.crop)
            hips = body.points[list(_HIPS)].mean(axis=0)
            apart = all(np.hypot(*(hips - place)) > _APART * largest for place in places)
            if body.presence >= PRESENT and apart:
                places.append(hips)
        return len(places)
