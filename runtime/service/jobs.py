"""One job of the service: its state, its events, its files."""

from __future__ import annotations

import asyncio
import os
import zlib
from collections.abc import AsyncGenerator, Callable, Iterable
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import Cancelled, MimicMotionError, ServiceError
from ..events import Accepted, Done, Event, Progress, Started, Video
from ..settings import Settings
from .eventlog import EventLog
from .status import NotFound
from .wire import PARTS, JobInfo, MotionKind, State

DURABLE = (Accepted, Started, Video, Done)
"""Events that outlive the server. Of the others, the newest are told again anyway while a job runs."""
NUMBERS = 1000
"""Numbers of events that are reserved at a time, so that a later life of the server does not use them again."""
REWRITE_SECONDS = 0.1
"""Between two looks at a piece of video that a job, running again, has not written again yet."""


WriteJob = Callable[["StoredJob", Event | None], Future[Any] | None]
"""Puts a job as it is now, and an event, on the disk; None: the job need not be there."""


def _unwritten(job: StoredJob, event: Event | None) -> Future[Any] | None:
    return None


@dataclass(eq=False)
class StoredJob:
    """One animation from its upload to the end of its video's life; its files lie in `folder`."""

    folder: Path
    request_id: str
    fingerprint: bytes
    """Must be equal in a second request under the same `request_id`."""
    motion_kind: MotionKind
    has_reference_pose: bool
    settings: Settings
    created: float
    """Times are seconds since 1970."""
    client: str = ""
    """Whose job it is: the name of the caller's token, or its address where callers have none."""
    motion_bytes: int = 0
    priority: int = 0
    """-9 to 9; higher ones go first."""
    deadline: float | None = None
    """When it has to be finished; None: at any time."""
    number: int = 0
    """Jobs are numbered in the order in which they were accepted; 0 before that."""
    started: float | None = None
    ended: float | None = None
    state: State = "receiving"
    position: int | None = None
    """In the queue, as in the newest `Queued` event."""
    frames: int = 0
    """Of the finished video; 0 until that is known."""
    progress: Progress | None = None
    done: Done | None = None
    error: MimicMotionError | None = None
    cancel_asked: bool = False
    detached: bool = False
    """Whether it goes on when no caller of `Animate` is left."""
    callers: int = 0
    """Calls of `Animate` that wait for it."""
    deaths: int = 0
    """Of engines that ran it."""
    crashes: int = 0
    """Of servers that ran it."""
    ran: float = 0.0
    """Seconds in engines that it left without an end."""
    started_told: bool = False
    told: list[Video] = field(default_factory=list)
    """The pieces of its video that were told: a job that runs again makes the same ones."""
    outcome: tuple[Done | MimicMotionError, float] | None = None
    """How and when it ended, from the moment at which this is being written down."""
    parted: MimicMotionError | None = None
    """Why its events end here although it has not ended: the server stops and keeps it."""
    readers: int = 0
    """How many read its events. A job that is read is not dropped."""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it has ended, which is on the disk then."""
    unread: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while there is no reader."""
    taken: int = 0
    """Events that readers have taken, all of them together."""
    log: EventLog = field(default_factory=EventLog)
    numbered: int = 0
    """Event numbers up to this one are reserved."""
    write: WriteJob = _unwritten
    """Puts the job as it is now, and an event, on the disk; given by the store."""

    def __post_init__(self) -> None:
        self.unread.set()

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def active(self) -> bool:
        return self.ended is None

    @property
    def videos(self) -> tuple[Path, ...]:
        """The MP4 of each video; while the job runs, what there is of it."""
        count = len(self.settings.each_seed)
        return (self.folder / "video.mp4", *(self.folder / f"video-{n}.mp4" for n in range(2, count + 1)))

    def file(self, part: str) -> Path:
        """An uploaded file: `picture`, `motion` or `reference_pose`."""
        return self.folder / part

    def info(self) -> JobInfo:
        """The job as it is now."""
        return JobInfo(
            job=self.id,
            request_id=self.request_id,
            state=self.state,
            settings=self.settings,
            last_sequence=self.log.last_sequence,
            created=self.created,
            started=self.started,
            ended=self.ended,
            progress=self.progress if self.state == "running" else None,
            done=self.done,
            error=self.error,
            cancel_pending=self.cancel_asked and self.active,
            priority=self.priority,
            deadline=self.deadline,
        )

    # ---- callers ----

    def join(self) -> None:
        """Another call of `Animate` waits for it."""
        self.callers += 1

    def leave(self) -> bool:
        """A call of `Animate` ends; returns whether nobody wants the job any more."""
        self.callers -= 1
        return not self.callers and not self.detached

    # ---- events ----

    def tell(self, event: Event) -> None:
        """Number an event and show it to readers, after it was written down if it is to outlive the server."""
        event = self.log.number(event)
        if isinstance(event, Started):
            self.frames, self.started_told = event.frames, True
        elif isinstance(event, Progress):
            self.progress = event
        elif isinstance(event, Video):
            self.told.append(replace(event, sequence=0))
        durable = isinstance(event, DURABLE)
        written = None
        if durable or event.sequence > self.numbered:
            self.reserve(event.sequence)
            written = self.write(self, event if durable else None)
        self.log.put(event, written)

    def save(self) -> None:
        """Write down what changed besides events."""
        if self.outcome is None:
            self.write(self, None)

    def reserve(self, sequence: int) -> None:
        """Make sure that no later life of the server numbers another event like this one."""
        if sequence > self.numbered:
            self.numbered = sequence + NUMBERS

    def end(
        self,
        outcome: Done | MimicMotionError,
        now: float,
        then: Callable[[StoredJob], None] = lambda job: None,
    ) -> None:
        """Write down how it ended, then tell readers, drop the inputs (and the video of a job that failed), and call
        `then`. A second outcome is ignored."""
        if self.outcome is not None:
            return
        if isinstance(outcome, Done):
            outcome = self.log.number(outcome)
            self.reserve(outcome.sequence)
        else:  # at once: on a full disk they may take the room that writing this down needs
            self._remove(set(self._files()) - {self.file(part) for part in PARTS})
        self.outcome = (outcome, now)
        written = self.write(self, outcome if isinstance(outcome, Done) else None)
        self.log.when_shown(lambda: self._ended(outcome, now, then), written)

    def part(self, error: MimicMotionError) -> None:
        """End the readers with this error; the job is kept for the server's next life."""
        self.parted, self.state = error, "queued"
        self.save()
        self.log.when_shown(self.log.close)

    def state_after(self, outcome: Done | MimicMotionError) -> State:
        """Its state once it has ended so."""
        if isinstance(outcome, Done):
            return "succeeded"
        return "cancelled" if isinstance(outcome, Cancelled) else "failed"

    def _ended(self, outcome: Done | MimicMotionError, now: float, then: Callable[[StoredJob], None]) -> None:
        self.ended, self.state = now, self.state_after(outcome)
        if isinstance(outcome, Done):
            self.done = outcome
            self.log.put(outcome)
        else:
            self.error = outcome
        self.log.close()
        self._remove(set(self._files()) - (set(self.videos) if self.done is not None else set()))
        self.over.set()
        then(self)

    def _files(self) -> list[Path]:
        try:
            return list(self.folder.iterdir())
        except OSError:  # the folder is gone
            return []

    def _remove(self, files: Iterable[Path]) -> None:
        for file in files:
            with suppress(OSError):  # what cannot be removed now goes with the folder in the end
                file.unlink(missing_ok=True)

    async def events(self, after: int = 0) -> AsyncGenerator[Event, None]:
        """Events numbered above `after`, the video's with their bytes, until the job ends; raises its error."""
        self.readers += 1
        self.unread.clear()
        try:
            with ExitStack() as files:
                opened: dict[int, int] = {}
                async for event in self.log.follow(after):
                    if isinstance(event, Video):
                        if self.error is not None:
                            break  # the video will never be whole
                        if event.video not in opened:
                            files.close()  # the video before
                            file = files.enter_context(await self._open(event.video))
                            opened = {event.video: file.fileno()}
                        event = replace(event, data=await self._piece(opened[event.video], event))
                    yield event
                    self.taken += 1
        finally:
            self.readers -= 1
            if not self.readers:
                self.unread.set()
        if (error := self.error or self.parted) is not None:
            raise error.with_traceback(None)

    async def _open(self, number: int) -> Any:
        """The file of a video."""
        while True:
            try:
                return self.videos[number - 1].open("rb")
            except OSError as error:
                gone = NotFound(
                    "The job's video is gone from the server's disk.",
                    remedy="It may have expired; create it again.",
                    field="job",
                )
                await self._rewritten(gone, error)

    async def _piece(self, descriptor: int, piece: Video) -> bytes:
        """The bytes of a piece."""
        while True:
            data = await asyncio.to_thread(os.pread, descriptor, piece.size, piece.offset)
            if zlib.crc32(data) == piece.crc32:
                return data
            await self._rewritten(
                ServiceError(f"The server's copy of the video is damaged at byte {piece.offset}.")
            )

    async def _rewritten(self, error: MimicMotionError, cause: Exception | None = None) -> None:
        """After a power cut told pieces may be missing until the job, running again, has made them: wait a little.

        Raises `error`, or the job's own, if the job has ended.
        """
        if self.log.closed:
            raise (self.error or self.parted or error) from cause
        await asyncio.sleep(REWRITE_SECONDS)
