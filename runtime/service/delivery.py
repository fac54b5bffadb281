"""The videos of a job, received by a client: every piece is checked, and each file appears whole or not at all."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
import weakref
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from ..errors import OutputError, ServiceError
from ..events import Accepted, Done, Event, Video
from ..files import output_errors, write_atomic
from .generated.mimicmotion.v1 import animation_pb2 as pb
from .wire import event_from_wire

IN_MEMORY = 32 * 2**20
"""Bytes of a received video above which it is kept in a temporary file."""
OTHER_FORMATS = (".apng", ".avi", ".gif", ".mkv", ".mov", ".webm", ".webp")
"""Which a received video is not; `animate --server` makes them of it."""


def check_name(path: str | Path) -> None:
    """Raise `OutputError` for a name that says another format than the MP4 that a server sends."""
    if (suffix := Path(path).suffix.lower()) in OTHER_FORMATS:
        raise OutputError(
            f"{path} would be an MP4, which is what a server sends, and not a {suffix[1:]} file.",
            remedy="Give a name that ends in .mp4; `mimicmotion-trt animate --server` makes other formats of it.",
            field="output",
        )


@dataclass(frozen=True, slots=True)
class ReceivedVideo:
    """A finished video."""

    done: Done
    video: IO[bytes] = field(repr=False)
    """The file's bytes, open for reading."""
    path: Path | None
    """Where it was written, if an output was named."""
    others: tuple[ReceivedVideo, ...] = ()
    """Of several videos of one job, those after the first."""

    @property
    def videos(self) -> tuple[ReceivedVideo, ...]:
        """This one, and the others of the job: one for each seed, in their order."""
        return (self, *self.others)

    def read(self) -> bytes:
        """The whole MP4 file."""
        self.video.seek(0)
        return self.video.read()

    def _repr_html_(self) -> str:
        """A player, for notebooks."""
        from ..media.notebook import video_html

        return video_html(self.read(), self.done.size)

    def save(self, path: str | Path) -> Path:
        """Write the MP4; the file appears whole or not at all. Raises `OutputError`."""
        path = Path(path)
        check_name(path)
        self.video.seek(0)
        with output_errors(path):
            write_atomic(path, lambda file: shutil.copyfileobj(self.video, file))
        return path


class Delivery:
    """Takes a job's events in order; `result` is set when the last one has shown that the videos are whole.

    With `output` a video is written beside that path and moved there at the end; without it, it is kept in memory up
    to `IN_MEMORY` and in a temporary file beyond. Several videos go where `numbered_outputs` says. `first` says from
    which sequence number on the events are: above 0, the video's beginning is missing and there is no result.
    """

    def __init__(self, output: str | Path | None = None, *, first: int = 0) -> None:
        if output is not None:
            check_name(output)
        self.job = ""
        self.result: ReceivedVideo | None = None
        self._output = output
        self._sequence = self._first = first
        self._videos = [_Incoming(None if output is None else Path(output), 0 if first == 0 else None)]

    @property
    def sequence(self) -> int:
        """The number of the last event."""
        return self._sequence

    def take(self, message: pb.AnimationEvent) -> Event | None:
        """Check one event; raises `ServiceError` if it is damaged or out of order. None for an unknown kind."""
        if message.sequence <= self._sequence:
            raise ServiceError(f"Event {message.sequence} came after event {self._sequence}.")
        self._sequence = message.sequence
        event = event_from_wire(message)
        match event:
            case Accepted():
                self.job = event.job
                self._expect(len(event.settings.each_seed))
            case Video():
                self._take_video(event)
            case Done():
                self._finish(event)
        return event

    def end(self) -> ReceivedVideo:
        """The result, once the events have ended; raises `ServiceError` if the last one is missing."""
        if self.result is None:
            self.abort()
            raise ServiceError("The events ended before the video was whole.", remedy="Watch the job again.")
        return self.result

    def abort(self) -> None:
        """Leave nothing behind."""
        if self.result is None:
            for video in self._videos:
                video.abort()

    def _expect(self, count: int) -> None:
        """So many videos come."""
        if count == 1:
            return
        names: list[Path | None] = [None] * count
        if self._output is not None:
            from ..media.writer import numbered_outputs

            names = [Path(name) for name in numbered_outputs(self._output, count)]
        self._videos[0].output = names[0]
        self._videos += [_Incoming(name, 0) for name in names[1:]]

    def _take_video(self, event: Video) -> None:
        while self._first and event.video > len(self._videos):  # how many there are was said before
            self._videos.append(_Incoming(None, None))
        if event.video > len(self._videos):
            raise ServiceError(f"A video {event.video} came, and {len(self._videos)} were to come.")
        self._videos[event.video - 1].take(event)

    def _finish(self, done: Done) -> None:
        if self._first > 0:
            return
        found = [video.finish(one) for video, one in zip(self._videos, done.each(), strict=True)]
        self.result = replace(found[0], done=done, others=tuple(found[1:]))


