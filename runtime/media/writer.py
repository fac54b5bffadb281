"""Finished videos: a file that appears whole or not at all, or pieces that can be watched while it is made."""

from __future__ import annotations

import io
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Self

import av
import numpy as np
from numpy.typing import NDArray

from ..errors import OutputError
from .audio import Sound
from .movie import FORMATS, FRAGMENTED, Comment, FileFormat, Movie, check_frame, check_size, exact_rate
from .picture import encode_picture

_PATTERN = re.compile(r"%(0\d+)?d")
_SEQUENCE_NAME = "%05d.png"
_SHORTEST_FRAGMENT = 4  # frames; portions of a single frame would otherwise be key frames only


class VideoWriter:
    """Writes frames to `output` in the format of its name.

    `.mp4` `.mov` `.mkv` hold H.264, `.webm` VP9, `.gif` a palette per frame; `frames/%04d.png`, a folder, or
    a name that ends with a slash is a sequence of PNG pictures counted from 1. Sound of `audio` (the driving
    video: path or bytes) is carried over, cut to the length of the frames, where the format has sound. `crf`
    is the quality, 0 (lossless) to 51. `comment()`, asked when the first frame comes, goes into the metadata of the
    four video formats; GIF and PNG hold none. The same frames and comment give the same bytes. `-` (the standard
    output), a pipe or a device takes a fragmented MP4 while it is made. A link is followed.

    Everything is written beside the output and moved into place when the `with` block ends; an exception
    leaves nothing behind. Sound that cannot be used is left out, which `note` says. Raises `OutputError` at once
    where the output cannot be written.
    """

    def __init__(
        self,
        output: str | Path,
        *,
        fps: float,
        size: tuple[int, int],
        audio: Sound | None = None,
        crf: int = 18,
        comment: Comment | None = None,
    ) -> None:
        self._output = Path(output)
        self.kept: Path | None = None
        """Where the finished video is if it could not be moved into place."""
        self._done = False
        self._sequence = _sequence(output)
        rate, size = exact_rate(fps), check_size(size)
        # A fresh hidden name in the same folder, so that it can be moved into place in one step. A link is followed.
        self._target = Path(os.path.realpath(output))
        self._beside = self._target.with_name(f".mimicmotion-{secrets.token_hex(8)}")
        self._sink: Movie | _PngFolder | _Stream
        self._streamed = is_stream(output)
        try:
            with _reported(self._output):
                with suppress(FileNotFoundError):  # a name that no file can have is found before the work
                    os.lstat(
                        self._target / _numbered(self._sequence[1], 1) if self._sequence else self._target
                    )
                if self._streamed:
                    self._sink = _Stream(output, FragmentedMp4(float(rate), size, audio, crf, comment))
                elif self._sequence is not None:
                    self._sink = _PngFolder(self._beside, self._sequence[1], size)
                else:
                    form = _format_of(self._output)
                    self._beside.touch(exist_ok=False)
                    self._held = self._beside.open("rb")  # the finished file, whatever becomes of its folder
                    target = f"file:{self._beside}"
                    self._sink = Movie(
                        target, form, fps=float(rate), size=size, audio=audio, crf=crf, comment=comment
                    )
        except BaseException:
            with suppress(OSError):
                self._beside.unlink()
            raise

    @property
    def frames(self) -> int:
        """How many were written."""
        return self._sink.frames

    @property
    def note(self) -> str:
        """What was lost of the sound, and why; empty if nothing was. Known once the file is closed."""
        return self._sink.note

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Append uint8 [H,W,3] RGB of the writer's size."""
        with _reported(self._output):
            self._sink.add(frame)

    def close(self) -> None:
        """Finish the file and move it into place. Raises `OutputError` where no frame was written."""
        if self._done:
            return
        try:
            with _reported(self._output):
                if self.frames == 0:
                    raise OutputError(f"{self._output}: no frame was written.", field="output")
                self._sink.finish()
                if self._sequence is not None:
                    _move_pictures(self._beside, *self._sequence, self.frames)
                elif not self._streamed:
                    self._move()
        finally:
            self.abort()

    def _move(self) -> None:
        """Into place; where that is not possible any more, the finished video is kept elsewhere."""
        try:
            os.replace(self._beside, self._target)
        except OSError as error:
            kept = Path(tempfile.mkdtemp(prefix="mimicmotion-")) / f"video{self._target.suffix}"
            self._held.seek(0)
            with kept.open("wb") as file:
                shutil.copyfileobj(self._held, file)
            self.kept = kept
            raise OutputError(
                f"{self._output} cannot be written: {error.strerror or error}.",
                remedy=f"The finished video was kept as {kept}.",
                field="output",
            ) from error

    def abort(self) -> None:
        """Drop what was written and not finished; the output stays as it was."""
        if self._done:
            return
        self._done = True
        with suppress(av.FFmpegError, OSError):  # a full disk refuses the end of the file as well
            self._sink.close()
        if self._sequence is not None:
            shutil.rmtree(self._beside, ignore_errors=True)
        elif not self._streamed:
            self._held.close()
            self._beside.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close() if kind is None else self.abort()


