"""The database of jobs: SQLite with one thread that writes, whose commits are grouped and synced to the disk."""

from __future__ import annotations

import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ServiceError

RETRY_SECONDS = 0.5
"""Between two tries of writes that have to succeed, such as when the disk is full."""
CACHE_KIB = 256
"""Of pages, in each of the two connections; the system caches the file anyway, and memory is flat from the start."""
MIGRATIONS = (
    """
    CREATE TABLE jobs (
        number INTEGER PRIMARY KEY,           -- in the order of acceptance
        id TEXT NOT NULL UNIQUE,
        client TEXT NOT NULL,
        request_id TEXT NOT NULL,             -- '' where there is none
        state TEXT NOT NULL,
        created REAL NOT NULL,                -- seconds since 1970
        ended REAL,
        bytes INTEGER NOT NULL,               -- of the video of a job that succeeded
        numbered INTEGER NOT NULL,            -- events up to this number may have been told
        record TEXT NOT NULL                  -- all else, as JSON
    );
    CREATE INDEX jobs_by_key ON jobs (request_id) WHERE request_id <> '';
    CREATE INDEX jobs_by_end ON jobs (ended, number);
    CREATE TABLE events (
        job TEXT NOT NULL,
        sequence INTEGER NOT NULL,
        event TEXT NOT NULL,                  -- as JSON
        PRIMARY KEY (job, sequence)
    ) WITHOUT ROWID;
    """,
)
"""What makes a database of version n + 1 out of one of version n."""

PASSING = frozenset(
    {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
    }
)
"""Errors that may be gone at the next try."""

Work = Callable[[sqlite3.Connection], Any]


@dataclass(frozen=True, slots=True)
class _Write:
    work: Work
    patient: bool
    future: Future[Any] = field(default_factory=Future)


class Database:
    """A database file. `read` may be called on the event loop; `write` never blocks.

    Raises `ServiceError` for a file that is damaged or of a newer version.
    """

    def __init__(self, path: Path, *, sync: bool = True) -> None:
        """`sync`: a commit is on the disk when it is told, so that it outlives a power cut."""
        self.path, self._sync = path, sync
        try:
            self._writer = self._connect()
            self._check()
            self._migrate()
            self._reader = self._connect()
        except sqlite3.Error as error:
            raise ServiceError(
                f"{path} cannot be used: {error}.",
                remedy="Free space on its disk; of a damaged one, `sqlite3 jobs.db .recover` saves what can be read.",
                field="store",
            ) from error
        self.broken: Future[None] = Future()
        """Gets the error after which nothing can be relied on, such as a damaged page."""
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="database", daemon=True)
        self._thread.start()

    def read(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """The rows of a query as of the last commit."""
        return self._reader.execute(query, values).fetchall()

    def write(self, work: Work, *, patient: bool = False) -> Future[Any]:
        """Run `work(connection)` in a transaction; the future has its result when that is on the disk.

        Several are committed together, in their order. On a full disk or the like a `patient` one is tried again
        until it succeeds; others get the `sqlite3.Error`. A patient one that can never succeed sets `broken`.
        """
        write = _Write(work, patient)
        write.future.set_running_or_notify_cancel()  # its caller may go away; it is written all the same
        self._queue.put(write)
        return write.future

    def close(self) -> None:
        """Write what can be written, and close the file."""
        self._queue.put(None)
        self._thread.join()
        self._reader.close()
        self._writer.close()

    # ---- inside ----

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        connection.row_factory = sqlite3.Row
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {'FULL' if self._sync else 'OFF'}")
        return connection

    def _check(self) -> None:
        (found,) = self._writer.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(f"it is damaged ({found})")

    def _migrate(self) -> None:
        (version,) = self._writer.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise sqlite3.DatabaseError(f"a newer program wrote it (version {version})")
        for number, script in enumerate(MIGRATIONS[version:], version + 1):
            self._writer.executescript(f"BEGIN; {script}; PRAGMA user_version = {number}; COMMIT")

    def _run(self) -> None:
        waiting: list[_Write] = []
        open_ = True
        while open_:
            with suppress(queue.Empty):
                write = self._queue.get(timeout=RETRY_SECONDS if waiting else None)
                while write is not None:
                    waiting.append(write)
                    write = self._queue.get_nowait()
                open_ = False
            waiting = self._commit(waiting)
        for write in waiting:
            write.future.set_exception(sqlite3.OperationalError("the database was closed"))

    def _commit(self, writes: list[_Write]) -> list[_Write]:
        """Commit these together; returns those that have to be tried again."""
        if not writes:
            return []
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            results = [write.work(self._writer) for write in writes]
            self._writer.execute("COMMIT")
        except Exception as error:
            with suppress(sqlite3.Error):
                self._writer.execute("ROLLBACK")
            passing = getattr(error, "sqlite_errorcode", 0) & 0xFF in PASSING
            if not passing and len(writes) > 1:
                return [again for write in writes for again in self._commit([write])]
            for write in writes:
                if not write.patient:
                    write.future.set_exception(error)
                elif not passing and not self.broken.done():
                    self.broken.set_exception(error)
            return [write for write in writes if write.patient]
        for write, result in zip(writes, results, strict=True):
            write.future.set_result(result)
        return []
