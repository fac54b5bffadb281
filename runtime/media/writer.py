"""The finished video, on disk: whole or not at all."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import av
import numpy as np
from numpy.typing import NDArray

from ..errors import OutputError
from .fragments import FragmentedMp4
from .movie import FORMS, Movie, check_frame, check_size, exact_rate
from .picture import encode_picture
from .source import Source, open_source

__all__ = ["FragmentedMp4", "VideoWriter"]

_PATTERN = re.compile(r"%(0\d+)?d")
_SEQUENCE_NAME = "%05d.png"


class VideoWriter:
    """Writes frames to `output` in the format of its name.

    `.mp4` `.mov` `.mkv` hold H.264, `.webm` VP9, `.gif` a palette per frame; `frames/%04d.png`, a folder, or
    a name that ends with a slash is a sequence of PNG pictures counted from 1. Sound of `audio` (the driving
    video: path or bytes) is carried over, cut to the length of the frames, where the format has sound. `crf`
    is the quality, 0 (lossless) to 51. The same frames give the same bytes.

    Everything is written beside the output and moved into place when the `with` block ends; an exception
    leaves nothing behind. Raises `OutputError` at once where the output cannot be written, and `MotionError`
    where `audio` cannot be opened.
    """

    def __init__(
        self,
        output: str | Path,
        *,
        fps: float,
        size: tuple[int, int],
        audio: str | Path | bytes | None = None,
        crf: int = 18,
    ) -> None:
        self._output = Path(output)
        self._done = False
        self._audio = open_source(audio) if audio is not None else None
        rate, size = exact_rate(fps), check_size(size)
        self._sink: _Sink
        with _reported(self._output):
            if _is_sequence(output):
                self._sink = _PngSequence(output, size)
            else:
                self._sink = _MovieFile(self._output, float(rate), size, self._audio, crf)

    @property
    def frames(self) -> int:
        """How many were written."""
        return self._sink.frames

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
                self._sink.commit()
                self._done = True
        finally:
            self.abort()

    def abort(self) -> None:
        """Drop what was written; the output stays as it was."""
        if not self._done:
            self._done = True
            self._sink.discard()
        if self._audio is not None:
            self._audio.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close() if kind is None else self.abort()


class _Sink(Protocol):
    @property
    def frames(self) -> int: ...
    def add(self, frame: NDArray[np.uint8]) -> None: ...
    def commit(self) -> None: ...
    def discard(self) -> None: ...


class _MovieFile:
    def __init__(
        self, output: Path, fps: float, size: tuple[int, int], audio: Source | None, crf: int
    ) -> None:
        form = FORMS.get(output.suffix.lower())
        if form is None:
            raise _refused(output, f"no video format is known by the suffix {output.suffix!r}")
        if output.is_dir():
            raise _refused(output, "it is a folder")
        self._output = output
        self._beside = _beside(output)
        self._beside.touch(exist_ok=False)
        try:
            path = f"file:{self._beside.absolute()}"
            self._movie = Movie(path, form, fps=fps, size=size, audio=audio, crf=crf)
        except BaseException:
            self._beside.unlink(missing_ok=True)
            raise

    @property
    def frames(self) -> int:
        return self._movie.frames

    def add(self, frame: NDArray[np.uint8]) -> None:
        self._movie.add(frame)

    def commit(self) -> None:
        self._movie.finish()
        os.replace(self._beside, self._output)

    def discard(self) -> None:
        with suppress(av.FFmpegError, OSError):  # a full disk refuses the end of the file as well
            self._movie.close()
        self._beside.unlink(missing_ok=True)


class _PngSequence:
    """Pictures counted from 1; numbers that an earlier, longer sequence left behind are removed."""

    def __init__(self, output: str | Path, size: tuple[int, int]) -> None:
        path, self._size, self.frames = Path(output), size, 0
        is_pattern = _PATTERN.search(path.name) is not None
        self._folder = path.parent if is_pattern else path
        self._name = path.name if is_pattern else _SEQUENCE_NAME
        if is_pattern and not self._folder.is_dir():
            raise _refused(path, f"the folder {self._folder} does not exist")
        self._beside = _beside(path)
        self._beside.mkdir()

    def add(self, frame: NDArray[np.uint8]) -> None:
        data = encode_picture(check_frame(frame, self._size))
        (self._beside / self._numbered(self.frames + 1)).write_bytes(data)
        self.frames += 1

    def commit(self) -> None:
        self._folder.mkdir(exist_ok=True)
        for number in range(1, self.frames + 1):
            os.replace(self._beside / self._numbered(number), self._folder / self._numbered(number))
        number = self.frames + 1
        while (stale := self._folder / self._numbered(number)).is_file():
            stale.unlink()
            number += 1
        self._beside.rmdir()

    def discard(self) -> None:
        shutil.rmtree(self._beside, ignore_errors=True)

    def _numbered(self, number: int) -> str:
        return _PATTERN.sub(lambda found: found[0] % number, self._name, count=1)


def _is_sequence(output: str | Path) -> bool:
    path = Path(output)
    if path.suffix.lower() == ".png" and _PATTERN.search(path.name):
        return True
    return str(output).endswith(("/", os.sep)) or (path.suffix == "" and path.is_dir())


def _beside(output: Path) -> Path:
    """A fresh hidden name in the same folder, so that it can be moved into place in one step."""
    output = output.absolute()
    return output.with_name(f".{output.name[:100]}.{secrets.token_hex(4)}.tmp")


def _refused(output: Path, why: str) -> OutputError:
    return OutputError(
        f"{output} cannot be written: {why}.",
        remedy=f"Choose a name that ends with {', '.join(FORMS)}, %04d.png or / in a folder that exists and"
        " that you may write to.",
        field="output",
    )


@contextmanager
def _reported(output: Path) -> Iterator[None]:
    """What the disk or the encoder refuses becomes an `OutputError`."""
    try:
        yield
    except (av.FFmpegError, OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise _refused(output, why.strip().rstrip(".")) from error
