"""The default estimator: MediaPipe's networks, which come with the package.

Their 33 body points and 468 face points become OpenPose's 18 and dlib's 68.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .follow import MOST_PEOPLE, Follower, Seen, Track, distinct
from .landmarks import (
    HAND_ROOTS,
    NOSE,
    PRESENT,
    Body,
    BodyDetector,
    BodyTracker,
    FaceFinder,
    HandFinder,
    PartTracker,
    Region,
)
from .network import Picture, Points, check_frame, rank, shrink
from .sequence import PoseSequence, single_frame

_LONGEST = 1280  # pixels; a person filling such a picture is still larger than every network's input
_LOOK = 5  # frames of one person alone until others are looked for
_HIPS, _APART = (
    (23, 24),
    0.3,
)  # whose middle is nearer to a person's than this share of their radius is theirs
_LEFT_SHOULDER, _RIGHT_SHOULDER = 11, 12
# Of MediaPipe's 33 points, in OpenPose's order; the neck, which is the second, is put in afterwards.
_BODY = (0, 12, 12, 14, 16, 11, 13, 15, 24, 26, 28, 23, 25, 27, 5, 2, 8, 7)
_NECK = 1
FACE = (
    127, 234, 93, 132, 58, 172, 150, 176, 152, 400, 379, 397, 288, 361, 323, 454, 356,  # jaw, right to left
    70, 63, 105, 66, 107, 336, 296, 334, 293, 300,  # brows
    168, 197, 5, 4, 98, 97, 2, 326, 327,  # nose
    33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,  # eyes
    61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181,  # lips outside
    78, 81, 13, 311, 308, 402, 14, 178,  # lips inside
)  # fmt: skip
"""Which of the mesh's 468 points stands for each of dlib's 68."""
FACE_IN_BODY = (0, 14, 15)
"""Nose, right eye and left eye among OpenPose's points."""
_NOSE_TIP, _RIGHT_EYE, _LEFT_EYE = 4, (33, 133), (362, 263)  # an eye is the middle of its corners


class MediapipeEstimator:
    """Follows one person through pictures given one after another.

    `person` says whom, as in `Settings.person`; None takes the first picture's largest near the middle. Where
    several are seen, each of them is looked at in every picture, which takes time for each. `threads` is the number
    of threads of a network's run, None for all cores. Not for use by two threads at once.
    """

    def __init__(self, *, threads: int | None = None, person: str | None = None) -> None:
        self._detect = BodyDetector(threads)
        self._track = BodyTracker(threads)
        hand, face = HandFinder(threads), FaceFinder(threads)
        self._hands = (PartTracker(hand), PartTracker(hand))
        self._face = PartTracker(face)
        self._person = person
        self.reset()

    def reset(self) -> None:
        """Forget the person: the next picture begins another clip."""
        self._follow = Follower(self._person)
        self._crops: list[tuple[Track, Region]] = []
        self._last: Points | None = None
        self._unlooked = 0
        self._lose()

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
        height, width = frame.shape[:2]
        picture = shrink(frame, _LONGEST)
        body = self._find_body(picture, width / picture.shape[1])
        if body is None:
            self._lose()
            return single_frame((width, height))
        self._last = np.array(body.next_crop.centre)
        return self._whole(picture, body, (width, height))

    def _lose(self) -> None:
        for part in (*self._hands, self._face):
            part.forget()

    def _find_body(self, picture: Picture, scale: float) -> Body | None:
        """The body of the person who is followed; others are looked at as well once they were seen.

        `scale`: pixels of the frame in one of the picture; boxes of people are in the frame's.
        """
        bodies = [self._track(picture, crop) for _, crop in self._crops]
        bodies = [body for body in bodies if body.presence >= PRESENT]
        if bodies and not self._follow.crowded and self._unlooked < _LOOK:
            self._unlooked += 1
        else:
            self._unlooked = 0
            bodies += self._detected(picture, bodies)
        people = [Seen(body.points * scale, body.visibility) for body in bodies]
        size = (round(picture.shape[1] * scale), round(picture.shape[0] * scale))
        kept = distinct(people)[:MOST_PEOPLE]
        chosen = self._follow.update([people[i] for i in kept], size)
        body_of = {id(people[i]): bodies[i] for i in kept}
        self._crops = [
            (track, body_of[id(track.seen)].next_crop)
            for track in self._follow.tracks
            if id(track.seen) in body_of
        ]
        return None if chosen is None else bodies[kept[chosen]]

    def _detected(self, picture: Picture, bodies: list[Body]) -> list[Body]:
        """The bodies of people who are not among those that were found already, in the order of preference."""
        people = self._detect(picture)
        chosen = self._follow.chosen
        lost = chosen is not None and chosen.missed > 0
        # Who is asked for, or is not found any more, may be small beside others; or nobody is large.
        if self._person is not None or lost or not (people or bodies):
            people += [person for crop in Region.squares(picture) for person in self._detect(picture, crop)]
        centres = np.array([person.centre for person in people]).reshape(-1, 2)
        radii = np.array([person.radius for person in people])
        found: list[Body] = []
        for index in rank(centres, radii, (picture.shape[1], picture.shape[0]), self._last)[:MOST_PEOPLE]:
            hips = [body.points[list(_HIPS)].mean(axis=0) for body in (*bodies, *found)]
            if all(np.hypot(*(centres[index] - place)) > _APART * radii[index] for place in hips):
                body = self._track(picture, people[index].crop)
                found += [body] if body.presence >= PRESENT else []
        return found

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
        return single_frame(
            size,
            body=points / scale,
            body_score=score,
            hands=hands / scale,
            hands_score=hands_score,
            face=face.points[list(FACE)] / scale,
            face_score=face_score,
        )


def _score(presence: float, visibility: np.float64 | npt.NDArray[np.float64]) -> float:
    """One score for all points of a part: it is there, and the body's point for it is not hidden."""
    return float(np.clip(presence * visibility, 0, 1))


def to_openpose(points: Points, visibility: Points) -> tuple[Points, Points]:
    """18 points [18,2] and scores [18] from MediaPipe's 33.

    The neck is the middle of the shoulders, as sure as the less sure of them.
    """
    body, score = points[list(_BODY)], visibility[list(_BODY)]
    shoulders = [_LEFT_SHOULDER, _RIGHT_SHOULDER]
    body[_NECK] = points[shoulders].mean(axis=0)
    score[_NECK] = np.min(visibility[shoulders])
    return body, score


def face_in_body(mesh: Points) -> Points:
    """Nose, right eye and left eye [3,2] from the face's 468 points."""
    eyes = [mesh[list(corners)].mean(axis=0) for corners in (_RIGHT_EYE, _LEFT_EYE)]
    return np.stack([mesh[_NOSE_TIP], *eyes])
