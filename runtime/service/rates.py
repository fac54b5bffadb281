"""How long jobs take, learned from those that finished."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..denoise.schedule import steps_of
from ..events import STAGES, Done, Progress
from ..files import write_atomic
from ..settings import Settings

NEWEST = 0.3
"""Weight of the newest job in a moving average."""


class Rates:
    """Seconds per unit of work of each stage, as moving averages; predicts what a job will take."""

    def __init__(self) -> None:
        self.jobs = 0
        """Finished jobs behind the predictions."""
        self._size = (0, 0)
        self._frames = 0.0
        self._rates: dict[str, float] = {}
        self._bytes: dict[str, float] = {}  # of a motion of each kind, for one of its frames
        self._work = lru_cache(1024)(work_of)

    def learn(self, settings: Settings, done: Done, motion_kind: str = "", motion_bytes: int = 0) -> None:
        """Take a finished job into account."""
        work = self._work(settings, done.frames, done.size)
        for stage, seconds in done.seconds.items():
            self._rates[stage] = self._mean(self._rates.get(stage), seconds / work[stage])
        if motion_bytes and done.frames != settings.frames and _whole(settings):  # else it tells nothing
            size = motion_bytes / (done.frames * (settings.stride or 1))
            self._bytes[motion_kind] = self._mean(self._bytes.get(motion_kind), size)
        self._frames = self._mean(self._frames or None, done.frames)
        self._size = done.size
        self.jobs += 1

    def frames(self, settings: Settings, motion_kind: str = "", motion_bytes: int = 0) -> int:
        """How many frames a video is likely to have: by the motion's bytes, or as many as videos had so far.

        Bytes are a guess: at most 10 times as many as videos had so far.
        """
        frames = self._frames
        if motion_kind in self._bytes and motion_bytes:
            likely = motion_bytes / self._bytes[motion_kind] / (settings.stride or 1)
            frames = min(likely, 10 * frames)
        if settings.end is not None and settings.fps is not None:
            frames = (settings.end - settings.start) * settings.fps
        return max(1, min(round(frames), settings.frames or 2**31))

    def predict(self, settings: Settings, frames: int = 0) -> float | None:
        """Seconds from start to end; None until a job has been measured. `frames` 0: see `frames`.

        A size that is not set is taken to be the last job's.
        """
        stages = self.stages(settings, frames)
        return None if stages is None else sum(stages.values())

    def stages(self, settings: Settings, frames: int = 0) -> dict[str, float] | None:
        """Predicted seconds by stage; None until a job has been measured."""
        if not self.jobs:
            return None
        work = self._work(settings, frames or self.frames(settings), settings.size or self._size)
        return {stage: rate * work[stage] for stage, rate in self._rates.items()}

    def remaining(self, settings: Settings, frames: int, done: Progress | None) -> float | None:
        """Predicted seconds of a job after its newest report; None until a job has been measured."""
        stages = self.stages(settings, frames)
        if stages is None or done is None:
            return None if stages is None else sum(stages.values())
        reached = STAGES.index(done.stage)
        left = 1.0 - done.step / done.steps if done.steps else 1.0
        shares: dict[str, float] = {**dict.fromkeys(STAGES[reached + 1 :], 1.0), done.stage: max(0.0, left)}
        if done.stage in (
            "denoise",
            "decode",
        ):  # of several videos, one is denoised and decoded after the other
            videos = len(settings.each_seed)
            shares["denoise"] = shares.get("denoise", (videos - done.video) / videos)
            shares["decode"] = min(shares["decode"], (videos - done.video + 1) / videos)
        shares["write"] = shares.get("decode", 1.0)
        return sum(stages.get(stage, 0.0) * share for stage, share in shares.items())

    def save(self, path: Path, bundle: str) -> None:
        """Write them for the next start with this bundle; what cannot be written is left out."""
        values = {
            "bundle": bundle,
            "jobs": self.jobs,
            "size": self._size,
            "frames": self._frames,
            "rates": self._rates,
            "bytes": self._bytes,
        }
        with suppress(OSError):
            write_atomic(path, json.dumps(values))

    def load(self, path: Path, bundle: str) -> None:
        """Take what `save` wrote for this bundle; a file that is missing, damaged or another bundle's is not."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            values: dict[str, Any] = json.loads(path.read_text())
            if values["bundle"] != bundle:
                return
            width, height = map(int, values["size"])
            rates = {stage: float(values["rates"][stage]) for stage in (*STAGES, "write")}
            sizes = {str(kind): float(size) for kind, size in values["bytes"].items()}
            frames, jobs = float(values["frames"]), int(values["jobs"])
            self.jobs, self._frames, self._rates, self._bytes = jobs, frames, rates, sizes
            self._size = (width, height)

    def _mean(self, old: float | None, new: float) -> float:
        return new if old is None else old + NEWEST * (new - old)


def _whole(settings: Settings) -> bool:
    """Whether a video has the frames of its motion that the stride takes, no part of them and none between."""
    return settings.fps is None and settings.end is None and settings.start == 0


def count_segments(settings: Settings, frames: int, shift: float = 0.0) -> int | None:
    """Segments of a video of `frames` frames, the reference's own not counted; None if N is not known.

    `reference` and `compact` come to the same number; `cut_segments` would build the whole plan for it.
    """
    if settings.segment is None:
        return None
    over = max(0, frames + 1 - settings.segment)
    if settings.layout == "shifted" and over:
        window = settings.segment - 1
        return math.ceil((frames + int(shift * settings.overlap)) / window)
    return 1 + math.ceil(over / (settings.segment - settings.overlap))


def work_of(settings: Settings, frames: int, size: tuple[int, int]) -> dict[str, float]:
    """Units of work by stage: what its seconds grow with; a step that reuses features counts as a full one."""
    pixels, videos = max(1, size[0] * size[1]), len(settings.each_seed)
    pictures = float(max(1, frames) * pixels)
    segment = min(settings.segment or frames, frames + 1)
    both = settings.guidance != (1.0, 1.0)
    rows = sum(
        (count_segments(settings, frames, step.shift) or 1) * (1 + (both and step.guided))
        for step in steps_of(settings)
    )
    return {
        "pose": float(max(1, frames) * (settings.stride or 1)),
        "encode": pictures,
        "denoise": float(videos * rows * max(1, segment) * pixels),
        "decode": videos * pictures,
        "write": videos * pictures,
    }
