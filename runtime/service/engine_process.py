"""An engine process as the server sees it: started, fed with jobs, restarted when it dies."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import math
import multiprocessing
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from ..errors import DeviceLost, EngineError, MimicMotionError
from ..events import Done, Event, Failed
from . import worker
from .config import EngineConfig
from .status import EngineLost
from .worker import Cancel, FromEngine, Ready, Run, Suspend, Suspended, ToEngine

LONGEST_PAUSE = 30.0
"""Seconds between a death and the next start, at most."""
GUARD_SECONDS = 0.2
"""Between two looks at whether a process hangs."""


class EngineProcess:
    """One engine process. All methods are called on the event loop; nothing here blocks it.

    `on_event(job, event)` gets what the process says about a job; for a lost process it gets `Failed(EngineLost)`.
    `on_change()` is called whenever `warm`, `free` or `failure` changed; `on_lost(engine, exit code)` when its
    process ended or could not be spawned, before its jobs are told; `lost_why` says why. What these raise is reported
    to the loop's exception handler and does not stop the supervision.

    A process that dies, or cannot be spawned, is started again after `pause` seconds, twice as many after each
    further death in a row. After `tries` deaths in a row before it was warm the engine is given up. A process that
    says nothing about a job for longer than the job's patience is killed.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        on_event: Callable[[str, Event | Suspended], None],
        on_change: Callable[[], None],
        on_lost: Callable[[EngineProcess, int | None], None] = lambda engine, exit_code: None,
        pause: float = 0.2,
        tries: int = 5,
    ) -> None:
        self.config = config
        self.ready: Ready | None = None
        """The newest report that the process was warm; kept while it restarts."""
        self.warm = False
        self.jobs: dict[str, _Running] = {}
        """The jobs that it runs, by id."""
        self.failure: MimicMotionError | None = None
        """Why this engine was given up."""
        self.broken = False
        """Its supervision failed, which only a bug can cause: nothing looks after the process any more."""
        self.deaths = 0
        """In a row: of the process, since it last finished a job."""
        self.load_seconds = 0.0
        self._on_event = on_event
        self._on_change = on_change
        self._on_lost = on_lost
        self._pause = pause
        self._tries = tries
        self._refusal: MimicMotionError | None = None  # why it did not load when it last tried
        self.lost_why = ""
        """Why its process ended the last time."""
        self._hung = ""  # why it was killed
        self._link: _Link | None = None
        self._spawned = asyncio.Event()  # or failed to
        self._stopping = asyncio.Event()
        self.supervisor: asyncio.Task[None] | None = None
        """Ends when the engine was stopped or given up. If it raises, nobody looks after the process any more."""

    @property
    def free(self) -> bool:
        """Whether it takes another job."""
        return self.warm and len(self.jobs) < self.config.limits.jobs

    @property
    def pid(self) -> int | None:
        return self._link.pid if self._link else None

    async def start(self) -> None:
        """Spawn the process; returns before it has loaded."""
        self.supervisor = asyncio.create_task(self._supervise())
        self.supervisor.add_done_callback(self._supervision_ended)
        await self._spawned.wait()

    def run(self, run: Run, *, patience: float = math.inf, cancel_patience: float = math.inf) -> None:
        """Hand the process a job, while it is `free`.

        It is killed if it says nothing about the job for `patience` seconds, or if the job goes on for
        `cancel_patience` seconds after it was cancelled.
        """
        self.jobs[run.job] = _Running(patience, cancel_patience)
        self._send(run)

    def cancel(self, job: str) -> None:
        """Stop a job within a step."""
        if job in self.jobs:
            self.jobs[job].cancel()
            self._send(Cancel(job))

    def suspend(self, job: str) -> None:
        """Stop a job after a step whose state is kept; `on_event` gets `Suspended`."""
        if job in self.jobs:
            self._send(Suspend(job))

    async def stop(self, patience: float = 5.0) -> None:
        """End the process, by force if it is still loading or does not leave within `patience` seconds."""
        self._stopping.set()
        if self.supervisor is None:
            return
        for job in self.jobs:
            self.cancel(job)
        self._send(None)
        done, _ = await asyncio.wait({self.supervisor}, timeout=patience if self.warm else 0.0)
        if not done:
            if self._link is not None:
                self._link.kill()
            await asyncio.wait({self.supervisor})

    # ---- inside ----

    def _send(self, message: ToEngine) -> None:
        # If the process has just died, the supervisor notices it and fails the job.
        with contextlib.suppress(OSError):
            if self._link is not None:
                self._link.connection.send(message)

    async def _supervise(self) -> None:
        while not self._stopping.is_set() and self.failure is None:
            try:
                link = self._link = await asyncio.to_thread(_Link, self.config, asyncio.get_running_loop())
            except OSError as error:  # no descriptors, processes or memory left: perhaps later
                self._link = None
                self._lost(f"could not be started: {error.strerror or error}")
            else:
                self._spawned.set()
                if self._stopping.is_set():
                    link.kill()
                await self._attend(link)
            self._spawned.set()
            if self.failure is None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), self.pause)

    async def _attend(self, link: _Link) -> None:
        """One life of the process."""
        self._hung = ""
        guard = asyncio.create_task(self._guard(link))
        try:
            async for message in link.messages():
                self._receive(message, link)
        finally:
            guard.cancel()
            exit_code = await link.close()
        self._lost(self._hung or f"died (exit code {exit_code})", exit_code, died=True)

    async def _guard(self, link: _Link) -> None:
        """Kill a process that hangs."""
        before = time.monotonic()
        while True:
            await asyncio.sleep(GUARD_SECONDS)
            now = time.monotonic()
            slept, before = now - before, now
            for job, running in self.jobs.items():
                if slept > 5 * GUARD_SECONDS:  # the loop itself stood still, or this whole program
                    running.excuse(slept)
                if why := running.overdue(now):
                    self._hung = f"was killed: job {job} {why}"
                    link.kill()

    @property
    def pause(self) -> float:
        """Seconds from the process's last death to its restart, doubling with every death in a row."""
        return min(LONGEST_PAUSE, self._pause * 2.0 ** min(30, max(0, self.deaths - 1)))

    def _receive(self, message: FromEngine, link: _Link) -> None:
        match message:
            case Ready():
                self.ready, self.warm, self._refusal = message, True, None
                self.load_seconds = time.monotonic() - link.born
                guarded(self._on_change)
            case MimicMotionError():
                self._refusal = message
                if self.ready is None and not isinstance(message, DeviceLost):
                    self.failure = message  # a bundle that never loaded will not load the next time either
            case (job, event):
                self._hear(job, event)

    def _hear(self, job: str, event: Event | Suspended) -> None:
        over = isinstance(event, Done | Failed | Suspended)
        if job in self.jobs:
            self.jobs[job].heard = time.monotonic()
        if over:
            self.jobs.pop(job, None)
            self.deaths = 0
        if isinstance(event, Failed) and isinstance(event.error, DeviceLost):
            self.warm = False  # the process is about to end, and takes nothing any more
        guarded(self._on_event, job, event)
        if over:
            guarded(self._on_change)

    def _lost(self, why: str, exit_code: int | None = None, *, died: bool = False) -> None:
        """The process is gone, or never came."""
        loaded, self.warm = self.warm, False
        self.deaths += 1
        if died and not loaded and self.deaths >= self._tries and self.failure is None:
            self.failure = self._refusal or EngineError(
                f"The engine process ended {self.deaths} times while loading; the last time it {why}.",
                remedy="Look at its messages on standard error.",
            )
        self.lost_why = why
        if not self._stopping.is_set():
            guarded(self._on_lost, self, exit_code)
        jobs, self.jobs = self.jobs, {}
        for job in sorted(jobs):
            lost = EngineLost(
                f"The engine process {why} while it ran this job.",
                remedy="Send the job again; the engine restarts by itself.",
                retry_after=self.pause + self.load_seconds,
            )
            guarded(self._on_event, job, Failed(lost))
        guarded(self._on_change)

    def _supervision_ended(self, task: asyncio.Task[None]) -> None:
        self._spawned.set()
        if task.cancelled() or (error := task.exception()) is None:
            return
        self.broken, self.warm = True, False
        self.failure = EngineError(f"The engine's supervision failed: {type(error).__name__}: {error}.")
        if self._link is not None:
            self._link.kill()
        _report(error)
        guarded(self._on_change)


