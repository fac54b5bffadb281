"""How fast this server works, measured on the jobs it finished."""

from __future__ import annotations

import math

from ..denoise.schedule import steps_of
from ..events import Done
from ..settings import Settings

_NEWEST = 0.3  # weight of the newest job in a moving average


class Rates:
    """Seconds per unit of work of each stage, as moving averages; predicts what a job will take."""

    def __init__(self) -> None:
        self.jobs = 0
        """Finished jobs behind the predictions."""
        self._size = (0, 0)
        self._frames = 0.0
        self._rates: dict[str, float] = {}

    def learn(self, settings: Settings, done: Done) -> None:
        """Take a finished job into account."""
        work = _work(settings, done.frames, done.size)
        for stage, seconds in done.seconds.items():
            self._rates[stage] = self._mean(self._rates.get(stage), seconds / work[stage])
        self._frames = self._mean(self._frames or None, done.frames)
        self._size = done.size
        self.jobs += 1

    def predict(self, settings: Settings, frames: int = 0) -> float | None:
        """Seconds from start to end; None until a job has been measured.

        `frames` 0: as many as jobs had so far, or `settings.frames` where that is fewer. A size that is not
        set is taken to be the last job's.
        """
        if not self.jobs:
            return None
        frames = frames or min(round(self._frames) or 1, settings.frames or 2**31)
        work = _work(settings, frames, settings.size or self._size)
        return sum(rate * work[stage] for stage, rate in self._rates.items())

    def _mean(self, old: float | None, new: float) -> float:
        return new if old is None else old + _NEWEST * (new - old)


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


def _work(settings: Settings, frames: int, size: tuple[int, int]) -> dict[str, float]:
    """Units of work by stage: what its seconds grow with; a step that reuses features counts as a whole one."""
    pixels = max(1, size[0] * size[1])
    pictures = float(max(1, frames) * pixels)
    slots = min(settings.segment or frames, frames + 1)  # frames of one segment
    both = settings.guidance != (1.0, 1.0)
    rows = sum(
        (count_segments(settings, frames, step.shift) or 1) * (1 + (both and step.guided))
        for step in steps_of(settings)
    )
    return {
        "pose": float(max(1, frames) * (settings.stride or 1)),
        "encode": pictures,
        "denoise": float(rows * max(1, slots) * pixels),
        "decode": pictures,
        "write": pictures,
    }
