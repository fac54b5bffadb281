"""A video that can be watched while it is made: fragmented MP4, piece by piece."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from ..errors import OutputError
from .movie import FRAGMENTED, Movie
from .source import open_source

_SHORTEST_FRAGMENT = 4  # frames; portions of a single frame would otherwise be key frames only


class FragmentedMp4:
    """Frames in, consecutive pieces of one MP4 out; together they are an ordinary file.

    The last frame of each portion is a key frame, so that all before it can leave at once (with sound, all
    but two or three); it follows with the next portion. H.264 without frames that depend on later ones; sound
    of `audio` (the driving video) is interleaved up to the video's time. The same frames in the same portions
    give the same bytes.

    Raises `OutputError` if the frames do not fit `size` and `MotionError` if `audio` cannot be opened.
    """

    def __init__(
        self,
        fps: float,
        size: tuple[int, int],
        audio: str | Path | bytes | None = None,
        crf: int = 18,
    ) -> None:
        self._sink = _Sink()
        self._audio = open_source(audio) if audio is not None else None
        self._closed = False
        self._key = 0
        self._movie = Movie(self._sink, FRAGMENTED, fps=fps, size=size, audio=self._audio, crf=crf)

    @property
    def frames(self) -> int:
        """How many were written."""
        return self._movie.frames

    def write(self, frames: NDArray[np.uint8]) -> bytes:
        """Take uint8 [n,H,W,3] RGB; give the bytes that are ready, possibly none."""
        try:
            for index, frame in enumerate(frames):
                key = index == len(frames) - 1 and self.frames - self._key >= _SHORTEST_FRAGMENT
                self._key = self.frames if key else self._key
                self._movie.add(frame, key=key)
        except (av.FFmpegError, ValueError) as error:
            raise OutputError(f"the video cannot be encoded: {error}.", field="output") from error
        return self._sink.take()

    def close(self) -> bytes:
        """End the video; give its last bytes."""
        if self._closed:
            return b""
        self._closed = True
        try:
            self._movie.finish()
        except (av.FFmpegError, ValueError) as error:
            raise OutputError(f"the video cannot be encoded: {error}.", field="output") from error
        finally:
            self._release()
        return self._sink.take()

    def abort(self) -> None:
        """Let go of the encoder without ending the video."""
        self._closed = True
        with suppress(av.FFmpegError):
            self._movie.close()
        self._release()

    def _release(self) -> None:
        if self._audio is not None:
            self._audio.close()


class _Sink(io.RawIOBase):
    """Cannot seek, so the muxer writes front to back."""

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
