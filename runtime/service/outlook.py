"""What is predicted of jobs: how long each takes, where it stands, and when it begins."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .jobs import StoredJob
from .order import Demand, Order, Rank, forecast
from .rates import Rates


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


class Outlook:
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