class _Incoming:
    """One video that is being received."""

    def __init__(self, output: Path | None, offset: int | None) -> None:
        """`offset` is where its pieces begin; None: they may begin anywhere."""
        self.output = output
        self._offset, self._digest = offset, hashlib.sha256()
        self._fault: OutputError | None = None
        self._kept: Path | None = None
        self._beside: Path | None = None
        if output is None:
            self._file: IO[bytes] = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115
            return
        self._beside = output.with_name(f".mimicmotion-{secrets.token_hex(8)}")
        with output_errors(output):
            self._file = self._beside.open("w+b", buffering=0)
        weakref.finalize(self, self._beside.unlink, missing_ok=True)

    def take(self, event: Video) -> None:
        """The next piece; raises `ServiceError` if it is damaged or out of order."""
        if self._offset is None:
            self._offset = event.offset
        if event.offset != self._offset:
            raise ServiceError(f"The video goes on at byte {event.offset} instead of {self._offset}.")
        if zlib.crc32(event.data) != event.crc32:
            raise ServiceError(f"The video is damaged at byte {event.offset}.", remedy="Watch the job again.")
        place = self.output or Path(tempfile.gettempdir())
        try:
            with output_errors(place):
                self._write(event.data)
        except OutputError as error:
            if self._fault is not None or self._beside is None:
                raise
            self._fault = error
            with output_errors(Path(tempfile.gettempdir())):
                self._move_away()
                self._write(event.data)
        self._offset += event.size
        self._digest.update(event.data)

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:  # a file that is not buffered may take a part
            left = left[self._file.write(left) :]

    def _move_away(self) -> None:
        """Where the video was to be written there is no room: it goes on in the temporary folder."""
        before, whole = self._file, self._offset or 0
        self._kept = Path(tempfile.mkdtemp(prefix="mimicmotion-")) / "video.mp4"
        self._file = self._kept.open("w+b", buffering=0)
        before.seek(0)
        shutil.copyfileobj(before, self._file)
        self._file.seek(whole)
        before.close()

    def finish(self, done: Done) -> ReceivedVideo:
        """Move it into place, if it is the one that was made."""
        if self._offset != done.bytes or self._digest.hexdigest() != done.sha256:
            raise ServiceError("The video is not the one that was made.", remedy="Watch the job again.")
        if self._fault is not None:
            told = f"The finished video was kept as {self._kept}."
            self._kept = None
            self.abort()
            raise OutputError(self._fault.message, remedy=told, field="output") from self._fault
        if self.output is not None and self._beside is not None:
            with output_errors(self.output):
                self._file.flush()
                os.replace(self._beside, self.output)
        return ReceivedVideo(done, self._file, self.output)

    def abort(self) -> None:
        """Leave nothing behind."""
        self._file.close()
        if self._beside is not None:
            self._beside.unlink(missing_ok=True)
        if self._kept is not None:
            shutil.rmtree(self._kept.parent, ignore_errors=True)
