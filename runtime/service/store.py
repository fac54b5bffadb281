"""All jobs of a service: those under way in memory, and every accepted one on disk."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from ..errors import Cancelled, MimicMotionError, OutputError, ServiceError
from ..events import Accepted, Done, Event
from ..files import lock_folder, sync_folder
from ..settings import Settings
from .config import Keep
from .database import Database, Work
from .jobs import StoredJob
from .records import event_rows, job_from_row, job_to_row
from .status import Busy, EngineLost, KeyReused, unknown_job
from .wire import PARTS, MotionKind

PREFIX = "mimicmotion-"
"""Temporary folders of servers are called so."""
MOST_CRASHES = 3
"""A job that was running when so many servers died is given up."""
RETRY_FULL = 60.0
"""Seconds after which a caller may try again where the disk is full."""
PAGE = 100
"""Jobs of a list unless its caller says how many."""


def steady_clock() -> Callable[[], float]:
    """Seconds since 1970 that go on evenly, however the machine's clock is set while the process runs."""
    offset = time.time() - time.monotonic()
    return lambda: offset + time.monotonic()


class JobStore:
    """Jobs by id and by idempotency key, within the bounds of `keep`, in a folder of one server at a time:
    `jobs.db`, and for each job a folder `jobs/ID` with its upload, checkpoints and video.

    A job is in memory until it has ended, and while it is read; others are read from the database when they are asked
    for. Jobs that have not ended, or are being read, are never dropped; the scheduler bounds their number.
    """

    def __init__(
        self,
        folder: Path,
        keep: Keep,
        clock: Callable[[], float] | None = None,
        *,
        durable: bool = True,
    ) -> None:
        """Not `durable`: nothing is kept from one server to the next, and nothing waits for the disk.

        Raises `ServiceError` if the folder cannot be used or if another server uses it.
        """
        self.folder = folder
        self.durable = durable
        self.clock = clock or steady_clock()
        self.unfinished: list[StoredJob] = []
        """Jobs that an earlier server left, in the order in which they were accepted."""
        self._keep = keep
        self._files = folder / "jobs"
        self._jobs: dict[str, StoredJob] = {}  # that have not ended, oldest first
        self._ended: WeakValueDictionary[str, StoredJob] = WeakValueDictionary()  # that somebody uses
        self._held = ExitStack()
        try:
            self._held.enter_context(lock_folder(folder))
            self._files.mkdir(mode=0o700, exist_ok=True)
        except (OutputError, OSError) as error:
            raise ServiceError(
                f"the store {folder} cannot be used: {error}", remedy="Choose another folder.", field="store"
            ) from error
        try:
            self._database = Database(folder / "jobs.db", sync=durable)
            self._load()
        except BaseException:
            self._held.close()
            raise

    @classmethod
    def open(cls, store: Path | None, parent: Path | None, keep: Keep) -> JobStore:
        """The store in a folder, or a temporary one in `parent` (None: the system's), where those of servers that
        were killed are removed. Raises `ServiceError`."""
        if store is not None:
            return cls(store, keep)
        place = parent or Path(tempfile.gettempdir())
        _remove_orphans(place)
        try:
            folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        except OSError as error:
            raise ServiceError(
                f"no folder can be made in {place}: {error.strerror}.",
                remedy="Give --folder a folder that exists and can be written.",
                field="folder",
            ) from error
        return cls(folder, keep, durable=False)

    # ---- jobs ----

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
        """A job with a folder for its files, whose upload begins. Raises `Busy` if there is no room for them."""
        folder = self._files / secrets.token_hex(16)
        try:
            folder.mkdir(
                mode=0o700, parents=True
            )  # the parents as well: a cleaner of temporary files may be about
        except OSError as error:
            raise _full(error) from error
        job = StoredJob(
            folder, request_id, fingerprint, motion_kind, has_reference_pose, settings, self.clock(), client,
            motion_bytes, priority, deadline, write=self._update,
        )  # fmt: skip
        self._jobs[job.id] = job
        return job

    def accept(self, job: StoredJob) -> Coroutine[Any, Any, None]:
        """Number a job whose upload is complete: from this call on it is found by its `request_id`.

        What is returned puts it on the disk and tells it as accepted. Raises `Busy` if it cannot be written.
        """
        job.state, job.number = "queued", self._next_number
        self._next_number += 1
        return self._write_accepted(job)

    async def _write_accepted(self, job: StoredJob) -> None:
        accepted = job.log.number(Accepted(job.id, job.settings))
        job.reserve(accepted.sequence)
        try:
            if self.durable:
                await asyncio.to_thread(_sync_upload, job.folder)
            written = self._database.write(_put(_INSERT, job, accepted))
            job.log.put(accepted, written)
            await asyncio.wrap_future(written)
        except (sqlite3.Error, OSError) as error:
            raise _full(error) from error

    def get(self, job_id: str) -> StoredJob:
        """Raises `NotFound`."""
        if (job := self._jobs.get(job_id) or self._ended.get(job_id)) is not None:
            return job
        rows = self._database.read("SELECT * FROM jobs WHERE id = ? AND ended >= ?", job_id, self._oldest)
        if not rows:
            raise unknown_job(job_id)
        job = self._ended[job_id] = self._from_row(rows[0], with_events=True)
        return job

    def known(self, request_id: str, client: str | None = None) -> StoredJob | None:
        """The accepted job under this key (of this client). One that failed, was cancelled or is about to be gives
        its key back, so that a caller may try again."""
        if not request_id:
            return None
        for job in reversed(self._jobs.values()):
            if job.request_id == request_id and client in (None, job.client):
                wanted = not job.cancel_asked and (job.outcome is None or isinstance(job.outcome[0], Done))
                if job.number and wanted:
                    return job
        rows = self._database.read(
            "SELECT id FROM jobs WHERE request_id = ? AND state = 'succeeded' AND ifnull(?, client) = client"
            " AND ended >= ? ORDER BY number DESC LIMIT 1",
            request_id,
            client,
            self._oldest,
        )
        return self.get(rows[0]["id"]) if rows else None

    def same(self, request_id: str, fingerprint: bytes, client: str | None = None) -> StoredJob | None:
        """The accepted job under this key; `KeyReused` if that was made of another request."""
        job = self.known(request_id, client)
        if job is not None and job.fingerprint != fingerprint:
            raise KeyReused(
                f"request_id {request_id!r} was used for another request.",
                remedy="Choose a new request_id for every new animation.",
                field="request_id",
            )
        return job

    def active(self) -> list[StoredJob]:
        """Jobs that have not ended or are being read."""
        return [*self._jobs.values(), *self._ended.values()]

    def page(
        self, size: int = PAGE, before: int = 0, may_see: Callable[[str], bool] = lambda client: True
    ) -> tuple[list[StoredJob], int]:
        """(at most `size` jobs, newest first, of clients that `may_see`; what `before` has to be for the next ones, 0
        after the last). Those being uploaded come with the first page."""
        found = [] if before else [job for job in reversed(self._jobs.values()) if not job.number]
        found = [job for job in found if may_see(job.client)]
        for row in self._rows(before):
            if not may_see(row["client"]):
                continue
            if len(found) >= size:
                return found, found[-1].number
            found.append(self._jobs.get(row["id"]) or self._ended.get(row["id"]) or self._from_row(row))
        return found, 0

    def totals(self) -> tuple[int, int]:
        """(accepted jobs, bytes of their videos)."""
        (row,) = self._database.read("SELECT count(*) AS jobs, ifnull(sum(bytes), 0) AS size FROM jobs")
        return row["jobs"], row["size"]

    def discard(self, job: StoredJob) -> None:
        """Forget a job that was not accepted."""
        self._jobs.pop(job.id, None)
        self._remove([job.folder])

    def sweep(self) -> None:
        """Drop the oldest ended jobs until the rest is within bounds; those without video push out no others."""
        read = {job.id for job in self._ended.values() if job.readers}
        self._keep_folder()

        def drop(connection: sqlite3.Connection) -> list[str]:
            rows = connection.execute(_BEYOND, (self._oldest, self._keep.jobs, self._keep.bytes)).fetchall()
            beyond = [(row["id"],) for row in rows if row["id"] not in read]
            connection.executemany("DELETE FROM events WHERE job = ?", beyond)
            connection.executemany("DELETE FROM jobs WHERE id = ?", beyond)
            return [job_id for (job_id,) in beyond]

        loop = asyncio.get_running_loop()

        def dropped(future: Future[list[str]]) -> None:
            if future.exception() is None and future.result():
                folders = [self._files / job_id for job_id in future.result()]
                with suppress(RuntimeError):  # the loop is closed: the next server removes them
                    loop.call_soon_threadsafe(self._remove, folders)

        self._database.write(drop).add_done_callback(dropped)

    async def broken(self) -> None:
        """Waits for ever, unless the database breaks while it is used; raises why then."""
        await asyncio.wrap_future(self._database.broken)

    async def flush(self) -> None:
        """Return when all that was told to the store is on the disk, or after a second: the disk may be full."""
        written = asyncio.wrap_future(self._database.write(lambda connection: None, patient=True))
        await asyncio.wait({written}, timeout=1.0)

    async def close(self) -> None:
        """Give the folder back; a temporary one is removed."""
        await asyncio.to_thread(self._database.close)
        self._held.close()
        if not self.durable:
            await asyncio.to_thread(shutil.rmtree, self.folder, True)

    # ---- inside ----

    @property
    def _oldest(self) -> float:
        """Jobs that ended before are not kept."""
        return self.clock() - self._keep.seconds

    def _update(self, job: StoredJob, event: Event | None) -> Future[Any] | None:
        """Put an accepted job on the disk as it is now, with an event if there is one."""
        if not job.number:
            return None
        written = self._database.write(_put(_UPDATE, job, event), patient=True)
        if job.outcome is not None:
            job.log.when_shown(lambda: self._retire(job), written)
        return written

    def _retire(self, job: StoredJob) -> None:
        self._jobs.pop(job.id, None)
        self._ended[job.id] = job

    def _rows(self, before: int) -> Iterator[sqlite3.Row]:
        """Rows of jobs, newest first."""
        while rows := self._database.read(
            "SELECT * FROM jobs WHERE (number < ?1 OR ?1 = 0) AND (ended >= ?2 OR ended IS NULL)"
            " ORDER BY number DESC LIMIT 200",
            before,
            self._oldest,
        ):
            yield from rows
            before = rows[-1]["number"]

    def _from_row(self, row: sqlite3.Row, *, with_events: bool = False) -> StoredJob:
        events = []
        if with_events:
            events = self._database.read("SELECT * FROM events WHERE job = ? ORDER BY sequence", row["id"])
        return job_from_row(row, events, self._files / row["id"], self._update)

    def _load(self) -> None:
        """Take over what an earlier server left."""
        (newest,) = self._database.read("SELECT ifnull(max(number), 0) AS number FROM jobs")
        self._next_number = newest["number"] + 1
        for row in self._database.read("SELECT * FROM jobs WHERE ended IS NULL ORDER BY number"):
            job = self._jobs[row["id"]] = self._from_row(row, with_events=True)
            if row["state"] == "running":
                job.crashes += 1
            job.state = "queued"
            lost = _what_is_lost(job)
            if lost is None:
                self.unfinished.append(job)
                job.save()
            else:
                job.error = None
                job.end(lost, self.clock())
        known = {row["id"] for row in self._database.read("SELECT id FROM jobs")}
        for folder in self._files.iterdir():  # uploads that were under way, and dropped jobs
            if folder.name not in known:
                shutil.rmtree(folder, True)

    def _keep_folder(self) -> None:
        """Notice that a cleaner of temporary files removed the store's folder."""
        if not self._files.is_dir():
            log = logging.getLogger(__name__)
            log.error(
                "the folder %s was removed from outside and is made anew; its files are lost", self._files
            )
            with suppress(OSError):
                self._files.mkdir(mode=0o700, parents=True)

    def _remove(self, folders: list[Path]) -> None:
        """Remove them in a thread: unlinking gigabytes takes a while on some file systems."""
        loop = asyncio.get_running_loop()
        for folder in folders:
            loop.run_in_executor(None, shutil.rmtree, folder, True)