@dataclass(slots=True)
class _Running:
    """A job in the process, and how long the process may be silent about it. Times are of the monotonic clock."""

    patience: float
    cancel_patience: float
    heard: float = field(default_factory=time.monotonic)
    cancelled: float | None = None

    def cancel(self) -> None:
        self.cancelled = self.cancelled or time.monotonic()

    def excuse(self, seconds: float) -> None:
        """Leave out a time in which nobody listened."""
        self.heard += seconds
        if self.cancelled is not None:
            self.cancelled += seconds

    def overdue(self, now: float) -> str:
        """What is wrong; empty if nothing is."""
        if self.cancelled is not None and now - self.cancelled > self.cancel_patience:
            return f"did not stop within {self.cancel_patience:.3g} s after it was cancelled"
        if now - self.heard > self.patience:
            return f"made no progress for {self.patience:.3g} s"
        return ""


def guarded(function: Callable[..., None], *arguments: object) -> None:
    """Call what belongs to others: what they raise is reported, and the supervision goes on."""
    try:
        function(*arguments)
    except Exception as error:
        _report(error)


def _report(error: BaseException) -> None:
    message = "an engine's supervision met an unexpected error"
    asyncio.get_running_loop().call_exception_handler({"message": message, "exception": error})


class _Link:
    """One life of an engine process and the thread that reads its messages."""

    def __init__(self, config: EngineConfig, loop: asyncio.AbstractEventLoop) -> None:
        context = multiprocessing.get_context("spawn")
        self.born = time.monotonic()
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=worker.main, args=(theirs, config), name="mimicmotion-engine")
        with worker.deaf():
            self.process.start()
        self.pid = self.process.pid
        theirs.close()  # or the pipe would stay open when the process dies
        atexit.register(self.process.kill)  # it ignores SIGTERM, and an orphan would hold the device
        self._loop = loop
        self._inbox: asyncio.Queue[FromEngine | None] = asyncio.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    async def messages(self) -> AsyncIterator[FromEngine]:
        """Until the process has closed its end, usually by dying."""
        while (message := await self._inbox.get()) is not None:
            yield message

    async def close(self) -> int | None:
        """Reap the process; returns its exit code."""
        await asyncio.to_thread(self.process.join, 5.0)
        if self.process.exitcode is None:
            self.process.kill()
            await asyncio.to_thread(self.process.join)
        atexit.unregister(self.process.kill)
        self.connection.close()
        exit_code = self.process.exitcode
        self.process.close()  # or its descriptors would stay open as long as this object is known
        return exit_code

    def kill(self) -> None:
        """End the process, if it has not ended."""
        with contextlib.suppress(ValueError):  # it was closed
            self.process.kill()

    def _read(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is gone, and nobody waits for messages any more
            with contextlib.suppress(Exception):  # closed, perhaps in the middle of a message
                while True:
                    self._loop.call_soon_threadsafe(self._inbox.put_nowait, self.connection.recv())
            self._loop.call_soon_threadsafe(self._inbox.put_nowait, None)
