"""Which job runs where and when: a bounded queue in front of the engines."""

from __future__ import annotations

import contextlib
import heapq
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from ..errors import Cancelled, MimicMotionError
from ..events import Accepted, Done, Event, Failed, Progress, Queued, Started
from ..settings import Settings
from .config import EngineConfig
from .engine_process import EngineProcess
from .faults import Busy, Draining, NotReady
from .jobs import StoredJob
from .rates import Rates
from .worker import Run

_COLD_RETRY = 5.0  # seconds; how long loading a bundle may take is not known before it has been done once


class Scheduler:
    """Runs jobs in the order in which their uploads were complete, on each engine as many as it takes.

    `on_end(job)` is called when a job ended; `on_change()` when `warm` may have changed.
    """

    def __init__(
        self,
        configs: Sequence[EngineConfig],
        *,
        max_queue: int,
        on_end: Callable[[StoredJob], None],
        on_change: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.rates = Rates()
        self.draining = False
        self._max_queue = max_queue
        self._on_end = on_end
        self._on_change = on_change
        self._clock = clock
        self._uploads = 0
        self._queue: deque[StoredJob] = deque()
        self._running: dict[str, StoredJob] = {}
        self.engines = [
            EngineProcess(config, on_event=self._event, on_change=self._engine_changed) for config in configs
        ]

    # ---- state ----

    @property
    def warm(self) -> bool:
        return any(engine.warm for engine in self.engines)

    @property
    def failure(self) -> MimicMotionError | None:
        """Why no engine will ever be warm again; None while one may."""
        failures = [engine.failure for engine in self.engines]
        return failures[0] if all(failures) else None

    @property
    def busy(self) -> bool:
        return bool(self._running)

    @property
    def defaults(self) -> Settings:
        """The bundle's settings; raises `NotReady`, or `failure`, before an engine was warm."""
        for engine in self.engines:
            if engine.ready is not None:
                return engine.ready.defaults
        raise self.failure or NotReady("The bundle is still loading.", retry_after=_COLD_RETRY)

    def wait_for(self, position: int) -> float | None:
        """Predicted seconds until the job at `position` of the queue starts; None if nothing was measured."""
        if not self.rates.jobs:
            return None
        now = self._clock()
        free = [0.0] * (sum(engine.config.limits.jobs for engine in self.engines) - len(self._running))
        for job in self._running.values():
            free.append(max(0.0, self._predict(job) - (now - (job.started or now))))
        heapq.heapify(free)
        for job in list(self._queue)[:position]:
            heapq.heapreplace(free, free[0] + self._predict(job))
        return free[0]

    @property
    def queue_length(self) -> int:
        return len(self._queue)

    # ---- jobs ----

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place in the queue while an upload is under way; raises `Busy`, `Draining` or `NotReady`."""
        self._check_open()
        if len(self._queue) + self._uploads >= self._max_queue:
            raise Busy(
                f"{self._max_queue} jobs are waiting already.",
                retry_after=max(1.0, self.wait_for(1) or _COLD_RETRY),
            )
        self._uploads += 1
        try:
            yield
        finally:
            self._uploads -= 1

    def submit(self, job: StoredJob) -> None:
        """Queue a job whose upload is complete; raises `Draining` or `NotReady`."""
        self._check_open()
        job.state = "queued"
        job.log.append(Accepted(job.id, job.settings))
        self._queue.append(job)
        self._tell_positions()
        self._fill_engines()

    def cancel(self, job: StoredJob) -> None:
        """Stop a job: at once while it waits, within a step while it runs; an ended one stays as it is."""
        if job.state == "queued":
            self._queue.remove(job)
            self._end(job, Cancelled("The job was cancelled."))
            self._tell_positions()
        elif job.active and not job.cancel_asked:
            job.cancel_asked = True
            for engine in self.engines:
                engine.cancel(job.id)

    def abandon(self, job: StoredJob, error: MimicMotionError) -> None:
        """End a job whose upload failed."""
        self._end(job, error)

    def drain(self) -> None:
        """Take no more jobs and give back the waiting ones; those that run go on."""
        self.draining = True
        self._give_back(Draining("The server is shutting down.", retry_after=_COLD_RETRY))

    def cancel_all(self) -> None:
        for job in list(self._running.values()):
            self.cancel(job)

    # ---- inside ----

    def _check_open(self) -> None:
        if self.draining:
            raise Draining("The server is shutting down.", retry_after=_COLD_RETRY)
        if self.failure is not None:
            raise NotReady("No engine is left.", remedy=str(self.failure), retry_after=_COLD_RETRY)

    def _engine_changed(self) -> None:
        if self.failure is not None:
            self._give_back(self.failure)
        self._fill_engines()
        self._on_change()

    def _fill_engines(self) -> None:
        while self._queue and (free := [engine for engine in self.engines if engine.free]):
            self._begin(self._queue.popleft(), min(free, key=lambda engine: len(engine.jobs)))
            self._tell_positions()

    def _begin(self, job: StoredJob, engine: EngineProcess) -> None:
        job.state, job.started = "running", self._clock()
        self._running[job.id] = job
        run = Run(
            job.id,
            job.file("picture"),
            job.file("motion"),
            job.motion_kind,
            job.file("reference_pose") if job.has_reference_pose else None,
            job.video,
            job.settings,
        )
        engine.run(run)

    def _event(self, job_id: str, event: Event) -> None:
        job = self._running[job_id]
        match event:
            case Done():
                self.rates.learn(job.settings, event)
                self._end(job, event)
            case Failed():
                self._end(job, event.error)
            case _:
                if isinstance(event, Started):
                    job.frames = event.frames
                elif isinstance(event, Progress):
                    job.progress = event
                job.log.append(event)

    def _end(self, job: StoredJob, outcome: Done | MimicMotionError) -> None:
        self._running.pop(job.id, None)
        job.end(outcome, self._clock())
        self._on_end(job)

    def _give_back(self, error: MimicMotionError) -> None:
        while self._queue:
            self._end(self._queue.popleft(), error)

    def _tell_positions(self) -> None:
        for position, job in enumerate(self._queue):
            if job.position != position:
                job.position = position
                job.log.append(Queued(position, self.wait_for(position)))

    def _predict(self, job: StoredJob) -> float:
        return self.rates.predict(job.settings, job.frames) or 0.0
