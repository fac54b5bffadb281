"""Which job runs where and when: a bounded queue in front of the engines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..denoise.cost import check_memory
from ..errors import Cancelled, DeviceLost, LimitError, MimicMotionError
from ..events import Done, Event, Failed, Progress, Queued, Started
from ..limits import check_limit
from ..settings import Settings
from .admission import COLD_RETRY, Admission
from .config import EngineConfig
from .engine_process import EngineProcess, guarded
from .jobs import StoredJob
from .order import Demand, Order, Predictor, Queue
from .rates import Rates
from .status import Draining, EngineLost, Kept, NotReady, TooLate
from .worker import Run, Suspended

HUNG_STEPS = 20
"""An engine hangs if it is silent for the predicted time of so many steps."""
CANCEL_SECONDS = 5.0
"""A cancelled job has so long to stop, or two steps, before its engine is killed."""
WATCH_AGAIN = "Its jobs are kept. Watch the job again when the server is back."
MOST_DEATHS = 2
"""A job that lost so many engines is given up."""


@dataclass(slots=True)
class _Running:
    """A job in an engine."""

    job: StoredJob
    began: float
    charged: float
    """Seconds that its client was charged when it began."""
    timer: asyncio.TimerHandle | None = None
    asked: bool = False
    """It was asked to make room."""
    error: MimicMotionError | None = None
    """What it ends with once it has stopped."""


class Scheduler:
    """Runs jobs in the order that `Order` explains; each engine runs `Limits.jobs` at a time.

    A running job makes room for a much shorter one, or for a higher priority: it stops after a denoising step, waits,
    and goes on from there.

    `on_end(job)` is called when a job ended; `on_change()` when `warm` may have changed; `on_event(job, event)` for
    each event of a running job; `on_lost(engine, exit code)` when an engine's process ended.
    """

    def __init__(
        self,
        configs: Sequence[EngineConfig],
        max_queue: int,
        *,
        max_queue_seconds: float = 3600.0,
        on_end: Callable[[StoredJob], None],
        on_change: Callable[[], None],
        on_event: Callable[[StoredJob, Event], None] = lambda job, event: None,
        on_lost: Callable[[EngineProcess, int | None], None] = lambda engine, exit_code: None,
        clock: Callable[[], float] = time.time,
        patience: float = 30.0,
        keep_unfinished: bool = False,
    ) -> None:
        """`patience`: seconds without an event after which an engine counts as hung, at least. `keep_unfinished`:
        jobs that the end of the server interrupts stay as they are, for its next life."""
        self._patience, self._keeps = patience, keep_unfinished
        self.rates = Rates()
        self.draining = False
        self._on_end = on_end
        self._on_change = on_change
        self._on_event = on_event
        self._clock = clock
        self._uploads: dict[str, StoredJob] = {}
        self._queue: list[StoredJob] = []  # in their order
        self._running: dict[str, _Running] = {}
        self._order = Order()
        self._predictor = Predictor(self.rates, self._order, self._places, clock)
        self._admission = Admission(max_queue, max_queue_seconds, clock)
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

    def predict_start(self, client: str, seconds: float) -> float | None:
        """Predicted seconds until a job that comes now begins; None if nothing was measured."""
        if not self.rates.jobs:
            return None
        return self._predictor.start_of(Demand(client, self._clock(), seconds), self._look_ahead())

    @property
    def queue_length(self) -> int:
        return len(self._queue)

    @property
    def uploads(self) -> int:
        """How many jobs are being uploaded."""
        return len(self._uploads)

    # ---- jobs ----

    def check_room(
        self,
        client: str,
        settings: Settings,
        motion_kind: str,
        motion_bytes: int,
        *,
        priority: int = 0,
        deadline: float | None = None,
        client_places: int | None = None,
    ) -> None:
        """Raise `Busy`, `Draining`, `NotReady`, `TooLate` or `LimitError` where no upload may begin.

        A client may have `client_places` in the queue, jobs that are being uploaded included.
        """
        self.check_open()
        seconds = self.rates.predict(settings, self.rates.frames(settings, motion_kind, motion_bytes)) or 0.0
        self._check_memory(settings)
        job = Demand(client, self._clock(), seconds, priority, deadline)
        queue = self._look_ahead()
        self._admission.check_room(queue, job, client_places)
        if self.rates.jobs:
            self._admission.check_deadline(self._predictor.start_of(job, queue), job)

    def expect(self, job: StoredJob) -> None:
        """Hold a place in the queue for a job that is being uploaded."""
        self._uploads[job.id] = job

    def submit(self, job: StoredJob) -> None:
        """Queue an accepted job."""
        self._uploads.pop(job.id, None)
        if job.deadline is not None:
            wait = max(0.0, job.deadline - self._clock())
            asyncio.get_running_loop().call_later(wait, self._check_expired, job)
        self._queue.append(job)
        if job.cancel_asked:
            self.cancel(job)
        if self.draining:
            self._give_back(self._stopping())
        self._fill_engines()

    def cancel(self, job: StoredJob) -> None:
        """Stop a job: at once while it waits, within a step while it runs; an ended one stays as it is."""
        if job in self._queue:
            self._queue.remove(job)
            self._end(job, Cancelled("The job was cancelled."))
            self._sort_queue()
        elif job.active and not job.cancel_asked:  # it runs, or is being uploaded
            job.cancel_asked = True
            job.save()
            for engine in self.engines:
                engine.cancel(job.id)

    def release(self, job: StoredJob) -> None:
        """Nobody waits for the job any more: stop it, unless its callers left because the server stops."""
        if not (self.draining and self._keeps):
            self.cancel(job)

    def abandon(self, job: StoredJob, error: MimicMotionError) -> None:
        """End a job whose upload failed."""
        self._uploads.pop(job.id, None)
        self._end(job, error)

    def drain(self) -> None:
        """Take no more jobs and give back, or keep, the waiting ones; those that run go on."""
        self.draining = True
        self._give_back(self._stopping())

    def cut(self) -> None:
        """Stop the running jobs for the server's sake: they are kept for its next life, or end as `Draining`."""
        for job_id, running in list(self._running.items()):
            if running.error is None and not running.job.cancel_asked:
                running.error = self._stopping()
                for engine in self.engines:
                    engine.suspend(job_id) if self._keeps else engine.cancel(job_id)

    def suspend(self, job: StoredJob) -> None:
        """Stop a running job after a step and queue it again."""
        for engine in self.engines:
            engine.suspend(job.id)

    # ---- inside ----

    def check_open(self) -> None:
        """Raise `Draining` or `NotReady` where no job is taken."""
        if self.draining:
            raise Draining("The server is shutting down.", retry_after=COLD_RETRY)
        if self.failure is not None:
            raise NotReady("No engine is left.", remedy=str(self.failure), retry_after=COLD_RETRY)

    def _stopping(self) -> Draining:
        """What jobs end with."""
        if self._keeps:
            return Kept("The server is shutting down.", remedy=WATCH_AGAIN, retry_after=COLD_RETRY)
        return Draining("The server is shutting down.", retry_after=COLD_RETRY)

    def _engine_changed(self) -> None:
        if self.failure is not None:
            self._give_back(self.failure)
        self._fill_engines()
        self._on_change()

    def _fill_engines(self) -> None:
        self._sort_queue()
        while self._queue and (engine := self._engine_for(self._queue[0])):
            self._begin(self._queue.pop(0), engine)
            self._sort_queue()
        self._make_room()

    def _engine_for(self, job: StoredJob) -> EngineProcess | None:
        """A free engine. A job under which an engine died runs alone, so that it cannot take others along."""
        free = [engine for engine in self.engines if engine.free and not self._suspects(engine)]
        engine = min(free, key=lambda engine: len(engine.jobs), default=None)
        return None if engine is not None and job.deaths and engine.jobs else engine

    def _suspects(self, engine: EngineProcess) -> bool:
        return any(self._running[job].job.deaths for job in engine.jobs)

    def _begin(self, job: StoredJob, engine: EngineProcess) -> None:
        now, seconds = self._clock(), self._predictor.seconds(job)
        job.state, job.position, job.started = "running", None, job.started or now
        self._order.charge(job.client, seconds, now)
        running = self._running[job.id] = _Running(job, now, seconds)
        left = engine.config.limits.job_seconds - job.ran
        running.timer = asyncio.get_running_loop().call_later(left, self._out_of_time, running)
        run = Run(
            job.id,
            job.file("picture"),
            job.file("motion"),
            job.motion_kind,
            job.file("reference_pose") if job.has_reference_pose else None,
            job.videos,
            job.settings,
            engine.config.checkpoint_share,
            tuple(job.told),
        )
        step = self.rates.predict(job.settings, job.frames)
        step = step and step / (job.settings.steps * len(job.settings.each_seed))
        engine.run(
            run,
            patience=max(self._patience, HUNG_STEPS * step) if step else HUNG_STEPS * self._patience,
            cancel_patience=max(min(CANCEL_SECONDS, self._patience), 2 * (step or 0.0)),
        )

    def _event(self, job_id: str, event: Event | Suspended) -> None:
        running = self._running[job_id]
        job = running.job
        match event:
            case Done():
                if not job.ran:  # else its seconds are those of its last part only
                    self.rates.learn(job.settings, event, job.motion_kind, job.motion_bytes)
                self._end(job, event)
            case Suspended():
                self._again(job)
            case Failed(error=Cancelled()) if self.draining and not job.cancel_asked:
                self._end(job, running.error or self._stopping())
            case Failed(error=EngineLost() | DeviceLost()):
                self._lost(job, event.error)
            case Failed():
                self._end(job, running.error or event.error)
            case Started() if job.started_told:
                pass  # it runs again
            case _:
                job.tell(event)
                if isinstance(event, Started):
                    self._check_time(running)
                guarded(self._on_event, job, event)
                if isinstance(event, Progress):
                    self._make_room()

    def _lost(self, job: StoredJob, error: MimicMotionError) -> None:
        """An engine died under a job: the job runs again, but not a third time."""
        if not self.draining:  # else the server itself may have killed the engine
            job.deaths += 1
            job.save()
        if job.cancel_asked or self.draining or job.deaths < MOST_DEATHS:
            self._again(job)
        else:
            error.remedy = f"It was the {MOST_DEATHS}. engine that was lost with this job. " + error.remedy
            self._end(job, error)

    def _again(self, job: StoredJob) -> None:
        """Queue a job that ran already."""
        running = self._stopped(job)
        if running is not None and running.error is not None:
            self._end(job, running.error)
        elif job.cancel_asked:
            self._end(job, Cancelled("The job was cancelled."))
        elif self.draining:
            self._end(job, self._stopping())
        else:
            job.state = "queued"
            self._queue.append(job)
            self._check_expired(job)
            self._sort_queue()

    def _end(self, job: StoredJob, outcome: Done | MimicMotionError) -> None:
        self._stopped(job)
        if self._keeps and isinstance(outcome, Draining):
            job.part(outcome)
            guarded(self._on_end, job)
        else:
            job.end(outcome, self._clock(), lambda job: guarded(self._on_end, job))

    def _stopped(self, job: StoredJob) -> _Running | None:
        """A job is not in an engine any more."""
        running = self._running.pop(job.id, None)
        if running is not None:
            now = self._clock()
            job.ran += now - running.began
            self._order.charge(job.client, now - running.began - running.charged, now)
            if running.timer is not None:
                running.timer.cancel()
        return running

    def _give_back(self, error: MimicMotionError) -> None:
        """End the waiting jobs; a store that outlives the server keeps them."""
        while self._queue:
            self._end(self._queue.pop(), Kept(str(error), remedy=WATCH_AGAIN) if self._keeps else error)

    # ---- time ----

    def _check_time(self, running: _Running) -> None:
        """End a job whose frames are known now if it will take too long. Before, its length was a guess."""
        job, now = running.job, self._clock()
        seconds = self.rates.predict(job.settings, job.frames)
        if seconds is None or not job.frames:
            return
        try:
            most = self.engines[0].config.limits.job_seconds
            check_limit("predicted seconds of the job", round(seconds), most, field="settings")
            self._admission.check_deadline(0.0, Demand(job.client, now, seconds, deadline=job.deadline))
        except MimicMotionError as error:
            running.error = error
            self.cancel(job)

    def _check_memory(self, settings: Settings) -> None:
        """Refuse before the upload what even one frame would need too much memory for."""
        for engine in self.engines:
            if settings.size is not None and engine.ready is not None and engine.ready.costs is not None:
                check_memory(engine.ready.costs, settings, 1, engine.ready.rows, engine.config.limits)

    def _out_of_time(self, running: _Running) -> None:
        running.error = LimitError(
            f"The job ran for more than the {self.engines[0].config.limits.job_seconds:,} seconds allowed here.",
            remedy="Ask for fewer steps, frames or pixels.",
            field="settings",
        )
        self.cancel(running.job)

    def _check_expired(self, job: StoredJob) -> None:
        """End a job that still waits when its deadline is over."""
        if job not in self._queue or job.deadline is None or self._clock() < job.deadline:
            return
        self._queue.remove(job)
        self._end(
            job,
            TooLate(
                f"The job still waited when its {job.deadline - job.created:.1f} s were over;"
                f" it takes {self._predictor.seconds(job):.1f} s.",
                remedy="Allow more time.",
                field="deadline",
            ),
        )
        self._sort_queue()

    # ---- order ----

    def _look_ahead(self) -> Queue:
        """The waiting jobs and those that are being uploaded."""
        return self._predictor.queue([*self._queue, *self._uploads.values()])

    def _places(self) -> list[float]:
        """Seconds until each place of the engines is free."""
        places = sum(engine.config.limits.jobs for engine in self.engines)
        taken = [self._predictor.seconds(running.job) for running in self._running.values()]
        return taken + [0.0] * (places - len(taken))

    def _sort_queue(self) -> None:
        """Put the waiting jobs in order, and tell each where it stands if that has changed."""
        self._queue.sort(key=self._predictor.rank)
        if all(job.position == position for position, job in enumerate(self._queue)):
            return
        starts = self._predictor.starts(self._queue)
        for position, (job, start) in enumerate(zip(self._queue, starts, strict=True)):
            if job.position != position:
                job.position = position
                job.tell(Queued(position, start))

    def _make_room(self) -> None:
        """Ask a running job to stop for the first of the queue, where that is worth it."""
        if not self._queue or not self.rates.jobs or any(one.asked for one in self._running.values()):
            return
        waiting = self._predictor.demand(self._queue[0])
        able = [one for one in self._running.values() if self._makes_room(one, waiting)]
        if able and not self._queue[0].deaths:
            running = max(able, key=lambda one: self._predictor.rank(one.job))
            running.asked = True
            self.suspend(running.job)

    def _makes_room(self, running: _Running, waiting: Demand) -> bool:
        job, now = running.job, self._clock()
        if job.progress is None or job.progress.stage != "denoise" or job.cancel_asked:
            return False
        cost = self._predictor.stop_cost(job)
        return self._order.makes_room(self._predictor.demand(job), cost, now - running.began, waiting, now)
