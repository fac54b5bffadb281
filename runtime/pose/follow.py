"""Which of several people in a picture is meant, and who is who in the next picture."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import SettingsError
from .network import Points
from .rescale import VISIBLE
from .sequence import SHAPES, PoseSequence

Flags = npt.NDArray[np.bool_]

MOST_PEOPLE = 8
"""As many are told apart; others in the picture are left out."""
SAME = 0.25
"""Someone is the person of a track if they are at least so much alike, in [0, 1]."""
TWICE = 0.6
"""Two findings that are more alike than this, at the same time, are one person."""
FADE = 0.9
"""Confidence of a pose that is held, from frame to frame: drawn for 11 frames, as joints are above 0.3."""
_POINT_SPREAD = 0.15  # how far a joint may be from its place, as a share of the person's size
_FORGET = 60  # frames after which a person who was not meant is forgotten
_REACH, _REACH_GROWS, _FARTHEST = 0.5, 0.1, 3.0  # how far someone may be from their place, in their own sizes
_STEPS = 7  # from which the velocity is taken
_ROUNDING = 1e-6  # frames
_SLOWS = 0.95  # of the velocity from frame to frame, of someone who is not seen


@dataclass(frozen=True, eq=False)
class Seen:
    """A person found in one picture."""

    points: Points
    """[P,2] in pixels; P is the same for everybody."""
    scores: Points
    """[P] in [0, 1]."""

    @cached_property
    def box(self) -> Points:
        """(left, top, right, bottom) of the visible points, else of those with any confidence, else of all."""
        counts = self.scores > VISIBLE
        if counts.sum() < 2:
            counts = self.scores > 0
        points = self.points[counts] if counts.any() else self.points
        return np.concatenate([points.min(axis=0), points.max(axis=0)])

    @cached_property
    def centre(self) -> Points:
        """The middle of the box."""
        return (self.box[:2] + self.box[2:]) / 2

    @cached_property
    def size(self) -> float:
        """The diagonal of the box in pixels."""
        return max(float(np.hypot(*(self.box[2:] - self.box[:2]))), 1.0)

    def moved(self, step: Points) -> Seen:
        """The same person elsewhere."""
        return replace(self, points=self.points + step)


@dataclass(eq=False)
class Track:
    """One person from picture to picture."""

    seen: Seen
    """As they were seen last."""
    steps: deque[Points] = field(default_factory=lambda: deque(maxlen=_STEPS))
    """Pixels a frame, of the newest frames."""
    missed: int = 0
    """Frames since they were seen."""

    @property
    def expected(self) -> Seen:
        """Where they should be in the next picture; someone who is not seen is taken to slow down."""
        frames = (1 - _SLOWS ** (self.missed + 1)) / (1 - _SLOWS)
        # The median: of someone who is half hidden, the estimator is wrong for a frame or two.
        velocity = np.median(self.steps, axis=0) if self.steps else np.zeros(2)
        return self.seen.moved(velocity * frames)

    def meet(self, seen: Seen) -> None:
        """They were found."""
        self.steps.append((seen.centre - self.seen.centre) / (self.missed + 1))
        self.seen, self.missed = seen, 0


class Follower:
    """Follows one of the people in the pictures of a clip.

    `person` says whom: see `Settings.person`. All people are followed, so that after a crossing each one is who they
    were: those seen are given to the tracks so that as much as possible is alike, by the joints and boxes and where a
    track was heading. Someone who is hidden is waited for where they should be.
    """

    def __init__(self, person: str | None = None) -> None:
        self.person = person
        self.tracks: list[Track] = []
        self._chosen: Track | None = None
        self.most = 0
        """The most people who were seen in one picture."""

    @property
    def chosen(self) -> Track | None:
        """The one who is meant; None before they were seen."""
        return self._chosen

    @property
    def crowded(self) -> bool:
        """Whether there are others."""
        return len(self.tracks) > 1

    def update(self, people: Sequence[Seen], size: tuple[int, int]) -> int | None:
        """Which of the people in the next picture of `size` (width, height) is meant; None if they are not there.

        People who are new come in the order in which an estimator would take them.
        """
        self.most = max(self.most, len(people))
        where = [(track.expected, track.missed) for track in self.tracks]
        pairs = assign(
            [[self._alike(expected, missed, seen) for seen in people] for expected, missed in where]
        )
        matched = {number: self.tracks[index] for index, number in pairs}
        for track in self.tracks:
            track.missed += 1
        for number, track in matched.items():
            track.missed -= 1
            track.meet(people[number])
        for number, seen in enumerate(people):
            if number not in matched:
                self.tracks.append(Track(seen))
                matched[number] = self.tracks[-1]
        if self._chosen is None:
            chosen = choose(people, size, self.person)
            self._chosen = None if chosen is None else matched[chosen]
        elif people and self._chosen.missed and (not pairs or self._chosen.missed > _FORGET):
            # Another scene, or they are not coming back: whoever is nearest to where they were.
            away = [np.hypot(*(seen.centre - self._chosen.seen.centre)) for seen in people]
            self._chosen = matched[int(np.argmin(away))]
        self.tracks = [one for one in self.tracks if one is self._chosen or one.missed < _FORGET]
        return next((number for number, track in matched.items() if track is self._chosen), None)

    def check_found(self, setting: str = "person") -> None:
        """At the end of a clip: raise `SettingsError` if the one who is meant was never there, though others were.

        `setting` is the name of the one that says who.
        """
        if self._chosen is None and self.most:
            raise SettingsError(
                f"{setting} is {self.person}, and no more than {_count(self.most)} seen.",
                remedy="Choose one of those who are there, or largest, centre, left or right.",
                field=f"settings.{setting}",
            )

    @staticmethod
    def _alike(expected: Seen, missed: int, seen: Seen) -> float:
        """How sure it is that this is who is expected, not seen for so many frames; 0 where they are not to be taken
        for one."""
        reach = min(_REACH + _REACH_GROWS * missed, _FARTHEST)
        near = 1 - float(np.hypot(*(seen.centre - expected.centre))) / (reach * expected.size)
        if near <= 0:
            return 0.0
        found = (likeness(expected, seen) + near) / 2
        return found if found >= SAME / 2 else 0.0


def _count(people: int) -> str:
    return "1 person was" if people == 1 else f"{people} people were"


def likeness(one: Seen, other: Seen) -> float:
    """The mean of the likeness of the joints (OKS, as COCO has it) and the overlap of the boxes (IoU), in [0, 1]."""
    both = np.minimum(one.scores, other.scores)
    away = np.hypot(*(one.points - other.points).T) / (_POINT_SPREAD * max(one.size, other.size) / 2)
    joints = float((both * np.exp(-(away**2) / 2)).sum() / max(float(both.sum()), 1e-9))
    return (joints + overlap(one.box, other.box)) / 2


def overlap(one: Points, other: Points) -> float:
    """Intersection over union of two boxes (left, top, right, bottom)."""
    shared = np.prod(np.maximum(np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2]), 0))
    areas = np.prod(np.maximum(one[2:] - one[:2], 1e-9)) + np.prod(np.maximum(other[2:] - other[:2], 1e-9))
    return float(shared / (areas - shared))


def distinct(people: Sequence[Seen]) -> list[int]:
    """Which of several findings in one picture are different people; of those of one person the first is kept."""
    kept: list[int] = []
    for number, seen in enumerate(people):
        if all(likeness(seen, people[other]) <= TWICE for other in kept):
            kept.append(number)
    return kept


def assign(alike: list[list[float]]) -> list[tuple[int, int]]:
    """(row, column) pairs, each row and column in one at most, with the largest sum; pairs of 0 are left out.

    A linear assignment, by dynamic programming over the columns that are taken: there are few people.
    """

    rows = [row for row, values in enumerate(alike) if any(value > 0 for value in values)]

    @cache
    def best(place: int, taken: int) -> tuple[float, tuple[tuple[int, int], ...]]:
        if place == len(rows):
            return 0.0, ()
        found = best(place + 1, taken)
        for column, value in enumerate(alike[rows[place]]):
            if value > 0 and not taken >> column & 1:
                rest, pairs = best(place + 1, taken | 1 << column)
                if value + rest > found[0]:
                    found = value + rest, ((rows[place], column), *pairs)
        return found

    return list(best(0, 0)[1])


def choose(people: Sequence[Seen], size: tuple[int, int], person: str | None) -> int | None:
    """Which of the people in a picture of `size` (width, height) is meant; None if they are not there.

    `person` is as in `Settings.person`; None takes the first.
    """
    if not people:
        return None
    centres = np.array([seen.centre for seen in people])
    if person is None:
        return 0
    if person == "largest":
        return int(np.argmax([seen.size for seen in people]))
    if person == "centre":
        return int(np.argmin(np.hypot(*(centres - np.array(size) / 2).T)))
    order = np.argsort(centres[:, 0], kind="stable")
    if person in ("left", "right"):
        return int(order[0 if person == "left" else -1])
    if person.isdecimal():
        return int(order[int(person) - 1]) if int(person) <= len(people) else None
    box = np.array([float(side) for side in person.split(",")])
    if box.max() <= 1:
        box = box * np.tile(size, 2)
    overlaps = [overlap(seen.box, box) for seen in people]
    return int(np.argmax(overlaps)) if max(overlaps) > 0 else None


def hold_poses(poses: PoseSequence, hold: float | None = None) -> tuple[PoseSequence, Flags]:
    """A motion in which frames without the person hold the last pose, and which frames these are: bool [F].

    From frame to frame their confidence falls by `FADE`; with `hold`, in seconds, it falls to `VISIBLE` of what it
    was within that time, after which nobody is there. The first frames take the first pose that follows.
    """
    seen = poses.body_score.max(axis=1) > 0
    there = np.flatnonzero(seen)
    if not len(there) or len(there) == len(poses):
        return poses, np.zeros(len(poses), bool)
    frames = np.arange(len(poses))
    before = np.searchsorted(there, frames, side="right") - 1
    source = there[np.maximum(before, 0)]
    away = np.abs(frames - source)
    if hold is None:
        fade = FADE**away
    else:
        longest = max(hold * poses.fps, _ROUNDING)
        fade = np.where(away <= longest + _ROUNDING, VISIBLE ** (away / longest), 0)
    held = poses.take(source)
    faded: dict[str, Any] = {
        name: getattr(held, name) * fade.astype(np.float32).reshape(-1, *[1] * (getattr(held, name).ndim - 1))
        for name in SHAPES
        if name.endswith("score")
    }
    return replace(held, **faded), ~seen
