"""Frames and sound into one container; what the video writers share."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

import av
import numpy as np
from av.packet import Packet
from av.video.format import VideoFormat
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from av.video.stream import VideoStream
from numpy.typing import NDArray

from ..errors import OutputError
from ..limits import FASTEST_FPS, SLOWEST_FPS
from .audio import AudioTrack, Sound, open_audio

_THREADS = 4  # x264 gives the same bytes for the same number of threads, so it must not follow the host
Comment = Callable[[], str]
_CENTISECOND = Fraction(1, 100)  # a GIF's clock
_SHORTEST_GIF_DELAY = 2  # browsers slow down anything shorter to 10


@dataclass(frozen=True, slots=True)
class FileFormat:
    """How one kind of file is made."""

    container: str
    codec: str
    options: dict[str, str] = field(default_factory=dict)
    """For the muxer."""
    codec_options: dict[str, str] = field(default_factory=dict)
    copied_audio: frozenset[str] = frozenset()
    audio_codec: str = ""
    """Encoder for other sound; empty where the file holds none."""


_MP4_AUDIO = frozenset({"aac", "mp3", "alac", "ac3"})
# Macroblock tree with AVX-512 (x264 165) takes unset memory for costs: one clip, other bytes each time.
_H264 = {"mbtree": "0"}
_VP9 = {"b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"}

FORMATS = {
    ".mp4": FileFormat("mp4", "libx264", {"movflags": "+faststart"}, _H264, _MP4_AUDIO, "aac"),
    ".mov": FileFormat("mov", "libx264", {"movflags": "+faststart"}, _H264, _MP4_AUDIO, "aac"),
    ".mkv": FileFormat("matroska", "libx264", {}, _H264, _MP4_AUDIO | {"opus", "vorbis", "flac"}, "aac"),
    ".webm": FileFormat("webm", "libvpx-vp9", {}, _VP9, frozenset({"opus", "vorbis"}), "libopus"),
    ".gif": FileFormat("gif", "gif"),
}
FRAGMENTED = FileFormat(
    "mp4",
    "libx264",
    # A fragment leaves when the next key frame arrives; sound that ends early holds back 0.1 s, not 10.
    {
        "movflags": "+frag_keyframe+empty_moov+default_base_moof",
        "flush_packets": "1",
        "max_interleave_delta": "100000",
    },
    {"tune": "zerolatency"},  # every frame is encoded as it comes
    frozenset({"aac"}),
    "aac",
)


class Movie:
    """One video being written to `target`, a path or a binary sink.

    Frames are uint8 [H,W,3] RGB of `size` (width, height); H.264 and VP9 pad odd sizes by one pixel.
    Colours are BT.709, limited range. Sound comes from `audio`, the driving video, where the format has any.
    Sound that cannot be used is left out, which `note` says. `comment()` goes into the file's metadata, where the
    format has any; it is asked when the first frame comes. Raises `OutputError` for a wrong rate, size or frame.
    """

    def __init__(
        self,
        target: str | io.RawIOBase,
        form: FileFormat,
        *,
        fps: float,
        size: tuple[int, int],
        audio: Sound | None = None,
        crf: int = 18,
        comment: Comment | None = None,
    ) -> None:
        self.frames = 0
        self.note = ""
        """What was lost of the sound, and why; empty if nothing was."""
        self._rate = exact_rate(fps)
        self._size = check_size(size)
        self._comment = comment
        self._audio: AudioTrack | None = None
        self._palette: _Palette | None = None
        options = {"fflags": "+bitexact", **form.options}  # no dates, versions or random ids in the file
        self._container = av.open(target, "w", format=form.container, options=options)
        try:
            self._stream = self._add_stream(form, crf)
            if audio is not None and form.audio_codec:
                opened = open_audio(audio, self._container, form.copied_audio, form.audio_codec)
                self._audio, self.note = opened
        except BaseException:
            self.close()
            raise

    def add(self, frame: NDArray[np.uint8], *, key: bool = False) -> None:
        """Append a frame; `key` lets a player start from it (and ends a fragment before it)."""
        picture = self._prepare(check_frame(frame, self._size))
        if self.frames == 0:
            if self._comment is not None:
                self._container.metadata["comment"] = self._comment()
            self._container.start_encoding()
        if picture is not None:
            picture.pict_type = PictureType.I if key else PictureType.NONE
            self._container.mux(self._encode(picture))
        self.frames += 1
        if self._audio is not None:
            self._audio.write_until(self.frames / self._rate)

    def finish(self) -> None:
        """Write what the encoder still holds and the end of the file."""
        try:
            self._container.mux(self._encode(None))
        finally:
            self.close()

    def close(self) -> None:
        """Close the files; without `finish` what was written is of no use."""
        if self._audio is not None:
            self._audio.close()
            self.note = self._audio.note or self.note
        self._container.close()

    def _add_stream(self, form: FileFormat, crf: int) -> VideoStream:
        stream = self._container.add_stream(form.codec, rate=self._rate)
        assert isinstance(stream, VideoStream)
        context = stream.codec_context
        context.width, context.height = self._size
        if form.codec == "gif":
            context.pix_fmt, context.time_base = "pal8", _CENTISECOND
            self._palette = _Palette(*self._size)
            return stream
        context.width += context.width % 2
        context.height += context.height % 2
        context.pix_fmt, context.time_base = "yuv420p", 1 / self._rate
        context.thread_count = _THREADS
        context.options = {"crf": str(crf), **form.codec_options}
        context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        return stream

    def _prepare(self, frame: NDArray[np.uint8]) -> VideoFrame | None:
        if self._palette is not None:
            return self._palette.apply(frame, round(self.frames * 100 / self._rate))
        context = self._stream.codec_context
        down, right = context.height - frame.shape[0], context.width - frame.shape[1]
        if down or right:
            frame = np.pad(frame, ((0, down), (0, right), (0, 0)), mode="edge")
        picture = VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24").reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        picture.pts, picture.time_base = self.frames, 1 / self._rate
        return picture

    def _encode(self, picture: VideoFrame | None) -> list[Packet[VideoStream]]:
        packets = self._stream.encode(picture)
        for packet in packets:  # encoders state no duration, and the last frame's is known by nothing else
            packet.duration = max(1, round(1 / self._rate / packet.time_base))
        return packets


class _Palette:
    """256 colours of its own for every frame, so that a GIF can be written as its frames come."""

    def __init__(self, width: int, height: int) -> None:
        self._last = -_SHORTEST_GIF_DELAY
        graph = self._graph = av.filter.Graph()
        source = graph.add_buffer(
            width=width, height=height, format=VideoFormat("rgb24"), time_base=_CENTISECOND
        )
        split, generate = graph.add("split"), graph.add("palettegen", "stats_mode=single")
        use, sink = graph.add("paletteuse", "new=1:dither=sierra2_4a"), graph.add("buffersink")
        source.link_to(split)
        split.link_to(use, 0, 0)
        split.link_to(generate, 1, 0)
        generate.link_to(use, 0, 1)
        use.link_to(sink)
        graph.configure()

    def apply(self, frame: NDArray[np.uint8], pts: int) -> VideoFrame | None:
        """The frame in its palette, shown from `pts` hundredths on; None where a GIF's clock is too slow."""
        if pts - self._last < _SHORTEST_GIF_DELAY:
            return None
        self._last = pts
        picture = VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture.pts, picture.time_base = pts, _CENTISECOND
        self._graph.push(picture)
        return self._graph.vpull()


