"""Who may join the queue: places, predicted seconds of work, deadlines; who may not is told when to come back."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

from .order import Demand
from .outlook import Queue
from .status import Busy, TooLate

COLD_RETRY = 5.0
"""Seconds after which a caller may try again where nothing was measured yet."""
SOONEST = 1.0
"""Seconds: nobody is told to come back earlier."""
TURNS = 4
"""Callers who come back too early time and again must not send all others away for ever."""
JITTER = 0.25
"""Callers come back up to so much later than predicted, each at another time."""


class Admission:
    """The bounds of the queue. Callers that are sent away are told a time each, one after another."""

    def __init__(self, max_queue: int, max_seconds: float, clock: Callable[[], float]) -> None:
        self._max_queue, self._max_seconds, self._clock = max_queue, max_seconds, clock
        self._promised: list[float] = []  # times for which callers were told to come back

    def check_room(self, queue: Queue, job: Demand, client_places: int | None) -> None:
        """Raise `Busy` where a job finds no place; a client has so many of them."""
        own = [start for one, start in zip(queue.jobs, queue.starts, strict=True) if one.client == job.client]
        if client_places is not None and len(own) >= client_places:
            raise Busy(
                f"{len(own)} jobs of yours are waiting already.", retry_after=self._spread(own[0], queue)
            )
        if len(queue.jobs) >= self._max_queue:
            wait = self._promise(queue)
            raise Busy(f"{len(queue.jobs)} jobs are waiting already.", retry_after=wait)
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

    def _promise(self, queue: Queue) -> float:
        """Seconds until a place is free that nobody else was told of, up to `TURNS` turns of the queue."""
        now = self._clock()
        while self._promised and self._promised[0] <= now:
            heapq.heappop(self._promised)
        taken, starts = min(len(self._promised), TURNS * len(queue.jobs)), queue.starts
        gap = (starts[-1] - starts[0]) / max(1, len(starts) - 1)
        wait = self._spread(starts[0] + gap * taken if taken >= len(starts) else starts[taken], queue)
        heapq.heappush(self._promised, now + wait)
        if len(self._promised) > 10 * self._max_queue:
            self._promised = heapq.nsmallest(self._max_queue, self._promised)
        return wait

    def _spread(self, seconds: float, queue: Queue) -> float:
        return (max(SOONEST, seconds) if queue.measured else COLD_RETRY) * (1.0 + JITTER * random.random())
