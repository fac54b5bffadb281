"""Driving videos: a file or bytes, read one frame at a time."""

from __future__ import annotations

import io
import os
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from ..errors import LimitError, MotionError
from ..files import plain_file
from ..limits import Limits, check_limit

_THREADS = min(4, os.cpu_count() or 1)  # every decoder thread keeps frames of its own
_FALLBACK_RATE = 25.0  # a single frame, or a stream without timestamps
# Playlists and the like are left out: they could make the demuxer open other files or addresses.
_DEMUXERS = (
    "mov,matroska,avi,gif,apng,flv,mpeg,mpegts,mpegvideo,asf,ogg,nut,ivf,rm,mxf,dv,h264,hevc,av1,obu,m4v,mjpeg,"
    "yuv4mpegpipe,wav,mp3,aac,flac"
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
            self.name, self._path, size = path.name, str(path.absolute()), path.stat().st_size
        elif isinstance(source, bytes | bytearray | memoryview):
            self.name, self._data = "the driving video", bytes(source)
            size = len(self._data)
        else:
            raise fault(f"the driving video is a {type(source).__name__}.", "Give a path or bytes.")
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

    def _readable(self) -> str | io.BytesIO:
        if self._path:
            return "file:" + self._path  # so that no name is taken for a protocol
        return io.BytesIO(self._data)

    def _begin(self) -> bytes:
        if not self._path:
            return self._data[:12]
        with open(self._path, "rb") as file:
            return file.read(12)


def fault(message: str, remedy: str = REMEDY) -> MotionError:
    return MotionError(message, remedy=remedy, field="motion")


def reason(error: Exception) -> str:
    """What FFmpeg said, without its number and its function."""
    text = getattr(error, "strerror", None) or str(error)
    return str(text).strip().rstrip(".").lower()


@dataclass(frozen=True, slots=True)
class _Packets:
    """What a video's packets say before any is decoded."""

    count: int
    rate: float
    """Frames per second."""
    pixel_shape: Fraction
    """Width of a pixel over its height."""
    damaged: bool


class VideoReader:
    """A video as a stream of upright RGB frames at a constant rate.

    `source` is a path or the bytes of a file. Any codec and container that FFmpeg reads will do: MP4, MOV, MKV,
    WebM, AVI, GIF and more. Rotation and non-square pixels are applied. Where the frame rate varies, frames lie
    on a grid of the average rate: grid time k/fps shows the frame whose timestamp is nearest, so some are left
    out and some are repeated, and the motion keeps its speed. At a constant rate that is every frame once.

    Raises `MotionError` if there is no video to read, and `LimitError` if the file or its frames are larger
    than `limits` allow; both before pixels are decoded.
    """

    fps: float
    """Frames per second: the container's rate, or the mean over the timestamps where that is not true."""
    size: tuple[int, int]
    """(width, height) of the frames as `frames()` gives them."""
    frame_count: int | None
    """How many frames there are to read at stride 1, as far as the container tells; an estimate."""
    has_audio: bool

    def __init__(self, source: str | Path | bytes, limits: Limits | None = None) -> None:
        self._source = Source(source, limits or Limits())
        self.name = self._source.name
        """The file's name, or a description, for messages."""
        with self._source.open() as container:
            self._packets = self._scan(container)
        self._probe()
        self.fps = self._packets.rate
        self.frame_count = self._packets.count or None

    def frames(self, stride: int = 1, limit: int | None = None) -> Iterator[tuple[float, NDArray[np.uint8]]]:
        """Yields (seconds from the first frame, uint8 [H,W,3] RGB), every `stride`-th, at most `limit`.

        Only a few frames are in memory at any time; each call starts anew. Raises `MotionError` where the
        file turns out to be cut off or damaged, saying how far it could be read.
        """
        if stride < 1:
            raise ValueError(f"stride {stride} is less than 1")
        taken = 0
        for index, frame in self._on_grid():
            if limit is not None and taken >= limit:
                return
            if index % stride == 0:
                taken += 1
                yield index / self.fps, self._to_rgb(frame)

    def _scan(self, container: InputContainer) -> _Packets:
        """Read the packets' timestamps: quick, and more reliable than many headers."""
        stream = self._video(container)
        self.has_audio = len(container.streams.audio) > 0
        times, damaged = array("q"), False
        skipped = unstamped = 0
        try:
            for packet in container.demux(stream):
                if packet.size == 0 or packet.is_discard:
                    skipped += packet.size > 0
                elif packet.pts is None:
                    unstamped += 1
                else:
                    times.append(packet.pts)
        except (av.FFmpegError, OSError):
            damaged = True
        count = len(times) + unstamped
        promised = stream.frames if "mp4" in container.format.name else 0  # others only guess
        damaged = damaged or count + skipped < promised
        expected = max(count, promised - skipped) if damaged else count
        return _Packets(expected, _mean_rate(stream, times, unstamped), _pixel_shape(stream), damaged)

    def _video(self, container: InputContainer) -> VideoStream:
        for stream in container.streams.video:
            if not stream.disposition & av.stream.Disposition.attached_pic:  # the cover of a song
                break
        else:
            kind = "audio" if container.streams.audio else "data"
            raise fault(f"{self.name} holds no video, only {kind}.")
        context = stream.codec_context
        if context is None:
            raise fault(f"{self.name} uses a video codec that cannot be decoded here.")
        self._check_pixels(context.width, context.height)
        context.thread_count = _THREADS
        context.thread_type = "AUTO"
        context.options = self._source.decoder_options
        return stream

    def _check_pixels(self, width: int, height: int) -> None:
        limit = self._source.limits.frame_pixels
        check_limit("pixels of a frame of the driving video", width * height, limit, field="motion")

    def _probe(self) -> None:
        """The first frame tells the true size and how the video is turned."""
        first = next(self._decoded(), None)
        if first is None:
            raise fault(f"{self.name} holds no frames.")
        self._coded = (first.width, first.height)
        self._shown = (max(1, round(first.width * self._packets.pixel_shape)), first.height)
        self._check_pixels(*self._shown)
        self._turn = _Turn(first)
        self.size = self._turn.size(*self._shown)

    def _decoded(self) -> Iterator[VideoFrame]:
        done = 0
        with self._source.open() as container:
            stream = self._video(container)
            try:
                for packet in container.demux(stream):
                    if packet.is_corrupt:
                        raise self._damage(done, "the data ends or breaks there")
                    for frame in packet.decode():
                        if frame.is_corrupt:
                            raise self._damage(done, "the data is damaged there")
                        yield frame
                        done += 1
            except (av.FFmpegError, OSError) as error:
                raise self._damage(done, reason(error)) from error
        if self._packets.damaged:
            raise self._damage(done, "the file is cut off there")

    def _damage(self, done: int, why: str) -> Exception:
        total = f" of {self._packets.count}" if self._packets.count else ""
        if done == 0:
            return fault(f"{self.name} is damaged: not one frame can be decoded ({why}).")
        return fault(
            f"{self.name} is damaged after frame {done}{total}, {done / self._packets.rate:.2f} s: {why}.",
            f"Copy the file again, or ask for at most {done} frames.",
        )

    def _on_grid(self) -> Iterator[tuple[int, VideoFrame]]:
        """(grid index, frame): each frame for all grid times nearer to it than to the next."""
        clock = _Clock(1 / self.fps)
        most = 2 * self._packets.count + 2  # a forged timestamp must not repeat a frame for ever
        waiting: VideoFrame | None = None
        index, at = 0, 0.0
        for frame in chain(self._decoded(), (None,)):
            before, at = at, at if frame is None else clock.read(frame)
            end = at + 0.5 / self.fps if frame is None else (before + at) / 2
            while waiting is not None and index / self.fps < end and index < most:
                yield index, waiting
                index += 1
            waiting = frame

    def _to_rgb(self, frame: VideoFrame) -> NDArray[np.uint8]:
        if (frame.width, frame.height) != self._coded:
            raise fault(
                f"{self.name} changes its size from {self._coded[0]}x{self._coded[1]}"
                f" to {frame.width}x{frame.height}.",
                "Convert it to one size.",
            )
        try:
            rgb = frame.reformat(*self._shown, format="rgb24", interpolation="BICUBIC").to_ndarray()
        except MemoryError as error:
            raise LimitError(f"a frame of {self.name} does not fit into memory.", field="motion") from error
        except (av.FFmpegError, ValueError) as error:
            raise fault(f"{self.name}: {frame.format.name} frames cannot be converted.") from error
        return self._turn.apply(rgb.astype(np.uint8, copy=False))


class _Clock:
    """Seconds of each frame from the first; a missing or backward timestamp counts as one period on."""

    def __init__(self, period: float) -> None:
        self._period = period
        self._start: float | None = None
        self._last = -period

    def read(self, frame: VideoFrame) -> float:
        at = self._last + self._period
        if frame.pts is not None and frame.time_base:
            stamp = float(frame.pts * frame.time_base)
            self._start = stamp - at if self._start is None else self._start
            if stamp - self._start > self._last:
                at = stamp - self._start
        self._last = at
        return at


def _mean_rate(stream: VideoStream, times: array[int], unstamped: int) -> float:
    stated = stream.average_rate or stream.guessed_rate or Fraction(0)
    steps = len(times) - 1
    if unstamped == 0 and steps > 0 and stream.time_base and (span := max(times) - min(times)) > 0:
        seconds = span * stream.time_base
        if stated <= 0 or abs(seconds * stated - steps) >= Fraction(1, 2):  # half a frame off at the end
            return float(steps / seconds)
    return float(stated) if stated > 0 else _FALLBACK_RATE


def _pixel_shape(stream: VideoStream) -> Fraction:
    """Width of a pixel over its height; old cameras store pixels that are not square."""
    shape = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    return Fraction(shape) if shape and Fraction(1, 4) <= shape <= 4 else Fraction(1)


class _Turn:
    """The display matrix of a video: quarter turns and mirrorings."""

    def __init__(self, frame: VideoFrame) -> None:
        # Asking a frame for its side data ties it into a cycle that only the garbage collector frees, so this
        # is done for the first frame and not for all.
        side_data: Any = frame.side_data
        matrix = side_data.get(SideDataType.DISPLAYMATRIX)
        a, b, _, c, d = struct.unpack("=9i", bytes(matrix))[:5] if matrix else (1, 0, 0, 0, 1)
        self._swap = abs(b) > abs(a)  # x' = ax + cy, y' = bx + dy
        across, down = (c, b) if self._swap else (a, d)
        self._across, self._down = (-1 if across < 0 else 1), (-1 if down < 0 else 1)

    def size(self, width: int, height: int) -> tuple[int, int]:
        return (height, width) if self._swap else (width, height)

    def apply(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        upright = picture.transpose(1, 0, 2) if self._swap else picture
        return np.ascontiguousarray(upright[:: self._down, :: self._across])
