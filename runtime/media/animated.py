"""Animated pictures: WebP, which FFmpeg does not read; WebP, APNG and Motion JPEG are written of pose pictures."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..files import read_head
from ..limits import Limits
from .movie import exact_rate
from .reader import VideoReader
from .source import Source, fault
from .timeline import on_grid, usual_rate

_WRITTEN: dict[str, tuple[dict[str, str], str, dict[str, str], str]] = {
    ".avi": ({}, "mjpeg", {"qmin": "1", "qmax": "2"}, "yuvj444p"),
    ".apng": ({"plays": "0"}, "apng", {}, "rgb24"),  # Pillow would join frames that are alike
}
"""What FFmpeg writes: options of the file, the codec and its options, the pixels."""


class AnimatedWebP:
    """An animated WebP with the face of a `VideoReader`: upright RGB frames at the usual rate, over black.

    Raises `MotionError` if it is none or only a still, and `LimitError` if it is too large.
    """

    has_audio = False

    def __init__(self, source: str | Path | bytes, limits: Limits | None = None) -> None:
        found = Source(source, limits or Limits())
        self.name = found.name
        self._data = source if isinstance(source, bytes) else Path(source).read_bytes()
        try:
            with self._open() as picture:
                found.check_pixels(*picture.size)
                self.size: tuple[int, int] = picture.size
                seconds = []
                for index in range(getattr(picture, "n_frames", 1)):
                    picture.seek(index)
                    picture.load()
                    seconds.append(max(float(picture.info.get("duration", 0)), 10.0) / 1000)
        except (OSError, ValueError, EOFError, SyntaxError) as error:
            raise fault(
                f"{self.name} is a WebP that is truncated or damaged.", "Copy the file again."
            ) from error
        self._times = [0.0, *accumulate(seconds)]
        self.fps = usual_rate(seconds[:-1] or seconds)
        self.frame_count: int | None = max(1, round(self._times[-1] * self.fps))

    def frames(self, stride: int = 1, limit: int | None = None) -> Iterator[tuple[float, NDArray[np.uint8]]]:
        """As `VideoReader.frames`."""
        return self.pick(range(0, self.frame_count or 1, stride)[:limit])

    def pick(self, indices: Sequence[int]) -> Iterator[tuple[float, NDArray[np.uint8]]]:
        """As `VideoReader.pick`."""
        waiting = iter(indices)
        wanted = next(waiting, None)
        for index, picture in on_grid(self._pictures(), self.fps, self.frame_count or 1):
            if wanted is None:
                return
            if index == wanted:
                yield index / self.fps, picture
                wanted = next(waiting, None)

    def _open(self) -> Image.Image:
        Image.init()
        return Image.OPEN["WEBP"][0](io.BytesIO(self._data), "")

    def _pictures(self) -> Iterator[tuple[float, NDArray[np.uint8]]]:
        with self._open() as picture:
            for index, at in enumerate(self._times[:-1]):
                picture.seek(index)
                frame = picture.convert("RGBA")
                black = Image.new("RGB", frame.size)
                black.paste(frame, mask=frame.getchannel("A"))
                yield at, np.asarray(black)


def open_video(source: str | Path | bytes, limits: Limits | None = None) -> VideoReader | AnimatedWebP:
    """A video, or an animated picture, as frames at a constant rate; raises `MotionError` and `LimitError`."""
    head = b"" if isinstance(source, str | Path) and not os.path.isfile(source) else read_head(source)
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    return AnimatedWebP(source, limits) if webp else VideoReader(source, limits)


def encode_animation(pictures: Iterable[NDArray[np.uint8]], fps: float, suffix: str) -> bytes:
    """A file of pictures uint8 [H,W,3] of one size: an animated WebP or PNG, or Motion JPEG. Raises `OutputError`."""
    file, rate = io.BytesIO(), exact_rate(fps)
    if suffix == ".webp":
        first, *others = map(Image.fromarray, pictures)
        ends = [round(1000 * index / rate) for index in range(len(others) + 2)]
        lengths = [end - begin for begin, end in pairwise(ends)]  # whole milliseconds that do not drift
        first.save(file, "WEBP", save_all=True, append_images=others, duration=lengths, lossless=True)
        return file.getvalue()
    muxing, codec, options, pixels = _WRITTEN[suffix]
    with av.open(file, "w", format=suffix[1:], options={"fflags": "+bitexact", **muxing}) as container:
        stream: Any = container.add_stream(codec, rate=rate, options=options)
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            if index == 0:
                stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, pixels
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()
