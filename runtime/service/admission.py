"""Who may join the queue: places, predicted seconds of work, deadlines; who may not is told when to come back."""

from __future__ import annotations

import random
from collections.abc import Callable

from ..errors import counted
from .order import Demand, Queue
from .status import Busy, TooLate

COLD_RETRY = 5.0
"""Seconds after which a caller may try again where nothing was measured yet."""
SOONEST = 1.0
"""Seconds: nobody is told to come back earlier."""
TURNS = 1
"""Callers who come back too early time and again must not send all others away for ever."""
JITTER = 0.25
"""Callers come back up to so much later than predicted, each at another time."""


class Admission:
    """The bounds of the queue. Callers that are sent away are told a time each, one after another."""

    def __init__(self, max_queue: int, max_seconds: float, clock: Callable[[], float]) -> None:
        self._max_queue, self._max_seconds, self._clock = max_queue, max_seconds, clock
        self._promised: dict[str, list[float]] = {}  # times to come back that were told, by client

    def check_room(self, queue: Queue, job: Demand, client_places: int | None) -> None:
        """Raise `Busy` where a job finds no place; a client has so many of them."""
        own = [start for one, start in zip(queue.jobs, queue.starts, strict=True) if one.client == job.client]
        if client_places is not None and len(own) >= client_places:
            wait = self._promise(job.client, own, queue)
            raise Busy(f"{counted(len(own), 'job')} of yours already in the queue.", retry_after=wait)
        if len(queue.jobs) >= self._max_queue:
            wait = self._promise("", queue.starts, queue)
            raise Busy(f"{counted(len(queue.jobs), 'job')} already in the queue.", retry_after=wait)
        over = queue.seconds + job.seconds - self._max_seconds * queue.places
        if queue.jobs and over > 0:
            raise Busy(
                f"Jobs of {queue.seconds:.0f} predicted seconds are waiting, this one takes {job.seconds:.0f}.",
                retry_after=self._spread(over / queue.places, queue),
            )

    def check_deadline(self, start: float, job: Demand) -> None:
        """Raise `TooLate` for a job that is not likely to keep its deadline if it begins in `start` seconds."""
        if job.deadline is None:
            return
        asked, predicted = job.deadline - self._clock(), start + job.seconds
        if predicted > asked:
            raise TooLate(
                f"The video would be finished in {predicted:.1f} s, after its deadline in {asked:.1f} s.",
                remedy="Allow more time, or ask for fewer steps or frames.",
                field="deadline",
            )

    def _promise(self, client: str, starts: list[float], queue: Queue) -> float:
        """Seconds until a place is free that nobody else was told of, up to `TURNS` turns of the queue.

        `starts`: when the jobs begin that hold the places, of one client or ("") of all.
        """
        now = self._clock()
        self._promised = {
            name: ahead for name, times in self._promised.items() if (ahead := _after(now, times))
        }
        promised = self._promised.setdefault(client, [])
        taken = min(len(promised), TURNS * len(starts))
        gap = (starts[-1] - starts[0]) / max(1, len(starts) - 1)
        wait = self._spread(starts[taken] if taken < len(starts) else starts[0] + gap * taken, queue)
        if taken < TURNS * len(starts):
            promised.append(now + wait)
        return wait

    def _spread(self, seconds: float, queue: Queue) -> float:
        return (max(SOONEST, seconds) if queue.measured else COLD_RETRY) * (1.0 + JITTER * random.random())


def _after(now: float, times: list[float]) -> list[float]:
    return [time for time in times if time > now]
