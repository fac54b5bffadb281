"""Which job runs where and when: a bounded queue in front of the engines."""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Sequence

from ..errors import Cancelled, DeviceLost, MimicMotionError
from ..events import Accepted, Done, Event, Failed, Progress, Queued, Started, Video
from ..settings import Settings
from .config import EngineConfig
from .engine_process import EngineProcess, guarded
from .jobs import StoredJob
from .rates import Rates
from .status import Busy, Draining, EngineLost, NotReady
from .worker import Run, Suspended

COLD_RETRY = 5.0
"""Seconds after which a caller may try again where nothing was measured yet."""
HUNG_STEPS = 20
"""An engine hangs if it is silent for the predicted time of so many steps."""
CANCEL_SECONDS = 5.0
"""A cancelled job has so long to stop, or two steps, before its engine is killed."""
MOST_DEATHS = 2
"""A job that lost so many engines is given up."""


class Scheduler:
    """Runs jobs in the order in which their uploads became complete; each engine runs `Limits.jobs` at a time.

    `on_end(job)` is called when a job ended; `on_change()` when `warm` may have changed; `on_event(job, event)` for
    each event of a running job; `on_lost(engine, exit code)` when an engine's process ended.
    """

    def __init__(
        self,
        configs: Sequence[EngineConfig],
        max_queue: int,
        *,
        on_end: Callable[[StoredJob], None],
        on_change: Callable[[], None],
        on_event: Callable[[StoredJob, Event], None] = lambda job, event: None,
        on_lost: Callable[[EngineProcess, int | None], None] = lambda engine, exit_code: None,
        clock: Callable[[], float] = time.time,
        patience: float = 30.0,
    ) -> None:
        """`patience`: seconds without an event after which an engine counts as hung, at least."""
        self._patience = patience
        self.rates = Rates()
        self.draining = False
        self._max_queue = max_queue
        self._on_end = on_end
        self._on_change = on_change
        self._on_event = on_event
        self._clock = clock
        self._uploads: dict[str, StoredJob] = {}
        self._queue: deque[StoredJob] = deque()
        self._running: dict[str, StoredJob] = {}
        self._cut: set[str] = set()  # jobs that the end of the server stops
        self.engines = [
            EngineProcess(config, on_event=self._event, on_change=self._engine_changed, on_lost=on_lost)
            for config in configs
        ]

    # ---- state ----

    @property
    def warm(self) -> bool:
        return any(engine.warm for engine in self.engines)

    @property
    def failure(self) -> MimicMotionError | None:
        """Why no engine will ever be warm again, or why the server cannot go on; None while it can."""
        for engine in self.engines:
            if engine.broken:
                return engine.failure
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
        raise self.failure or NotReady("The bundle is still loading.", retry_after=COLD_RETRY)

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

    @property
    def uploads(self) -> int:
        """How many jobs are being uploaded."""
        return len(self._uploads)

    # ---- jobs ----

    def check_room(self, client: str = "", places: int | None = None) -> None:
        """Raise `Busy`, `Draining` or `NotReady` where no upload may begin; a client has so many `places`."""
        self._check_open()
        if places is not None:
            waiting = sum(job.client == client for job in (*self._queue, *self._uploads.values()))
            if waiting >= places:
                raise Busy(
                    f"{waiting} jobs of yours are waiting already.",
                    retry_after=max(1.0, self.wait_for(1) or COLD_RETRY),
                )
        if len(self._queue) + len(self._uploads) >= self._max_queue:
            raise Busy(
                f"{self._max_queue} jobs are waiting already.",
                retry_after=max(1.0, self.wait_for(1) or COLD_RETRY),
            )

    def expect(self, job: StoredJob) -> None:
        """Hold a place in the queue for a job that is being uploaded."""
        self._uploads[job.id] = job

    def submit(self, job: StoredJob) -> None:
        """Queue a job whose upload is complete; raises `Draining` or `NotReady`."""
        self._check_open()
        self._uploads.pop(job.id, None)
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
        elif job.active and not job.cancel_asked:  # it runs, or is being uploaded
            job.cancel_asked = True
            for engine in self.engines:
                engine.cancel(job.id)

    def abandon(self, job: StoredJob, error: MimicMotionError) -> None:
        """End a job whose upload failed."""
        self._uploads.pop(job.id, None)
        self._end(job, error)

    def drain(self) -> None:
        """Take no more jobs and give back the waiting ones; those that run go on."""
        self.draining = True
        self._give_back(Draining("The server is shutting down.", retry_after=COLD_RETRY))

    def cut(self) -> None:
        """Stop the running jobs for the server's sake: they end as `Draining`, unless their caller had cancelled."""
        for job in list(self._running.values()):
            if not job.cancel_asked:
                self._cut.add(job.id)
                self.cancel(job)

    def suspend(self, job: StoredJob) -> None:
        """Stop a running job after a step and queue it again, at the front."""
        for engine in self.engines:
            engine.suspend(job.id)

    # ---- inside ----

    def _check_open(self) -> None:
        if self.draining:
            raise Draining("The server is shutting down.", retry_after=COLD_RETRY)
        if self.failure is not None:
            raise NotReady("No engine is left.", remedy=str(self.failure), retry_after=COLD_RETRY)

    def _engine_changed(self) -> None:
        if self.failure is not None:
            self._give_back(self.failure)
        self._fill_engines()
        self._on_change()

    def _fill_engines(self) -> None:
        while self._queue and (engine := self._engine_for(self._queue[0])):
            self._begin(self._queue.popleft(), engine)
            self._tell_positions()

    def _engine_for(self, job: StoredJob) -> EngineProcess | None:
        """A free engine. A job under which an engine died runs alone, so that it cannot take others along."""
        free = [engine for engine in self.engines if engine.free and not self._suspects(engine)]
        engine = min(free, key=lambda engine: len(engine.jobs), default=None)
        return None if engine is not None and job.deaths and engine.jobs else engine

    def _suspects(self, engine: EngineProcess) -> bool:
        return any(self._running[job].deaths for job in engine.jobs)

    def _begin(self, job: StoredJob, engine: EngineProcess) -> None:
        job.state, job.position, job.started = "running", None, job.started or self._clock()
        self._running[job.id] = job
        run = Run(
            job.id,
            job.file("picture"),
            job.file("motion"),
            job.motion_kind,
            job.file("reference_pose") if job.has_reference_pose else None,
            job.video,
            job.settings,
            tuple(job.told),
        )
        step = self.rates.predict(job.settings, job.frames)
        step = step and step / job.settings.steps
        engine.run(
            run,
            patience=max(self._patience, HUNG_STEPS * step) if step else HUNG_STEPS * self._patience,
            cancel_patience=max(min(CANCEL_SECONDS, self._patience), 2 * (step or 0.0)),
        )

    def _event(self, job_id: str, event: Event | Suspended) -> None:
        job = self._running[job_id]
        match event:
            case Done():
                self.rates.learn(job.settings, event, job.motion_kind, job.motion_bytes)
                self._end(job, event)
            case Suspended():
                self._again(job)
            case Failed(error=EngineLost() | DeviceLost()):
                self._lost(job, event.error)
            case Failed():
                self._end(job, event.error)
            case Started() if job.started_told:
                pass  # it runs again
            case _:
                if isinstance(event, Started):
                    job.frames, job.started_told = event.frames, True
                elif isinstance(event, Progress):
                    job.progress = event
                elif isinstance(event, Video):
                    job.told.append(event)
                job.log.append(event)
                guarded(self._on_event, job, event)

    def _lost(self, job: StoredJob, error: MimicMotionError) -> None:
        """An engine died under a job: the job runs again, but not a third time."""
        job.deaths += 1
        if job.cancel_asked:
            self._end(job, Cancelled("The job was cancelled."))
        elif job.deaths < MOST_DEATHS:
            self._again(job)
        else:
            error.remedy = f"It was the {MOST_DEATHS}. engine that was lost with this job. " + error.remedy
            self._end(job, error)

    def _again(self, job: StoredJob) -> None:
        """Queue a job that ran already, in front of the others."""
        del self._running[job.id]
        if self.draining:
            self._end(job, Draining("The server is shutting down.", retry_after=COLD_RETRY))
        elif job.cancel_asked:
            self._end(job, Cancelled("The job was cancelled."))
        else:
            job.state = "queued"
            self._queue.appendleft(job)
            self._tell_positions()

    def _end(self, job: StoredJob, outcome: Done | MimicMotionError) -> None:
        self._running.pop(job.id, None)
        if isinstance(outcome, Cancelled) and job.id in self._cut:
            outcome = Draining("The server is shutting down.", retry_after=COLD_RETRY)
        job.end(outcome, self._clock())
        guarded(self._on_end, job)

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