def exact_rate(fps: float) -> Fraction:
    """Frames per second as a fraction: 29.97 is 30000/1001, 12.5 is 25/2. Raises `OutputError`."""
    if not (math.isfinite(fps) and SLOWEST_FPS <= fps <= FASTEST_FPS):
        raise OutputError(
            f"the video's frame rate is {fps}.",
            remedy=f"Choose {SLOWEST_FPS:g} to {FASTEST_FPS:g} frames per second.",
            field="output",
        )
    broadcast = Fraction(round(fps * 1.001) * 1000, 1001)
    if broadcast > 0 and fps % 1 and abs(float(broadcast) - fps) < 1e-3:
        return broadcast
    return Fraction(fps).limit_denominator(1001)


def check_size(size: tuple[int, int]) -> tuple[int, int]:
    width, height = size
    if not (1 <= width <= 16384 and 1 <= height <= 16384):
        raise OutputError(f"a video of {width}x{height} cannot be written.", field="output")
    return width, height


def check_frame(frame: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    if frame.dtype != np.uint8 or frame.shape != (size[1], size[0], 3):
        raise OutputError(
            f"a frame is an array of {frame.dtype} {list(frame.shape)}.",
            remedy=f"Give uint8 [{size[1]}, {size[0]}, 3] in RGB order.",
            field="output",
        )
    return frame
