"""The server's log: structured lines on standard error, written by a thread of their own.

Nothing here raises or waits: a full disk or a reader that left costs lines, never work.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import sys
import threading
import time
from typing import Any, TextIO

import structlog

from ..errors import MimicMotionError
from ..events import Event, Started
from .engine_process import EngineProcess
from .jobs import StoredJob
from .observers import Observer
from .status import Refused, reason
from .tokens import Caller

MOST_LINES = 10_000
"""Lines that may wait to be written; further ones are dropped."""
ABSL = re.compile(r"([IWEF])\d{4} [\d:.]+\s+\d+ (\S+:\d+)\] (.*)")
"""A line of gRPC's core: its kind, its place in the source, its text."""
KINDS = {"I": "info", "W": "warning", "E": "error", "F": "critical"}
END = "mimicmotion: the log ends"


class LineWriter:
    """What structlog writes to. Lines of a slow or broken stream are dropped and counted."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.dropped = 0
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(MOST_LINES)
        threading.Thread(target=self._write, name="mimicmotion-log", daemon=True).start()

    def msg(self, line: str) -> None:
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self.dropped += 1

    debug = info = warning = error = exception = critical = msg

    def redirect(self, stream: TextIO) -> None:
        """Write further lines there."""
        self._stream = stream

    def close(self, seconds: float = 1.0) -> None:
        """Wait until the lines so far are written, for `seconds` at most, and end the thread."""
        until = time.monotonic() + seconds
        while self._lines.unfinished_tasks and time.monotonic() < until:
            time.sleep(0.005)
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(None)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                _put(self._stream or sys.stderr, line + "\n")
            except Exception:  # closed, full, or without a reader; there is no place left to say so
                self.dropped += 1
            self._lines.task_done()


class LibraryLines:
    """While open, what gRPC's core prints on the standard error becomes lines of a log, which itself writes to where
    the standard error was. So does what engines and their libraries print; for people (`plain`) these lines stay as
    they are, so that a traceback is read in one piece."""

    def __init__(self, logger: Any, writer: LineWriter, *, plain: bool = False) -> None:
        self._logger = logger
        self._writer = writer
        self._plain = plain

    def __enter__(self) -> None:
        self._real = os.dup(2)
        reading, self._pipe = os.pipe()
        os.dup2(self._pipe, 2)
        self._writer.redirect(os.fdopen(self._real, "w", encoding="utf-8", errors="backslashreplace"))
        self._reader = threading.Thread(target=self._read, args=(reading,), daemon=True)
        self._reader.start()

    def __exit__(self, *_: object) -> None:
        os.dup2(self._real, 2)
        os.write(
            self._pipe, f"{END}\n".encode()
        )  # engine processes may hold the pipe open: no end of file comes
        self._reader.join(1.0)
        os.close(self._pipe)

    def _read(self, reading: int) -> None:
        with open(reading, encoding="utf-8", errors="backslashreplace") as lines:
            for line in lines:
                if (text := line.rstrip()) == END:
                    return
                if (found := ABSL.match(text)) is not None:
                    kind, place, said = found.groups()
                    getattr(self._logger, KINDS[kind])("grpc", place=place, text=said)
                elif self._plain:
                    self._writer.msg(text)
                elif text:
                    self._logger.warning("library", text=text)


def _put(stream: TextIO, text: str) -> None:
    """Past the stream's buffer and its lock: a process can end while its reader is asleep."""
    try:
        descriptor = stream.fileno()
    except (OSError, AttributeError):  # a stream of Python's own
        stream.write(text)
        stream.flush()
        return
    data = text.encode("utf-8", "backslashreplace")
    while data:
        data = data[os.write(descriptor, data) :]


def make_logger(as_json: bool, writer: LineWriter | None = None) -> Any:
    """A structlog logger that needs no global configuration, so that an embedding program keeps its own."""
    steps: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(default=str)
        if as_json
        else structlog.dev.ConsoleRenderer(colors=False),
    ]
    return structlog.wrap_logger(writer or LineWriter(), processors=[_never_raise(step) for step in steps])


def _never_raise(step: Any) -> Any:
    """A processor whose line is dropped where it fails: a text that cannot be printed ends no job."""

    def run(logger: Any, name: str, line: Any) -> Any:
        try:
            return step(logger, name, line)
        except Exception:
            raise structlog.DropEvent from None

    return run


def job_facts(job: StoredJob) -> dict[str, Any]:
    """What every line about a job has: whose it is, and its names."""
    facts = {"job": job.id, "client": job.client, "request_id": job.request_id}
    return {name: value for name, value in facts.items() if value}


def ended_facts(job: StoredJob) -> dict[str, Any]:
    """How a job ended: times in seconds, the video, the error."""
    facts: dict[str, Any] = {"state": job.state}
    if job.started is not None and job.ended is not None:
        facts["waited"] = round(job.started - job.created, 3)
        facts["ran"] = round(job.ended - job.started, 3)
    if job.done is not None:
        facts |= {
            "frames": job.done.frames,
            "size": "{}x{}".format(*job.done.size),
            "bytes": job.done.total_bytes,
        }
        facts["seconds"] = {stage: round(seconds, 3) for stage, seconds in job.done.seconds.items()}
    if job.error is not None:
        facts |= {"reason": reason(type(job.error)), "error": str(job.error)}
    return facts


class JobLog(Observer):
    """Writes down what happens to jobs, calls and engines."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def call_failed(self, method: str, who: Caller, error: MimicMotionError) -> None:
        facts: dict[str, Any] = {"method": method, "client": who.name, "peer": who.peer}
        if isinstance(error, Refused):
            facts["retry_after"] = round(error.retry_after, 3)
        self._logger.info("call failed", **facts, reason=reason(type(error)), error=str(error))

    def accepted(self, job: StoredJob, who: Caller) -> None:
        self._logger.info("accepted", **job_facts(job), peer=who.peer, motion=job.motion_kind)

    def happened(self, job: StoredJob, event: Event) -> None:
        if isinstance(event, Started):
            size = "{}x{}".format(*event.size)
            self._logger.info("started", **job_facts(job), frames=event.frames, size=size)

    def ended(self, job: StoredJob) -> None:
        self._logger.info("ended", **job_facts(job), **ended_facts(job))

    def engine_lost(self, engine: EngineProcess, exit_code: int | None) -> None:
        facts = {"device": engine.config.device, "why": engine.lost_why, "exit_code": exit_code}
        again = None if engine.failure is not None else round(engine.pause, 3)
        self._logger.error("engine lost", **facts, jobs=sorted(engine.jobs), restart_in=again)
