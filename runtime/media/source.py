"""A video or sound file that is opened: by path or bytes, by content only, and its tracks."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import BinaryIO

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.format import Flags
from av.stream import Disposition
from av.video.stream import VideoStream

from ..errors import MotionError
from ..files import plain_file
from ..limits import Limits, check_limit

_THREADS = min(4, os.cpu_count() or 1)  # every decoder thread keeps frames of its own
# Playlists and the like are left out: they could make the demuxer open other files or addresses.
_DEMUXERS = (
    "mov,matroska,avi,gif,apng,flv,mpeg,mpegts,mpegvideo,asf,ogg,nut,ivf,rm,mxf,dv,h264,hevc,av1,obu,m4v,mjpeg,"
    "yuv4mpegpipe,wav,mp3,aac,flac"
)
_NOT_FOR_ALL = (
    Disposition.hearing_impaired | Disposition.visual_impaired | Disposition.comment | Disposition.dub
)

REMEDY = "Give a video such as MP4, MOV, MKV, WebM, AVI or GIF."


class Source:
    """A video or sound to read; `open()` gives a fresh container each time.

    Raises `MotionError` if there is nothing to read, and `LimitError` if it has too many bytes.
    """

    def __init__(self, source: str | Path | bytes, limits: Limits) -> None:
        self._data, self._path, self.limits = b"", "", limits
        if isinstance(source, str | Path):
            path = plain_file(source, "video", fault, REMEDY)
            self.name, self._path, self.bytes = path.name, str(path.absolute()), path.stat().st_size
        elif isinstance(source, bytes | bytearray | memoryview):
            self.name, self._data = "the driving video", bytes(source)
            self.bytes = len(self._data)
        else:
            raise fault(f"the driving video is a {type(source).__name__}.", "Give a path or bytes.")
        check_limit("bytes of the driving video", self.bytes, limits.motion_bytes, field="motion")
        if self.bytes == 0:
            raise fault(f"{self.name} is empty.")

    def open(self) -> InputContainer:
        """The container, its headers read. Raises `MotionError` if it is none."""
        # Probing may decode a frame, so it has to know the limit too.
        options = {"format_whitelist": _DEMUXERS, **self._decoder_options}
        try:
            return av.open(self._readable(), "r", options=options, metadata_errors="replace")
        except (av.FFmpegError, OSError, ValueError) as error:
            raise self._unopened(error) from error

    def video(self, container: InputContainer) -> VideoStream:
        """The default track, the one of the largest picture if several are, ready to be decoded.

        Raises `MotionError` where there is none and `LimitError` for pictures that are too large.
        """
        covers = Disposition.attached_pic | Disposition.timed_thumbnails  # the cover of a song
        tracks = [stream for stream in container.streams.video if not stream.disposition & covers]
        if not tracks:
            kind = "audio" if container.streams.audio else "data"
            raise fault(f"{self.name} holds no video, only {kind}.")
        known = [stream for stream in tracks if stream.codec_context is not None]
        if not known:
            raise fault(f"{self.name} uses a video codec that cannot be decoded here.")
        stream = max(known, key=lambda one: (bool(one.disposition & Disposition.default), _area(one)))
        context = stream.codec_context
        self.check_pixels(context.width, context.height)
        context.thread_count = _THREADS
        context.thread_type = "AUTO"
        context.options = self._decoder_options
        return stream

    def check_pixels(self, width: int, height: int) -> None:
        """Raises `LimitError` for a frame that is too large."""
        limit = self.limits.frame_pixels
        check_limit("pixels of a frame of the driving video", width * height, limit, field="motion")

    @property
    def _decoder_options(self) -> dict[str, str]:
        return {"max_pixels": str(min(self.limits.frame_pixels, 2**31 - 1))}

    def _readable(self) -> str | BinaryIO:
        if not self._path:
            return io.BytesIO(self._data)
        try:
            self._path.encode()
        except UnicodeEncodeError:  # a name in another encoding
            return open(self._path, "rb")
        return "file:" + self._path  # so that no name is taken for a protocol

    def _unopened(self, error: Exception) -> MotionError:
        begin = self._data[:12]
        if self._path:
            with open(self._path, "rb") as file:
                begin = file.read(12)
        if begin[4:8] == b"ftyp":
            message = f"{self.name} is an MP4 or MOV file that is truncated or damaged: its index (moov) is missing."
            return fault(message, "Copy the file again, or record it again to its end.")
        known = (b"\x1aE\xdf\xa3", b"RIFF", b"FLV", b"OggS", b"\x30\x26\xb2\x75")
        if self.bytes < 1024 and begin.startswith(known):
            return fault(f"{self.name} is truncated: it has only {self.bytes} bytes.", "Copy the file again.")
        return fault(f"{self.name} is not a video that can be read: {reason(error)}.")


def sound_of(container: InputContainer) -> AudioStream | None:
    """The default sound track; None where there is none, or none whose codec is known."""
    known = [stream for stream in container.streams.audio if stream.codec_context is not None]
    if not known:
        return None
    chosen: AudioStream = max(
        known,
        key=lambda one: (not one.disposition & _NOT_FOR_ALL, bool(one.disposition & Disposition.default)),
    )
    return chosen


def is_broadcast(container: InputContainer) -> bool:
    """Whether its time may break, as in transport streams: they are cut, joined and received with losses."""
    flag = int(Flags.ts_discont.value)  # type: ignore[call-overload]
    return bool(int(container.format.flags) & flag)


def fault(message: str, remedy: str = REMEDY) -> MotionError:
    """An error of the motion."""
    return MotionError(message, remedy=remedy, field="motion")


def reason(error: Exception) -> str:
    """What FFmpeg said, without its number and its function; or our own message."""
    text = getattr(error, "strerror", None) or getattr(error, "message", None) or str(error)
    text = str(text).strip().rstrip(".")
    return text[:1].lower() + text[1:]


def _area(stream: VideoStream) -> int:
    return int(stream.codec_context.width * stream.codec_context.height)
