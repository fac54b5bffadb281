"""Jobs, and the bounded store that keeps them with their finished videos."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import Cancelled, MimicMotionError
from ..events import Done, Event, Progress, Video
from ..settings import Settings
from .config import Keep
from .eventlog import EventLog
from .status import KeyReused, NotFound
from .wire import JobInfo, MotionKind, State


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
    deaths: int = 0
    """Of engines that ran it."""
    ran: float = 0.0
    """Seconds in engines that it left without an end."""
    started_told: bool = False
    told: list[Video] = field(default_factory=list)
    """The pieces of its video that were told: a job that runs again makes the same ones."""
    readers: int = 0
    """How many read its events. A job that is read is not dropped."""
    unread: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while there is no reader."""
    log: EventLog = field(default_factory=EventLog)

    def __post_init__(self) -> None:
        self.unread.set()

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def active(self) -> bool:
        return self.ended is None

    @property
    def video(self) -> Path:
        """The MP4; while the job runs, what there is of it."""
        return self.folder / "video.mp4"

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

    async def events(self, after: int = 0) -> AsyncGenerator[Event, None]:
        """Events numbered above `after`, the video's with their bytes, until the job ends; raises its error."""
        self.readers += 1
        self.unread.clear()
        try:
            with ExitStack() as files:
                descriptor = -1
                async for event in self.log.follow(after):
                    if isinstance(event, Video):
                        if self.error is not None:
                            break  # the video will never be whole
                        if descriptor < 0:
                            descriptor = files.enter_context(self.video.open("rb")).fileno()
                        data = await asyncio.to_thread(os.pread, descriptor, event.size, event.offset)
                        event = replace(event, data=data)
                    yield event
        finally:
            self.readers -= 1
            if not self.readers:
                self.unread.set()
        if self.error is not None:
            raise self.error.with_traceback(None)

    def end(self, outcome: Done | MimicMotionError, now: float) -> None:
        """Set the final state, end all readers, and drop the inputs (and the video of a job that failed)."""
        self.ended = now
        if isinstance(outcome, Done):
            self.state, self.done = "succeeded", outcome
            self.log.append(outcome)
        else:
            self.state = "cancelled" if isinstance(outcome, Cancelled) else "failed"
            self.error = outcome
        self.log.close()
        keep = {self.video} if self.done is not None else set()
        with suppress(OSError):  # what cannot be removed now goes with the folder in the end
            for file in set(self.folder.iterdir()) - keep:
                file.unlink(missing_ok=True)


class JobStore:
    """All jobs by id and by idempotency key, within the bounds of `keep`.

    Jobs that are not finished, or are being read, are never dropped; the scheduler bounds their number.
    """

    def __init__(self, folder: Path, keep: Keep, clock: Callable[[], float] = time.time) -> None:
        self.folder = folder
        self._keep = keep
        self._clock = clock
        self._jobs: dict[str, StoredJob] = {}  # oldest first

    def create(
        self,
        request_id: str,
        fingerprint: bytes,
        motion_kind: MotionKind,
        settings: Settings,
        *,
        has_reference_pose: bool = False,
        client: str = "",
        motion_bytes: int = 0,
        priority: int = 0,
        deadline: float | None = None,
    ) -> StoredJob:
        """A job with a folder for its files, whose upload begins."""
        self.sweep()
        folder = self.folder / secrets.token_hex(16)
        folder.mkdir()
        job = StoredJob(
            folder, request_id, fingerprint, motion_kind, has_reference_pose, settings, self._clock(), client,
            motion_bytes, priority, deadline,
        )  # fmt: skip
        self._jobs[job.id] = job
        return job

    def get(self, job_id: str) -> StoredJob:
        """Raises `NotFound`."""
        self.sweep()
        if job_id not in self._jobs:
            raise NotFound(
                f"There is no job {job_id[:64]!r}.",
                remedy="It may have expired; create it again.",
                field="job",
            )
        return self._jobs[job_id]

    def same(self, request_id: str, fingerprint: bytes) -> StoredJob | None:
        """The job that exists under this key; `KeyReused` if the key belongs to another request.

        A job that failed or was cancelled gives its key back, so that a caller may try again.
        """
        self.sweep()
        for job in self._jobs.values():
            if request_id and job.request_id == request_id and job.state not in ("failed", "cancelled"):
                if job.fingerprint != fingerprint:
                    raise KeyReused(
                        f"request_id {request_id!r} was used for another request.",
                        remedy="Choose a new request_id for every new animation.",
                        field="request_id",
                    )
                return job
        return None

    def all(self) -> list[StoredJob]:
        """Newest first."""
        self.sweep()
        return list(reversed(self._jobs.values()))

    def discard(self, job: StoredJob) -> None:
        self._jobs.pop(job.id, None)
        # In a thread: unlinking gigabytes takes a while on some file systems.
        asyncio.get_running_loop().run_in_executor(None, shutil.rmtree, job.folder, True)

    def sweep(self) -> None:
        """Drop the oldest finished jobs until the rest is within bounds."""
        now, count, size = self._clock(), 0, 0
        for job in list(reversed(self._jobs.values())):
            if job.ended is None or job.readers:
                continue
            count += 1
            size += job.done.bytes if job.done else 0
            old = now - job.ended > self._keep.seconds
            if old or count > self._keep.jobs or size > self._keep.bytes:
                self.discard(job)
