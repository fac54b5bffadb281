"""Which frames of a motion are taken, at which rate the video shows them, and poses between two frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import MotionError, SettingsError
from ..limits import FASTEST_FPS, SLOWEST_FPS, Limits, check_limit
from ..settings import PARTS, Settings
from .sequence import PoseSequence

Numbers = npt.NDArray[np.float64]

USUAL_FPS = 15.0
"""At which MimicMotion was trained, and which the default stride comes near to."""
_ROUNDING = 1e-6  # frames
_TYPED = 0.001  # seconds by which a time that was typed may miss its frame


@dataclass(frozen=True)
class Sampling:
    """The frames of a motion that are taken, and the video's frames.

    Settings are applied in this order: `start` and `end` cut the motion; `stride` takes every n-th frame of what is
    left; `fps` brings these to the video's rate, by leaving frames out or, between frames, by interpolation of
    keypoints; `frames` cuts the video.
    """

    taken: Sequence[int]
    """Numbers of frames of the motion, rising."""
    rate: float
    """Of these a second, at the motion's speed."""
    begin: float
    """Seconds of the motion before the first of them."""
    fps: float
    """Frames of the video a second; above `rate` they lie between those that are taken."""
    frames: int
    """Of the video."""

    @property
    def interpolates(self) -> bool:
        """Whether frames of the video lie between frames of the motion."""
        return self.fps > self.rate


def sample(count: int, rate: float, settings: Settings, limits: Limits, stride: int = 1) -> Sampling:
    """The sampling of a motion of `count` frames, `rate` a second; see `Sampling` for the order of settings.

    `stride` is taken where neither `settings.stride` nor `settings.fps` is given. Frames at or after `start` and
    before `end` are left. Raises `MotionError` where nothing is left, where start or end lie beyond the motion, and
    for frame rates that no video can have; `LimitError` for too many frames.
    """
    first, last = _cut(count, rate, settings.start, settings.end)
    stride = settings.stride or (1 if settings.fps is not None else stride)
    grid, thinned = range(first, last, stride), rate / stride
    if not SLOWEST_FPS <= (settings.fps or thinned) <= FASTEST_FPS:
        raise MotionError(
            f"the motion has {rate:g} frames per second and a stride of {stride}.",
            remedy=f"A video has {SLOWEST_FPS:g} to {FASTEST_FPS:g} a second; give another motion or stride.",
            field="settings.stride" if SLOWEST_FPS <= rate <= FASTEST_FPS else "motion",
        )
    fps, begin = settings.fps or thinned, first / rate
    frames = shown_frames(len(grid), thinned, fps)
    frames = frames if settings.frames is None else min(frames, settings.frames)
    check_limit("frames of the motion", frames, limits.frames, field="motion")
    if fps == thinned:
        return Sampling(grid[:frames], thinned, begin, fps, frames)
    at = places(frames, thinned, fps)
    if fps < thinned:
        return Sampling([grid[index] for index in at.astype(int)], fps, begin, fps, frames)
    needed = min(len(grid), math.ceil(at[-1]) + 1) if frames else 0
    return Sampling(grid[:needed], thinned, begin, fps, frames)


def interpolate(poses: PoseSequence, at: Numbers, fps: float) -> PoseSequence:
    """Poses at these places among the frames of a sequence, counted from 0; the result has `fps` frames a second.

    Between two frames keypoints lie on the line between theirs, and a confidence is the lower of the two. A point
    that only one of the two shows is where that one shows it. After the last frame its pose stays.
    """
    before = np.minimum(at.astype(np.intp), len(poses) - 1)
    share = np.where(before < len(poses) - 1, at - before, 0).astype(np.float32)
    after = before + (share > 0)
    mixed: dict[str, Any] = {}
    for name in PARTS:
        points, scores = getattr(poses, name), getattr(poses, f"{name}_score")
        first, last, seen = points[before], points[after], scores[..., None] > 0
        first, last = np.where(seen[before], first, last), np.where(seen[after], last, first)
        weight = share.reshape(-1, *[1] * (points.ndim - 1))
        mixed[name] = np.where(weight > 0, first + weight * (last - first), points[before])
        mixed[f"{name}_score"] = np.minimum(scores[before], scores[after])
    return replace(poses, **mixed, fps=fps)


def shown_frames(count: int, rate: float, fps: float) -> int:
    """Frames at `fps` that begin before the last of `count` frames at `rate` ends; at least one of any."""
    return count if fps == rate else min(count, 1) * max(1, math.ceil(count * fps / rate - _ROUNDING))


def places(count: int, rate: float, fps: float) -> Numbers:
    """Where the first `count` frames at `fps` lie among frames at `rate`, counted from 0."""
    at = np.arange(count) * (rate / fps)
    return np.where(np.abs(at - np.round(at)) < _ROUNDING, np.round(at), at)


def frames_of(settings: Settings, seconds: float) -> int:
    """How many frames a video of a motion of `seconds` has, before it is known at which rate that comes.

    Without `settings.fps` it is taken to have `USUAL_FPS` after the stride. Raises `SettingsError`.
    """
    if not 0 < seconds < math.inf:
        raise SettingsError(f"seconds is {seconds}.", remedy="Give more than 0.", field="seconds")
    end = seconds if settings.end is None else min(settings.end, seconds)
    return max(1, math.ceil((end - settings.start) * (settings.fps or USUAL_FPS) - _ROUNDING))


def _cut(count: int, rate: float, start: float, end: float | None) -> tuple[int, int]:
    """The first frame at or after `start`, and the first at or after `end`."""
    length, near = count / rate, min(_TYPED * rate, 0.25)
    first, last = math.ceil(start * rate - near), count
    if end is not None:
        last = min(count, math.ceil(end * rate - near))
    if first >= count > 0:
        raise _beyond("start", start, length)
    if end is not None and end > length + 1 / rate:
        raise _beyond("end", end, length)
    if first >= last and count:
        raise MotionError(
            f"the motion has no frame from {start:g} to {end:g} s; it has one every {1 / rate:.3g} s.",
            remedy="Choose a longer part of it.",
            field="settings.end",
        )
    return first, last


def _beyond(name: str, seconds: float, length: float) -> MotionError:
    return MotionError(
        f"{name} is {seconds:g} s, and the motion is {length:.2f} s long.",
        remedy=f"Choose another {name}, within the motion.",
        field=f"settings.{name}",
    )