class _Stream:
    """A fragmented MP4 into a pipe, or to the standard output; what cannot be moved into place."""

    def __init__(self, output: str | Path, movie: FragmentedMp4) -> None:
        self._movie = movie
        self._file: BinaryIO = open(1, "wb", closefd=False) if str(output) == "-" else open(output, "wb")  # noqa: SIM115

    @property
    def frames(self) -> int:
        return self._movie.frames

    @property
    def note(self) -> str:
        return self._movie.note

    def add(self, frame: NDArray[np.uint8]) -> None:
        self._put(self._movie.write(frame[None]))

    def finish(self) -> None:
        self._put(self._movie.close())

    def close(self) -> None:
        self._movie.abort()
        self._file.close()

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()


def numbered_outputs(output: str | Path, count: int) -> list[str]:
    """Where several videos go: `out-1.mp4`, `out-2.mp4`, ... for `out.mp4`, and for `out_%02d.mp4` where that says.

    A folder for pictures becomes `frames-1/`, ... . A single video goes to `output` itself. Raises `OutputError`.
    """
    text, path = str(output), Path(output)
    if count == 1:
        return [text]
    if is_stream(output) or (path.suffix.lower() == ".png" and _PATTERN.search(path.name)):
        why = "it takes one video" if is_stream(output) else "its number counts the frames of one video"
        raise OutputError(
            f"{count} videos cannot be written to {text}: {why}.",
            remedy="Choose out.mp4, which becomes out-1.mp4 and so on, or a folder/ for pictures.",
            field="output",
        )
    name = path.name if _PATTERN.search(path.name) else f"{path.stem}-%d{path.suffix}"
    end = "/" if text.endswith(("/", os.sep)) or os.path.isdir(path) else ""
    return [f"{path.with_name(_numbered(name, number))}{end}" for number in range(1, count + 1)]


def is_stream(output: str | Path) -> bool:
    """Whether a video is written to the standard output (`-`), a pipe or a device, front to back."""
    try:
        mode = os.stat(output).st_mode
    except (OSError, ValueError):
        return str(output) == "-"
    return str(output) == "-" or stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


class FragmentedMp4:
    """Frames in, consecutive pieces of one MP4 out; together they are an ordinary file.

    The last frame of each portion is a key frame, so that all before it can leave at once (with sound, all
    but two or three); it follows with the next portion. H.264 without frames that depend on later ones; sound
    of `audio` (the driving video) is interleaved up to the video's time. The same frames in the same portions
    give the same bytes.

    Raises `OutputError` if the frames do not fit `size`. Sound that cannot be used is left out, which `note` says.
    """

    def __init__(
        self,
        fps: float,
        size: tuple[int, int],
        audio: Sound | None = None,
        crf: int = 18,
        comment: Comment | None = None,
    ) -> None:
        self._pieces = _Pieces()
        self._closed = False
        self._key = 0
        self._movie = Movie(
            self._pieces, FRAGMENTED, fps=fps, size=size, audio=audio, crf=crf, comment=comment
        )

    @property
    def frames(self) -> int:
        """How many were written."""
        return self._movie.frames

    @property
    def note(self) -> str:
        """What was lost of the sound, and why; empty if nothing was. Known once the video is closed."""
        return self._movie.note

    def write(self, frames: NDArray[np.uint8]) -> bytes:
        """Take uint8 [n,H,W,3] RGB; give the bytes that are ready, possibly none."""
        with _reported():
            for index, frame in enumerate(frames):
                key = index == len(frames) - 1 and self.frames - self._key >= _SHORTEST_FRAGMENT
                self._key = self.frames if key else self._key
                self._movie.add(frame, key=key)
        return self._pieces.take()

    def close(self) -> bytes:
        """End the video; give its last bytes."""
        if self._closed:
            return b""
        self._closed = True
        with _reported():
            self._movie.finish()
        return self._pieces.take()

    def abort(self) -> None:
        """Close the encoder without ending the video."""
        self._closed = True
        with suppress(av.FFmpegError):
            self._movie.close()


