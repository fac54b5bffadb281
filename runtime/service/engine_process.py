"""An engine process as the server sees it: started, fed with jobs, restarted when it dies."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import multiprocessing
import threading
import time
from collections.abc import AsyncIterator, Callable

from ..errors import DeviceLost, EngineError, MimicMotionError
from ..events import Done, Event, Failed
from . import worker
from .config import EngineConfig
from .status import EngineLost
from .worker import Cancel, FromEngine, Ready, Run, ToEngine

LONGEST_PAUSE = 30.0
"""Seconds between a death and the next start, at most."""


class EngineProcess:
    """One engine process. All methods are called on the event loop; nothing here blocks it.

    `on_event(job, event)` gets what the process says about a job, a lost process included, as
    `Failed(EngineLost)`. `on_change()` is called whenever `warm`, `free` or `failure` changed; `on_lost(engine,
    exit code)` when its process ended, before its jobs are told.

    A process that dies is started again after `pause` seconds, twice as many after each further death in a row.
    After `tries` deaths in a row before it was warm the engine is given up.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        on_event: Callable[[str, Event], None],
        on_change: Callable[[], None],
        on_lost: Callable[[EngineProcess, int | None], None] = lambda engine, exit_code: None,
        pause: float = 0.2,
        tries: int = 5,
    ) -> None:
        self.config = config
        self.ready: Ready | None = None
        """The newest report that the process was warm; kept while it restarts."""
        self.warm = False
        self.jobs: set[str] = set()
        """The ids of the jobs that it runs."""
        self.failure: MimicMotionError | None = None
        """Why this engine was given up."""
        self.deaths = 0
        """In a row: of the process, since it last finished a job."""
        self.load_seconds = 0.0
        self._on_event = on_event
        self._on_change = on_change
        self._on_lost = on_lost
        self._pause = pause
        self._tries = tries
        self._refusal: MimicMotionError | None = None  # why it did not load when it last tried
        self._link: _Link | None = None
        self._stopping = asyncio.Event()
        self.supervisor: asyncio.Task[None] | None = None
        """Ends when the engine was stopped or given up. If it raises, nobody looks after the process any more."""

    @property
    def free(self) -> bool:
        """Whether it takes another job."""
        return self.warm and len(self.jobs) < self.config.limits.jobs

    @property
    def pid(self) -> int | None:
        return self._link.process.pid if self._link else None

    async def start(self) -> None:
        """Spawn the process; returns before it has loaded."""
        self._link = await asyncio.to_thread(_Link, self.config, asyncio.get_running_loop())
        self.supervisor = asyncio.create_task(self._supervise(self._link))

    def run(self, run: Run) -> None:
        """Hand the process a job, while it is `free`."""
        self.jobs.add(run.job)
        self._send(run)

    def cancel(self, job: str) -> None:
        if job in self.jobs:
            self._send(Cancel(job))

    async def stop(self, patience: float = 5.0) -> None:
        """End the process, by force if it is still loading or does not leave within `patience` seconds."""
        self._stopping.set()
        if self.supervisor is None:
            return
        for job in self.jobs:
            self.cancel(job)
        self._send(None)
        done, _ = await asyncio.wait({self.supervisor}, timeout=patience if self.warm else 0.0)
        if not done and self._link is not None:
            self._link.process.kill()
            await asyncio.wait({self.supervisor})

    def _send(self, message: ToEngine) -> None:
        # If the process has just died, the supervisor notices it and fails the job.
        with contextlib.suppress(OSError):
            if self._link is not None:
                self._link.connection.send(message)

    async def _supervise(self, link: _Link) -> None:
        while True:
            async for message in link.messages():
                self._receive(message, link)
            self._lost(await link.close())
            if self.failure is not None:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self.pause)
            if self._stopping.is_set():
                return
            link = self._link = await asyncio.to_thread(_Link, self.config, asyncio.get_running_loop())

    @property
    def pause(self) -> float:
        """Seconds from the process's last death to its restart, doubling with every death in a row."""
        return min(LONGEST_PAUSE, self._pause * 2.0 ** max(0, self.deaths - 1))

    def _receive(self, message: FromEngine, link: _Link) -> None:
        match message:
            case Ready():
                self.ready, self.warm, self._refusal = message, True, None
                self.load_seconds = time.monotonic() - link.born
                self._on_change()
            case MimicMotionError():
                self._refusal = message
                if self.ready is None and not isinstance(message, DeviceLost):
                    self.failure = message  # a bundle that never loaded will not load the next time either
            case (job, event):
                over = isinstance(event, Done | Failed)
                if over:
                    self.jobs.discard(job)
                    self.deaths = 0
                if isinstance(event, Failed) and isinstance(event.error, DeviceLost):
                    self.warm = False  # the process is about to end, and takes nothing any more
                self._on_event(job, event)
                if over:
                    self._on_change()

    def _lost(self, exit_code: int | None) -> None:
        loaded, self.warm = self.warm, False
        self.deaths += 1
        if not loaded and self.deaths >= self._tries and self.failure is None:
            self.failure = self._refusal or EngineError(
                f"The engine process died {self.deaths} times while loading (exit code {exit_code}).",
                remedy="Look at its messages on standard error.",
            )
        if not self._stopping.is_set():
            self._on_lost(self, exit_code)
        jobs, self.jobs = self.jobs, set()
        for job in sorted(jobs):
            lost = EngineLost(
                f"The engine process died while it ran this job (exit code {exit_code}).",
                remedy="Send the job again; the engine restarts by itself.",
                retry_after=self.pause + self.load_seconds,
            )
            self._on_event(job, Failed(lost))
        self._on_change()


class _Link:
    """One life of an engine process and the thread that reads its messages."""

    def __init__(self, config: EngineConfig, loop: asyncio.AbstractEventLoop) -> None:
        context = multiprocessing.get_context("spawn")
        self.born = time.monotonic()
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=worker.main, args=(theirs, config), name="mimicmotion-engine")
        self.process.start()
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
        return self.process.exitcode

    def _read(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is gone, and nobody waits for messages any more
            with contextlib.suppress(Exception):  # closed, perhaps in the middle of a message
                while True:
                    self._loop.call_soon_threadsafe(self._inbox.put_nowait, self.connection.recv())
            self._loop.call_soon_threadsafe(self._inbox.put_nowait, None)
