"""Driving videos: a file or bytes, read one frame at a time."""

from __future__ import annotations

import struct
from collections.abc import Generator, Iterator, Sequence
from fractions import Fraction
from itertools import chain, takewhile
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from ..errors import LimitError, counted
from ..limits import Limits
from .source import Source, fault, is_broadcast, reason
from .timeline import Clock, on_grid, read_timeline, timed_packets

_BRIDGED = 0.5
"""Seconds without a whole frame that a broadcast may have; the frame before is shown meanwhile."""


class _DamageError(Exception):
    """No further frame can be had: "truncated" or "damaged", and what the decoder said."""

    def __init__(self, kind: str, why: str = "") -> None:
        super().__init__(kind)
        self.why = why and f": {why}"


class VideoReader:
    """A video as a stream of upright RGB frames at a constant rate.

    `source` is a path or the bytes of a file. Any codec and container that FFmpeg reads will do: MP4, MOV, MKV,
    WebM, AVI, GIF and more. Of several tracks the default one is read. Rotation and pixels that are not square are
    applied, transparent parts lie over black. Where the frame rate varies, frames lie on a grid of the usual rate:
    grid time k/fps shows the frame whose time is nearest, or the one that is still on the screen where none is near:
    a still is repeated, some frames are left out, and the motion keeps its speed. At a constant rate that is every
    frame once.

    Raises `MotionError` if there is no video to read, and `LimitError` if the file or its frames are larger
    than `limits` allow; both before pixels are decoded.
    """

    fps: float
    """Frames per second: the container's rate, or that of the usual distance of frames where that is not true."""
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
            video = self._source.video(container)
            self._pixel_shape = _pixel_shape(video)
            self.has_audio = len(container.streams.audio) > 0
            self._timeline = read_timeline(self._source, container, video)
        self.fps = self._timeline.rate
        self._probe()
        self.frame_count = self._count or None

    def frames(self, stride: int = 1, limit: int | None = None) -> Iterator[tuple[float, NDArray[np.uint8]]]:
        """`pick` of every `stride`-th frame, at most `limit`."""
        if stride < 1:
            raise ValueError(f"stride {stride} is less than 1")
        return self.pick(range(0, self._count, stride), limit)

    def pick(
        self, indices: Sequence[int], limit: int | None = None
    ) -> Iterator[tuple[float, NDArray[np.uint8]]]:
        """Yields (seconds from the first frame, uint8 [H,W,3] RGB) of frames by rising numbers, at most `limit`.

        Only a few frames are in memory at any time; each call starts anew. Raises `MotionError` where the
        file turns out to be truncated or damaged, saying how many of these frames could be read.
        """
        taken, wanted = 0, len(indices) if limit is None else min(limit, len(indices))
        if not wanted:
            return
        clock = Clock(1 / self.fps, self._first)
        timed = ((clock.read(_stamp(frame)), frame) for frame in self._from(indices[0]))
        try:
            for index, frame in on_grid(timed, self.fps, self._count, indices[0]):
                if index == indices[taken]:
                    taken += 1
                    yield index / self.fps, self._to_rgb(frame)
                if taken == wanted:
                    return
        except _DamageError as damage:
            total, at = len(indices), indices[taken] / self.fps
            less = f", or ask for at most {counted(taken, 'frame')}" if taken else ""
            raise fault(
                f"{self.name} is {damage} after frame {taken} of {total}, {at:.2f} s{damage.why}.",
                f"Copy the file again{less}.",
            ) from damage

    def _probe(self) -> None:
        """The first frame tells when it begins, the true size and how the video is turned."""
        try:
            first = next(self._decoded(), None)
        except _DamageError as damage:
            raise fault(f"{self.name} is {damage}, not one frame can be decoded{damage.why}.") from damage
        if first is None:
            raise fault(f"{self.name} holds no frames.")
        self._first = _stamp(first)
        self.start = self._first or 0.0
        """When the first frame is shown, in seconds of the container's clock."""
        self._count = self._timeline.count(self.start)
        self._coded = (first.width, first.height)
        self._shown = (max(1, round(first.width * self._pixel_shape)), first.height)
        self._source.check_pixels(*self._shown)
        self._turn = _Turn(first)
        self.size = self._turn.size(*self._shown)

    def _from(self, index: int) -> Iterator[VideoFrame]:
        """The frames from a key frame on that is shown at grid index `index` or before; where none is known, all."""
        wanted = self.start + index / self.fps
        known = [entry for entry in self._timeline.entries if self.start < entry[0] <= wanted]
        if known:
            times = {seconds for seconds, _ in known}
            frames = self._decoded(known[-1][1])
            try:
                # Frames that a decoder shows before the key frame depend on what was skipped.
                for frame in takewhile(lambda one: (_stamp(one) or 0.0) <= wanted, frames):
                    if _stamp(frame) in times:
                        return chain((frame,), frames)
            except _DamageError:
                pass  # it is told where it is met on the way from the beginning
            frames.close()
        return self._decoded()

    def _decoded(self, at: int | None = None) -> Generator[VideoFrame]:
        """All frames, or those from the key frame at this time on, in the stream's units."""
        with self._source.open() as container:
            video = self._source.video(container)
            broadcast = is_broadcast(container)
            started, lost = not self._timeline.keyed, 0
            try:
                if at is not None:
                    container.seek(at, stream=video)
                for packet in timed_packets(container, video):
                    if packet.stream_index != video.index:
                        continue
                    started = started or packet.is_keyframe
                    if not started and packet.size:
                        continue
                    if packet.is_corrupt and not broadcast:  # the file ends in the middle of it
                        raise _DamageError("truncated")
                    whole = list(_whole(packet, broadcast))
                    lost = 0 if whole or not packet.size else lost + 1
                    if lost > max(_BRIDGED * self._timeline.rate, 16):  # a decoder may hold some back
                        raise _DamageError("damaged")
                    yield from whole
            except (av.FFmpegError, OSError) as error:
                raise _DamageError("damaged", reason(error)) from error
        if self._timeline.truncated:
            raise _DamageError("truncated")

    def _to_rgb(self, frame: VideoFrame) -> NDArray[np.uint8]:
        if (frame.width, frame.height) != self._coded:
            raise fault(
                f"{self.name} changes its size from {self._coded[0]}x{self._coded[1]}"
                f" to {frame.width}x{frame.height}.",
                "Convert it to one size.",
            )
        try:
            return self._turn.apply(_rgb(frame, *self._shown))
        except MemoryError as error:
            raise LimitError(f"a frame of {self.name} does not fit into memory.", field="motion") from error
        except (av.FFmpegError, ValueError) as error:
            raise fault(f"{self.name}: {frame.format.name} frames cannot be converted.") from error


def _whole(packet: Any, broadcast: bool) -> Iterator[VideoFrame]:
    """The frames that a packet completes; those that were damaged on the way are left out."""
    try:
        for frame in packet.decode():
            if not frame.is_corrupt:
                yield frame
    except av.InvalidDataError:
        if not broadcast:
            raise


def _stamp(frame: VideoFrame) -> float | None:
    return None if frame.pts is None or not frame.time_base else float(frame.pts * frame.time_base)


def _rgb(frame: VideoFrame, width: int, height: int) -> NDArray[np.uint8]:
    """uint8 [height,width,3]; transparent parts over black."""
    has_alpha = any(part.is_alpha for part in frame.format.components) or frame.format.name == "pal8"
    wanted = "rgba" if has_alpha else "rgb24"
    pixels: Any = frame.reformat(width, height, format=wanted, interpolation="BICUBIC").to_ndarray()
    if has_alpha:
        pixels = (pixels[..., :3].astype(np.uint16) * pixels[..., 3:] + 127) // 255
    return np.asarray(pixels, np.uint8)


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
