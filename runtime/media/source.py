"""Where a video or its sound comes from: a file, bytes or a stream, opened as often as needed."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import IO, BinaryIO

import av
from av.container import InputContainer

from ..errors import MotionError
from ..limits import Limits, check_limit

# Playlists and the like are left out: they could make the demuxer open other files or addresses.
_DEMUXERS = (
    "mov,matroska,avi,gif,apng,flv,mpeg,mpegts,mpegvideo,asf,ogg,nut,ivf,rm,mxf,dv,h264,hevc,av1,obu,m4v,mjpeg,"
    "yuv4mpegpipe,wav,mp3,aac,flac"
)

REMEDY = "Give a video such as MP4, MOV, MKV, WebM, AVI or GIF."

SourceLike = str | Path | bytes | BinaryIO


class Source:
    """A video or sound to read; `open()` gives a fresh container each time.

    Raises `MotionError` if there is nothing to read, and `LimitError` if it has too many bytes.
    """

    def __init__(self, source: SourceLike, limits: Limits) -> None:
        self._spool: IO[bytes] | None = None
        self._data = b""
        self._path = ""
        self.limits = limits
        if isinstance(source, str | Path):
            self.name, size = self._take_path(source)
        elif isinstance(source, bytes | bytearray | memoryview):
            self.name, self._data = "the driving video", bytes(source)
            size = len(self._data)
        elif hasattr(source, "read"):
            self.name, size = self._take_stream(source)
        else:
            raise fault(
                f"the driving video is a {type(source).__name__}.", "Give a path, bytes or a binary file."
            )
        check_limit("bytes of the driving video", size, limits.motion_bytes, field="motion")
        if size == 0:
            raise fault(f"{self.name} is empty.")

    def open(self) -> InputContainer:
        """The container, its headers read. Raises `MotionError` if it is none."""
        # Probing may decode a frame, so it has to know the limit too.
        options = {"format_whitelist": _DEMUXERS, **self.decoder_options}
        try:
            return av.open(self._readable(), "r", options=options, metadata_errors="replace")
        except (av.FFmpegError, OSError, ValueError) as error:
            if self._begin()[4:8] == b"ftyp":
                raise fault(f"{self.name} is an MP4 or MOV file that is cut off or damaged: its index"
                            f" (moov) cannot be read.", "Copy the file again.") from error  # fmt: skip
            raise fault(f"{self.name} is not a video that can be read: {reason(error)}.") from error

    @property
    def decoder_options(self) -> dict[str, str]:
        return {"max_pixels": str(min(self.limits.frame_pixels, 2**31 - 1))}

    def close(self) -> None:
        """Remove the copy of a stream; it cannot be opened again afterwards."""
        if self._spool is not None:
            self._spool.close()

    def _readable(self) -> str | io.BytesIO:
        if self._path:
            return "file:" + self._path  # so that no name is taken for a protocol
        return io.BytesIO(self._data)

    def _begin(self) -> bytes:
        if not self._path:
            return self._data[:12]
        with open(self._path, "rb") as file:
            return file.read(12)

    def _take_path(self, source: str | Path) -> tuple[str, int]:
        try:
            path = Path(source)
            if path.is_dir():
                raise fault(f"{path} is a directory, not a video.")
            if not path.exists():
                raise fault(f"{path} does not exist.", "Check the path.")
            if not path.is_file():
                raise fault(f"{path} is not a plain file.")
            with path.open("rb"):
                size = path.stat().st_size
        except (OSError, ValueError) as error:
            raise fault(f"{str(source)!r:.200} cannot be read: {error}.", "Check the path.") from error
        self._path = str(path.absolute())
        return path.name, size

    def _take_stream(self, stream: BinaryIO) -> tuple[str, int]:
        """Copied to a file: a stream may allow one reading only, and a container is read several times."""
        self._spool = tempfile.NamedTemporaryFile(prefix="motion-")  # noqa: SIM115 - closed with this source
        size = 0
        while size <= self.limits.motion_bytes and (piece := stream.read(1 << 20)):
            size += self._spool.write(piece)
        self._spool.flush()
        self._path = self._spool.name
        return "the driving video", size


def fault(message: str, remedy: str = REMEDY) -> MotionError:
    return MotionError(message, remedy=remedy, field="motion")


def reason(error: Exception) -> str:
    """What FFmpeg said, without its number and its function."""
    text = getattr(error, "strerror", None) or str(error)
    return str(text).strip().rstrip(".").lower()