class _Pieces(io.RawIOBase):
    """What the muxer wrote and nobody has taken; it cannot seek, so the muxer writes front to back."""

    def __init__(self) -> None:
        self._data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        view = memoryview(data)  # type: ignore[arg-type]
        self._data += view
        return view.nbytes

    def take(self) -> bytes:
        data, self._data = bytes(self._data), bytearray()
        return data


class _PngFolder:
    """A new folder of PNG pictures; `name` has a printf pattern for their numbers from 1."""

    def __init__(self, folder: Path, name: str, size: tuple[int, int]) -> None:
        self._folder, self._name, self._size, self.frames, self.note = folder, name, size, 0, ""
        folder.mkdir()

    def add(self, frame: NDArray[np.uint8]) -> None:
        self.frames += 1
        data = encode_picture(check_frame(frame, self._size))
        (self._folder / _numbered(self._name, self.frames)).write_bytes(data)

    def finish(self) -> None:
        """Every picture is whole once it is added."""

    def close(self) -> None:
        """Nothing is held open."""


def _sequence(output: str | Path) -> tuple[Path, str] | None:
    """The folder and the pattern of a sequence of pictures; None for a video file."""
    path = Path(output)
    if path.suffix.lower() == ".png" and _PATTERN.search(path.name):
        if not os.path.isdir(path.parent):
            raise _refused(path, f"the folder {path.parent} does not exist")
        return path.parent, path.name
    if str(output).endswith(("/", os.sep)) or (path.suffix == "" and os.path.isdir(path)):
        return path, _SEQUENCE_NAME
    return None


def numbers_picture(output: str | Path, path: Path) -> bool:
    """Whether pictures that are written to `output` may be written over this one, or remove it."""
    sequence = _sequence(output)
    if sequence is None:
        return False
    folder, name = sequence
    before, _, after = _PATTERN.split(name, maxsplit=1)
    numbered = f"{re.escape(before)}\\d+{re.escape(after)}"
    same = os.path.isdir(folder) and path.parent.is_dir() and path.parent.samefile(folder)
    return same and re.fullmatch(numbered, path.name) is not None


def _move_pictures(beside: Path, folder: Path, name: str, count: int) -> None:
    """Into their folder; numbers that an earlier, longer sequence left there are removed."""
    folder.mkdir(exist_ok=True)
    for number in range(1, count + 1):
        os.replace(beside / _numbered(name, number), folder / _numbered(name, number))
    while (stale := folder / _numbered(name, count := count + 1)).is_file():
        stale.unlink()


def _numbered(name: str, number: int) -> str:
    return _PATTERN.sub(lambda found: found[0] % number, name, count=1)


def _format_of(output: Path) -> FileFormat:
    form = FORMATS.get(output.suffix.lower())
    if form is None:
        raise _refused(output, f"no video format is known by the suffix {output.suffix!r}")
    if os.path.isdir(output):
        raise _refused(output, "it is a folder")
    return form


def _refused(output: Path, why: str) -> OutputError:
    return OutputError(
        f"{output} cannot be written: {why}.",
        remedy=f"Choose a name that ends with {', '.join(FORMATS)}, %04d.png or / in a folder that exists and"
        " that you may write to.",
        field="output",
    )


@contextmanager
def _reported(output: Path | None = None) -> Iterator[None]:
    """What the disk or the encoder refuses becomes an `OutputError`."""
    try:
        yield
    except (av.FFmpegError, OSError, ValueError) as error:
        why = (getattr(error, "strerror", None) or str(error)).strip().rstrip(".")
        if output is None:
            raise OutputError(f"the video cannot be encoded: {why}.", field="output") from error
        raise _refused(output, why) from error
