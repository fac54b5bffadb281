"""In which order waiting jobs begin, when a running one makes room for another, and what is predicted of both."""

from __future__ import annotations

import heapq
from bisect import bisect
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .jobs import StoredJob
from .rates import Rates

STRETCH = 10.0
"""Jobs that take less may go first until a job has waited for so many times its own seconds."""
HALF_LIFE = 60.0
"""Seconds after which half of what a client had of the engines is forgotten."""
WORTH = 2.0
"""A job makes room if what it has left is so many times what the other one takes, the cost of stopping included."""
QUANTUM = 4.0
"""A job runs for so many times the cost of stopping it before it makes room: a fifth is lost at most."""

Rank = tuple[int, float]
"""The smallest goes first."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What the order needs to know of a job. Times are seconds since 1970."""

    client: str
    came: float
    seconds: float
    """That it still takes, as predicted; 0 where nothing is known."""
    priority: int = 0
    deadline: float | None = None


class Order:
    """Shortest predicted remaining time first, with ageing and a share for each client; priorities above both.

    Each job has a moment, and of jobs of one priority the earliest moment goes first: when it came, plus `STRETCH`
    times the seconds that it still takes and those that its client had of the engines lately; but no later than when
    it has to begin in order to keep its deadline.

    Nobody starves: a job that comes after another one's moment never goes before it. So a job begins at the latest
    STRETCH * (seconds + used) + W seconds after it came, where `used` is what its client had lately (at most
    HALF_LIFE / ln 2 = 87 s for each place of the engines) and W the seconds that wait at its moment, divided by
    those places (at most `max_queue_seconds`); as far as predictions are right and no higher priority comes.
    """

    def __init__(self) -> None:
        self._used: dict[str, tuple[float, float]] = {}  # seconds as of a time, by client

    def rank(self, job: Demand, now: float) -> Rank:
        """Where a job stands now."""
        moment = job.came + STRETCH * (job.seconds + self.used(job.client, now))
        if job.deadline is not None:
            moment = min(moment, job.deadline - job.seconds)
        return -job.priority, moment

    def used(self, client: str, now: float) -> float:
        """Seconds of the engines that a client had lately."""
        seconds, then = self._used.get(client, (0.0, now))
        return float(seconds * 0.5 ** (max(0.0, now - then) / HALF_LIFE))

    def charge(self, client: str, seconds: float, now: float) -> None:
        """A client had so many seconds of an engine; fewer than 0 give back what was charged too much."""
        self._used[client] = (max(0.0, self.used(client, now) + seconds), now)
        if len(self._used) > 1000:  # who had next to nothing is as good as new
            self._used = {name: one for name, one in self._used.items() if self.used(name, now) > 0.01}

    def makes_room(self, running: Demand, cost: float, ran: float, waiting: Demand, now: float) -> bool:
        """Whether a running job should stop after its step for a waiting one.

        `cost`: seconds that are lost by stopping and going on; `ran`: seconds since it began or went on.
        """
        if ran < QUANTUM * cost or waiting.priority < running.priority:
            return False
        if waiting.priority > running.priority:
            return running.seconds > cost
        late = now + waiting.seconds + cost + running.seconds
        if running.deadline is not None and late > running.deadline:
            return False
        gains = running.seconds > WORTH * (waiting.seconds + cost)
        return gains and self.rank(waiting, now) < self.rank(running, now)


def forecast(free: Iterable[float], seconds: Iterable[float]) -> list[float]:
    """Seconds until each of the waiting jobs begins. `free`: until each place of the engines is free (not empty);
    `seconds`: what each of the jobs takes, in their order."""
    places, starts = list(free), []
    heapq.heapify(places)
    for taken in seconds:
        starts.append(places[0])
        heapq.heapreplace(places, places[0] + taken)
    return starts


# ---- what is predicted ----


@dataclass(frozen=True, slots=True)
class Queue:
    """The waiting jobs in their order, those that are being uploaded included, and what is predicted of them."""

    jobs: list[Demand]
    starts: list[float]
    """Seconds until each of them begins."""
    places: int
    """Jobs that the engines run at once."""
    measured: bool
    """Whether anything is known of the seconds."""

    @property
    def seconds(self) -> float:
        """Of work that waits."""
        return sum(job.seconds for job in self.jobs)


class Predictor:
    """Looks ahead by what the rates and the order say; `free()` gives the seconds until each place of the engines is
    free. Seconds are 0 where nothing was measured."""

    def __init__(
        self, rates: Rates, order: Order, free: Callable[[], list[float]], clock: Callable[[], float]
    ) -> None:
        self._rates, self._order, self._free, self._clock = rates, order, free, clock

    def seconds(self, job: StoredJob) -> float:
        """That a job still takes."""
        frames = job.frames or self._rates.frames(job.settings, job.motion_kind, job.motion_bytes)
        return self._rates.remaining(job.settings, frames, job.progress) or 0.0

    def stop_cost(self, job: StoredJob) -> float:
        """Seconds that are lost if a job stops and goes on later: it is encoded again, and ends its step first."""
        stages = self._rates.stages(job.settings, job.frames) or {}
        steps = job.settings.steps * len(job.settings.each_seed)
        return stages.get("encode", 0.0) + stages.get("denoise", 0.0) / steps

    def demand(self, job: StoredJob) -> Demand:
        return Demand(job.client, job.created, self.seconds(job), job.priority, job.deadline)

    def rank(self, job: StoredJob) -> Rank:
        return self._order.rank(self.demand(job), self._clock())

    def starts(self, jobs: Iterable[StoredJob]) -> list[float | None]:
        """Seconds until each of the jobs begins, in their order; None where nothing was measured."""
        starts = forecast(self._free(), map(self.seconds, jobs))
        return [start if self._rates.jobs else None for start in starts]

    def queue(self, jobs: Iterable[StoredJob]) -> Queue:
        """The jobs in their order, and when each begins."""
        now, free = self._clock(), self._free()
        demands = sorted(map(self.demand, jobs), key=lambda job: self._order.rank(job, now))
        starts = forecast(free, [job.seconds for job in demands])
        return Queue(demands, starts, len(free), self._rates.jobs > 0)

    def start_of(self, job: Demand, queue: Queue) -> float:
        """Seconds until a job that joins the queue begins."""
        now = self._clock()
        position = bisect([self._order.rank(one, now) for one in queue.jobs], self._order.rank(job, now))
        return forecast(self._free(), [one.seconds for one in (*queue.jobs[:position], job)])[-1]
