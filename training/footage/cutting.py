"""Where a recording is cut into clips, and which of them are no good."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ...pose import PoseSequence
from ..data.transforms import somebody
from .survey import NOT_COUNTED, Survey

NOBODY, SEVERAL = "nobody", "several people"
SHORT, SHAKY, OUTSIDE = "too short", "too shaky", "outside the crop"
DAMAGED, TWICE = "damaged", "the same as another"
LARGE, SMALL = "too large", "too small"
_SURE = 0.5  # confidence of body points
_BRIDGED = 2  # frames in a row without the person that do not end a clip
_SHARE_OF_SEVERAL = 0.25
_ORDER = 3
_GAIN = (math.comb(2 * _ORDER, _ORDER) * math.pi / 2) ** 0.5  # of white noise, from sigma to a mean length


@dataclass(frozen=True, slots=True)
class Rules:
    """What makes a clip."""

    min_frames: int = 16
    max_frames: int = 240
    """Longer shots are split evenly."""
    max_jitter: float = 0.03
    """In heights of the body, see `jitter`."""


@dataclass(frozen=True, slots=True)
class Span:
    """Frames `start` to `stop` (without it) of a recording."""

    start: int
    stop: int
    reason: str = ""
    """Why it is left out; empty if it is kept."""

    def __len__(self) -> int:
        return self.stop - self.start


def cut(survey: Survey, rules: Rules) -> list[Span]:
    """The recording as consecutive spans, each judged. A span lies in one shot, and shows somebody or nobody."""
    spans = []
    edges = [0, *(np.flatnonzero(survey.change[1:] >= 1) + 1).tolist(), len(survey.change)]
    shown = somebody(survey.poses)
    for start, stop in pairwise(edges):
        for run in _runs(_bridged(shown[start:stop]), start):
            if not shown[run.start : run.stop].any():
                spans.append(replace(run, reason=NOBODY))
                continue
            spans += [_judged(piece, survey, rules) for piece in _pieces(run, rules)]
    return spans


def jitter(poses: PoseSequence) -> float:
    """How much the body trembles, in heights of the body.

    It is the standard deviation of white noise whose third differences are as large as those of the points that are
    seen well. Smooth motion has small ones: fast dances give 0.005 to 0.02 at 15 frames a second.
    """
    points = poses.body * np.array(poses.size, np.float32)
    sure = poses.body_score > _SURE
    jerks = np.linalg.norm(np.diff(points, _ORDER, axis=0), axis=-1)
    throughout = np.all([sure[k : len(sure) - _ORDER + k] for k in range(_ORDER + 1)], axis=0)
    rows = np.where(sure, points[..., 1], np.nan)
    tall = [np.nanmax(row) - np.nanmin(row) for row in rows if np.isfinite(row).sum() >= 2]
    if not throughout.any() or not tall:
        return 0.0
    return float(jerks[throughout].mean() / _GAIN / max(float(np.median(tall)), 1.0))


def _judged(span: Span, survey: Survey, rules: Rules) -> Span:
    poses, people = survey.poses[span.start : span.stop], survey.people[span.start : span.stop]
    counted = people[people != NOT_COUNTED]
    reason = ""
    if len(span) < rules.min_frames:
        reason = SHORT
    elif len(counted) and (counted > 1).mean() >= _SHARE_OF_SEVERAL:
        reason = SEVERAL
    elif jitter(poses) > rules.max_jitter:
        reason = SHAKY
    return replace(span, reason=reason)


def _bridged(shown: NDArray[np.bool_]) -> NDArray[np.bool_]:
    filled = shown.copy()
    for gap in _runs(~shown, 0):
        inside = gap.start > 0 and gap.stop < len(shown)
        if inside and not shown[gap.start] and len(gap) <= _BRIDGED:
            filled[gap.start : gap.stop] = True
    return filled


def _runs(flags: NDArray[np.bool_], first: int) -> list[Span]:
    """The spans in which `flags` does not change, counted from `first`."""
    edges = [0, *(np.flatnonzero(flags[1:] != flags[:-1]) + 1).tolist(), len(flags)]
    return [Span(first + start, first + stop) for start, stop in pairwise(edges)]


def _pieces(run: Span, rules: Rules) -> list[Span]:
    parts = -(-len(run) // rules.max_frames)
    edges = [run.start + round(len(run) * part / parts) for part in range(parts + 1)]
    return [Span(start, stop) for start, stop in pairwise(edges)]
