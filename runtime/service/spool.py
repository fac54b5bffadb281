"""A job's videos on their way to the server's disk."""

from __future__ import annotations

import hashlib
import os
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError, OutputError
from ..events import CHUNK_BYTES, Done, OtherVideo, Video


class Spool:
    """Writes the MP4s of a job, one after the other: every piece is written, summed, flushed and then reported.

    A job that runs again writes the same bytes over those of the run before, which readers may be reading. Videos
    that an earlier run finished, and that this run does not make again, are taken as they are.
    """

    def __init__(
        self, paths: Sequence[Path], clip: Any, told: Iterable[Video], report: Callable[[Video], None]
    ) -> None:
        """`told` are the pieces that were reported in earlier runs: they must come out the same, and are not
        reported again."""
        self._paths, self._clip, self._report, self._told = paths, clip, report, deque(told)
        self._file: _VideoFile | None = None
        self._finished: list[tuple[int, str]] = []  # (bytes, SHA-256)
        self._frames, self._seconds, self._note = 0, 0.0, ""

    def close(self) -> None:
        """Close the file, whatever is in it."""
        if self._file is not None:
            self._file.close()

    def write(self, number: int, frames: NDArray[np.uint8]) -> None:
        """The next frames uint8 [n,H,W,3] RGB of the video `number`, from 1."""
        began = time.monotonic()
        while len(self._finished) + 1 < number:
            self._finished.append(self._take_over(len(self._finished) + 1))
        if self._file is None:
            self._file = _VideoFile(self._paths[number - 1], number, self._clip, self._tell)
        self._file.write(frames)
        if self._file.frames == self._clip.frames:  # on the disk before anything of the next video is
            self._finish(self._file)
        self._seconds += time.monotonic() - began

    def done(self) -> Done:
        """What was made, once the last frame is written."""
        if self._file is not None:
            self._finish(self._file)
        if not self._finished:
            raise EngineError("The engine ended without a frame.")
        clip, (first, *others) = self._clip, self._finished
        return Done(
            frames=self._frames,
            fps=float(clip.fps),
            size=tuple(clip.size),
            bytes=first[0],
            sha256=first[1],
            seconds={**clip.seconds, "write": self._seconds},
            held=clip.facts.held,
            note=self._note,
            facts=clip.facts.of_seed(clip.seeds[0]),
            others=tuple(OtherVideo(seed, *one) for seed, one in zip(clip.seeds[1:], others, strict=True)),
        )

    def _finish(self, file: _VideoFile) -> None:
        self._finished.append(file.finish())
        self._frames, self._note = file.frames, file.note
        file.close()
        self._file = None

    def _take_over(self, number: int) -> tuple[int, str]:
        """A video that an earlier run finished; pieces of it that were not told yet are reported."""
        digest, offset = hashlib.sha256(), 0
        with _spooling(), self._paths[number - 1].open("rb") as file:
            while data := file.read(self._told[0].size if self._tells(number) else CHUNK_BYTES):
                self._tell(Video(offset, len(data), zlib.crc32(data), video=number))
                digest.update(data)
                offset += len(data)
        if not offset or self._tells(number):
            raise OutputError(f"The job's video {number} was lost.", remedy="Send the job again.")
        return offset, digest.hexdigest()

    def _tells(self, number: int) -> bool:
        """Whether pieces of a video were told that did not come out again yet."""
        return bool(self._told) and self._told[0].video == number

    def _tell(self, piece: Video) -> None:
        if not self._told:
            self._report(piece)
        elif self._told.popleft() != piece:
            raise EngineError(
                "The job ran again and its video is not the one that was partly sent.",
                remedy="Send the job again; another bundle, version or device may have made the first part.",
            )


class _VideoFile:
    """One MP4 that is being written."""

    def __init__(self, path: Path, number: int, clip: Any, tell: Callable[[Video], None]) -> None:
        self.frames = 0
        self._number, self._tell = number, tell
        with _spooling():
            self._file: BinaryIO = open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")  # noqa: SIM115
        from ..media.writer import FragmentedMp4  # needs PyAV, which the server's own process does without

        comment = clip.facts.to_json
        self._mp4 = FragmentedMp4(clip.fps, clip.size, audio=clip.audio, comment=comment)
        self._digest, self._offset = hashlib.sha256(), 0

    @property
    def note(self) -> str:
        """What was lost of the sound; known once it is finished."""
        return self._mp4.note

    def write(self, frames: NDArray[np.uint8]) -> None:
        """uint8 [n,H,W,3] RGB."""
        self.frames += len(frames)
        self._put(self._mp4.write(frames))

    def finish(self) -> tuple[int, str]:
        """Write what is left; returns (bytes of the file, its SHA-256) once it is on the disk."""
        self._put(self._mp4.close())
        with _spooling():
            self._file.truncate()  # of the run before there may be more
            os.fsync(self._file.fileno())
        return self._offset, self._digest.hexdigest()

    def close(self) -> None:
        self._mp4.abort()
        with suppress(OSError):  # a full disk was told when the piece was written
            self._file.close()

    def _put(self, data: bytes) -> None:
        for at in range(0, len(data), CHUNK_BYTES):
            piece = data[at : at + CHUNK_BYTES]
            with _spooling():
                self._file.write(piece)
                self._file.flush()
            self._digest.update(piece)
            self._tell(Video(self._offset, len(piece), zlib.crc32(piece), video=self._number))
            self._offset += len(piece)


@contextmanager
def _spooling() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"The video cannot be spooled: {error.strerror or error}.",
            remedy="Free space on the server's disk.",
        ) from error
