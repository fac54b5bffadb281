"""What is measured of a recording before it is cut: poses, changes of picture, numbers of people; kept on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ...errors import InputError, LimitError, MotionError
from ...files import output_errors, write_atomic, write_text
from ...pose import PoseEstimator, PoseSequence
from ...pose.landmarks import PRESENT, Body, BodyDetector, BodyTracker
from ...pose.network import shrink
from ...pose.sequence import SHAPES, Floats
from ..data.store import DAMAGE
from .videos import Picture, Video, open_frames

NOT_COUNTED = 255
_SMALL = (48, 48)
_BINS = 8
_MOVED, _RECOLOURED, _REPLACED = 0.08, 0.3, 0.3
_LONGEST = 1280  # pixels
_MOST = 4  # people; counting stops there
_NOTABLE = 0.4  # people less tall than this share of the tallest are background
_APART = 0.25  # hips nearer than this share of the tallest's height belong to one person
_MARGIN = 0.08  # around a body's points, in its height
_HIPS = (23, 24)
_CLEAR = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """A recording of F frames, thinned out to the wanted rate."""

    poses: PoseSequence
    """F frames; where nobody was found all scores are 0."""
    change: Floats
    """[F]: how new a picture is after the one before it; 1 or more is a cut."""
    people: NDArray[np.uint8]
    """[F]: number of people, 255 in frames where they were not counted."""


class Surveyor:
    """Surveys recordings, and keeps each survey in `folder` under a name made from the recording's content."""

    def __init__(
        self, folder: Path, estimator: PoseEstimator, kind: str, fps: float, frames_fps: float
    ) -> None:
        self._folder, self._kind, self._fps, self._frames_fps = folder, kind, fps, frames_fps
        self._estimator, self._count = estimator, PeopleCounter()
        with output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob(".*"):  # by a run that was killed
                left.unlink()

    def __call__(
        self, video: Video, digest: str, report: Callable[[int], None] = lambda done: None
    ) -> Survey:
        """The survey, from the folder if it is there; `report(frames)` is called after each frame.

        Raises `MotionError` if the recording is damaged or empty, and `LimitError` if its frames are too large.
        """
        rate = f"{self._fps:g}" + (f"of{self._frames_fps:g}" if video.is_folder else "")
        path = self._folder / f"{digest}-{self._kind}-{rate}.npz"
        fault = path.with_suffix(".fault.json")
        with suppress(OSError, ValueError, KeyError):
            raise MotionError(str(json.loads(fault.read_text())["fault"]), field="videos")
        with suppress(*DAMAGE, InputError):
            return _load(path)
        with output_errors(self._folder):
            try:
                survey = self._make(video, report)
            except LimitError:  # on a machine with other limits it may be read
                raise
            except InputError as error:
                write_text(fault, json.dumps({"fault": error.message}))
                raise MotionError(error.message, remedy=error.remedy, field="videos") from error
            _save(path, survey)
        return survey

    def _make(self, video: Video, report: Callable[[int], None]) -> Survey:
        self._estimator.reset()
        meter, poses, change, people = ChangeMeter(), [], [], []
        with open_frames(video, self._fps, self._frames_fps) as (rate, frames):
            for index, frame in enumerate(frames):
                change.append(meter(frame))
                if change[-1] >= 1:
                    self._estimator.reset()
                poses.append(self._estimator.estimate(frame))
                counts = index % max(1, round(rate / 2)) == 0 or change[-1] >= 1
                people.append(min(self._count(frame), NOT_COUNTED - 1) if counts else NOT_COUNTED)
                report(index + 1)
        if not poses:
            raise MotionError(f"{video.name} holds no frames.", field="videos")
        values: dict[str, Any] = {n: np.concatenate([getattr(p, n) for p in poses]) for n in SHAPES}
        sequence = PoseSequence(**values, fps=rate, size=poses[0].size)
        return Survey(sequence, np.array(change, np.float32), np.array(people, np.uint8))


class ChangeMeter:
    """Tells cuts from motion: at a cut the picture differs and so do its colours."""

    def __init__(self) -> None:
        self._last: tuple[Floats, Floats] | None = None

    def __call__(self, frame: Picture) -> float:
        """How new uint8 [H,W,3] is after the picture given before, 0 for the first; 1 or more is a cut."""
        small = cv2.resize(frame, _SMALL, interpolation=cv2.INTER_AREA)
        colours = cv2.calcHist([small], [0, 1, 2], None, [_BINS] * 3, [0, 256] * 3) / small[..., 0].size
        now: tuple[Floats, Floats] = np.asarray(small / 255, np.float32), np.asarray(colours, np.float32)
        last, self._last = self._last, now
        if last is None:
            return 0.0
        moved = float(np.abs(now[0] - last[0]).mean())
        recoloured = 1 - float(np.minimum(now[1], last[1]).sum())
        return max(min(moved / _MOVED, recoloured / _RECOLOURED), moved / _REPLACED)


class PeopleCounter:
    """Counts the people whom a detector finds and the body network confirms, without those in the background.

    The detector finds one person at a time, so everyone found is painted over before it looks again. It works
    beside every estimator. Not for use by two threads at once.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._detect, self._track = BodyDetector(threads), BodyTracker(threads)

    def __call__(self, frame: Picture) -> int:
        """The number of people in an RGB picture uint8 [H,W,3], at most 4."""
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
        """Somebody who is not in `found`, or None."""
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


def _load(path: Path) -> Survey:
    with np.load(path, allow_pickle=False) as file:
        arrays: dict[str, Any] = {name: file[name] for name in SHAPES}
        poses = PoseSequence(**arrays, fps=float(file["fps"]), size=tuple(file["size"].tolist()))
        survey = Survey(poses, file["change"], file["people"])
    if not len(survey.poses) == len(survey.change) == len(survey.people):
        raise ValueError("damaged")
    return survey


def _save(path: Path, survey: Survey) -> None:
    poses = survey.poses
    arrays: dict[str, Any] = {name: getattr(poses, name) for name in SHAPES}
    arrays |= {"fps": np.float64(poses.fps), "size": np.array(poses.size)}
    arrays |= {"change": survey.change, "people": survey.people}
    write_atomic(path, lambda file: np.savez_compressed(file, allow_pickle=False, **arrays))
