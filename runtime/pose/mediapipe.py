"""The default estimator: MediaPipe's networks, which come with the package."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .body import PRESENT, Body, BodyDetector, BodyTracker, Candidate
from .crops import Crop, Picture
from .frames import check_frame, shrink, single
from .layout import FACE, FACE_IN_BODY, face_in_body, to_openpose
from .parts import HAND_ROOTS, NOSE, FaceFinder, HandFinder, PartTracker
from .people import rank
from .sequence import PoseSequence

_LONGEST = 1280  # pixels; a person filling such a picture is still larger than every network's input
_TRIES = 3  # how many of the people seen are looked at more closely


class MediapipeEstimator:
    """Follows one person through pictures given one after another.

    The first picture's largest person near the middle is taken; whoever is lost is looked for near the last
    place. `threads` is the number of threads of a network's run, None for all cores. Not for use by two
    threads at once.
    """

    def __init__(self, *, threads: int | None = None) -> None:
        self._detect = BodyDetector(threads)
        self._track = BodyTracker(threads)
        hand, face = HandFinder(threads), FaceFinder(threads)
        self._hands = (PartTracker(hand), PartTracker(hand))
        self._face = PartTracker(face)
        self._crop: Crop | None = None
        self._last: Crop | None = None

    def reset(self) -> None:
        """Forget the person: the next picture begins another clip."""
        self._crop = self._last = None
        for part in (*self._hands, self._face):
            part.forget()

    def estimate(self, frame: Picture) -> PoseSequence:
        """The pose in one RGB picture uint8 [H,W,3], as a sequence of one frame (of 1 fps).

        Nobody there gives scores of 0. Raises `MotionError` for another type or shape.
        """
        check_frame(frame)
        height, width = frame.shape[:2]
        picture = shrink(frame, _LONGEST)
        body = self._find_body(picture)
        if body is None:
            self._crop = None
            for part in (*self._hands, self._face):
                part.forget()
            return single((width, height))
        self._crop = self._last = body.next_crop
        return self._whole(picture, body, (width, height))

    def _find_body(self, picture: Picture) -> Body | None:
        if self._crop is not None:
            body = self._track(picture, self._crop)
            if body.presence >= PRESENT:
                return body
        for candidate in self._ranked(picture, self._detect(picture))[:_TRIES]:
            body = self._track(picture, candidate.crop)
            if body.presence >= PRESENT:
                return body
        return None

    def _ranked(self, picture: Picture, people: list[Candidate]) -> list[Candidate]:
        """Those seen, whoever comes into question first."""
        if not people:
            return []
        centres = np.stack([person.centre for person in people])
        radii = np.array([person.radius for person in people])
        last = None if self._last is None else np.array(self._last.centre)
        return [people[i] for i in rank(centres, radii, (picture.shape[1], picture.shape[0]), last)]

    def _whole(self, picture: Picture, body: Body, size: tuple[int, int]) -> PoseSequence:
        scale = np.array([picture.shape[1], picture.shape[0]], np.float64)
        points, score = to_openpose(body.points, body.visibility)
        hands, hands_score = np.empty((2, 21, 2)), np.empty((2, 21))
        for side, tracker in enumerate(self._hands):
            wrist = HAND_ROOTS[side][0]
            hand = tracker.find(picture, HandFinder.guess(body, side), body.points[wrist])
            hands[side], hands_score[side] = hand.points, _score(hand.presence, body.visibility[wrist])
        face = self._face.find(picture, FaceFinder.guess(body), body.points[NOSE])
        face_score = np.full(68, _score(face.presence, body.visibility[NOSE]))
        if face.presence >= PRESENT:  # the face's crop shows them much larger than the body's
            points[list(FACE_IN_BODY)] = face_in_body(face.points)
        return single(
            size,
            points / scale,
            score,
            hands / scale,
            hands_score,
            face.points[list(FACE)] / scale,
            face_score,
        )


def _score(presence: float, visibility: np.float64 | npt.NDArray[np.float64]) -> float:
    """One score for all points of a part: it is there, and the body's point for it is not hidden."""
    return float(np.clip(presence * visibility, 0, 1))