_BEYOND = """
    SELECT id FROM (
        SELECT id, ended, row_number() OVER newest AS count, sum(bytes) OVER newest AS size
        FROM jobs WHERE ended IS NOT NULL
        WINDOW newest AS (PARTITION BY state = 'succeeded' ORDER BY ended DESC, number DESC)
    ) WHERE ended < ? OR count > ? OR size > ?
"""


_INSERT = """
    INSERT INTO jobs
    VALUES (:number, :id, :client, :request_id, :state, :created, :ended, :bytes, :numbered, :record)
"""
_UPDATE = """
    UPDATE jobs SET state = :state, ended = :ended, bytes = :bytes, numbered = :numbered, record = :record
    WHERE id = :id
"""


def _put(statement: str, job: StoredJob, event: Event | None) -> Work:
    """Writes the job as it is at the time of this call by `_INSERT` or `_UPDATE`, and the event if there is one."""
    row, events = job_to_row(job), event_rows(job, event)

    def put(connection: sqlite3.Connection) -> None:
        connection.execute(statement, row)
        connection.executemany("INSERT INTO events VALUES (?, ?, ?)", events)

    return put


def _what_is_lost(job: StoredJob) -> MimicMotionError | None:
    """Why a job that an earlier server left cannot go on; None if it can."""
    if job.error is not None:
        return job.error
    if job.cancel_asked:
        return Cancelled("The job was cancelled.")
    if job.crashes >= MOST_CRASHES:
        return EngineLost(
            f"{job.crashes} servers died while they ran this job.", remedy="Look at the machine's memory."
        )
    parts = [part for part in PARTS if part != "reference_pose" or job.has_reference_pose]
    missing = [part for part in parts if not job.file(part).is_file()]
    if missing:
        return ServiceError(
            f"The job's upload was lost while the server was stopped: {', '.join(missing)}.",
            remedy="Send the job again.",
        )
    return None


def _sync_upload(folder: Path) -> None:
    """Return when the files of a folder, and it itself, are on the disk."""
    for file in folder.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    sync_folder(folder)
    sync_folder(folder.parent)


def _remove_orphans(parent: Path) -> None:
    """Remove temporary stores whose server is gone: nobody holds their lock."""
    for folder in parent.glob(f"{PREFIX}*"):
        if (folder / ".lock").exists() and (folder / "jobs.db").exists():
            with suppress(OutputError), lock_folder(folder):
                shutil.rmtree(folder, True)


def _full(error: Exception) -> Busy:
    text = getattr(error, "strerror", None) or error
    return Busy(f"The server cannot store the job: {text}.", retry_after=RETRY_FULL)
