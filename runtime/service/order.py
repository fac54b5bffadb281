"""In which order waiting jobs begin, and when a running one makes room for another."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass

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
