"""The client's half of a delivery: every event checked, the video kept aside until it is whole."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
import weakref
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..errors import OutputError, ServiceError
from ..events import Accepted, Done, Event, Video
from ..files import write_atomic
from .generated.mimicmotion.v1 import animation_pb2 as pb
from .wire import event_from_wire

IN_MEMORY = 32 * 2**20
"""Bytes of a video above which it is kept in a temporary file."""


@dataclass(frozen=True, slots=True)
class ReceivedVideo:
    """A finished video."""

    done: Done
    video: IO[bytes]
    """The file's bytes, open for reading."""
    path: Path | None
    """Where it was written, if an output was named."""

    def read(self) -> bytes:
        """The whole MP4 file."""
        self.video.seek(0)
        return self.video.read()

    def save(self, path: str | Path) -> Path:
        """Write the MP4; the file appears whole or not at all. Raises `OutputError`."""
        path = Path(path)
        self.video.seek(0)
        try:
            write_atomic(path, lambda file: shutil.copyfileobj(self.video, file))
        except OSError as error:
            raise _unwritable(path, error) from error
        return path


class Delivery:
    """Takes a job's events in order; `result` is set when the last one has shown that the video is whole.

    With `output` the video is written beside that path and moved there at the end; without it, it is kept in
    memory up to `IN_MEMORY` and in a temporary file beyond. `first` says from which sequence number on the events
    are: above 0, the video's beginning is missing and there is no result.
    """

    def __init__(self, output: str | Path | None = None, *, first: int = 0) -> None:
        self.job = ""
        self.result: ReceivedVideo | None = None
        self._output = Path(output) if output is not None else None
        self._sequence = self._first = first
        self._offset: int | None = 0 if first == 0 else None
        self._digest = hashlib.sha256()
        self._beside: Path | None = None
        if self._output is None:
            self._file: IO[bytes] = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115
        else:
            self._beside = self._output.with_name(f".{self._output.name}.{secrets.token_hex(4)}.part")
            try:
                self._file = self._beside.open("w+b")
            except OSError as error:
                raise _unwritable(self._output, error) from error
            weakref.finalize(self, self._beside.unlink, missing_ok=True)

    def take(self, message: pb.AnimationEvent) -> Event | None:
        """Check one event; raises `ServiceError` if it is damaged or out of order. None for an unknown kind."""
        if message.sequence <= self._sequence:
            raise ServiceError(f"Event {message.sequence} came after event {self._sequence}.")
        self._sequence = message.sequence
        event = event_from_wire(message)
        match event:
            case Accepted():
                self.job = event.job
            case Video():
                self._take_video(event)
            case Done():
                self._finish(event)
        return event

    def end(self) -> ReceivedVideo:
        """The result, once the events have ended; raises `ServiceError` if the last one is missing."""
        if self.result is None:
            raise ServiceError("The events ended before the video was whole.", remedy="Watch the job again.")
        return self.result

    def abort(self) -> None:
        """Leave nothing behind."""
        if self.result is None:
            self._file.close()
            if self._beside is not None:
                self._beside.unlink(missing_ok=True)

    def _take_video(self, event: Video) -> None:
        if self._offset is None:
            self._offset = event.offset
        if event.offset != self._offset:
            raise ServiceError(f"The video goes on at byte {event.offset} instead of {self._offset}.")
        if zlib.crc32(event.data) != event.crc32:
            raise ServiceError(f"The video is damaged at byte {event.offset}.", remedy="Watch the job again.")
        self._offset += event.size
        self._digest.update(event.data)
        try:
            self._file.write(event.data)
        except OSError as error:
            raise _unwritable(self._output or Path(tempfile.gettempdir()), error) from error

    def _finish(self, done: Done) -> None:
        if self._first > 0:
            return
        if self._offset != done.bytes or self._digest.hexdigest() != done.sha256:
            raise ServiceError("The video is not the one that was made.", remedy="Watch the job again.")
        if self._output is not None and self._beside is not None:
            try:
                self._file.flush()
                os.replace(self._beside, self._output)
            except OSError as error:
                raise _unwritable(self._output, error) from error
        self.result = ReceivedVideo(done, self._file, self._output)


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path} cannot be written: {error.strerror or error}.",
        remedy="Check the folder and the free space.",
        field="output",
    )
