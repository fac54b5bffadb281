"""Small clips made on the fly: frame k is a plain grey that tells k, with a white block at the top left."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest


def _frame(index: int, width: int = 64, height: int = 48) -> np.ndarray:
    picture = np.empty((height, width, 3), np.uint8)
    picture[:] = 20 + index % 50 * 4
    picture[: height // 4, : width // 4] = 255
    return picture


def _index(picture: np.ndarray) -> float:
    """The k of a frame, read off its grey."""
    grey = np.median(picture.astype(float))
    return (grey - 20) / 4


def _clip(
    frames: int = 20,
    *,
    rate: Any = 30,
    size: tuple[int, int] = (64, 48),
    container: str = "mp4",
    codec: str = "libx264",
    pixels: str = "yuv420p",
    times: Iterable[int] | None = None,
    rotation: float | None = None,
    sound: str = "",
    heard: tuple[float, float] = (0.0, 1e9),
    beep: float | None = None,
    silent: tuple[float, float] = (0.0, 0.0),
    begin: int = 0,
    noisy: bool = False,
    options: dict[str, str] | None = None,
) -> bytes:
    """`times`: milliseconds of each frame. `sound`: an encoder for a 440 Hz tone as long as the frames, of which
    there is what lies in the seconds `heard`, without packets in `silent`; `beep`: for a beep of 0.1 s instead.
    `begin`: the second at which the file's clock begins. `noisy`: frames take many bytes.
    """
    noise = np.random.default_rng(0)
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=options or {}) as output:
        stream = output.add_stream(codec, rate=Fraction(rate))
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        if codec == "libx264":
            stream.codec_context.options = {"crf": "1"}
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        audio = output.add_stream(sound, rate=48_000, layout="mono") if sound else None
        stamps = list(times) if times is not None else range(frames)
        unit = Fraction(1, 1000) if times is not None else 1 / Fraction(rate)
        for index, stamp in enumerate(stamps):
            drawn = noise.integers(0, 255, (size[1], size[0], 3), np.uint8) if noisy else _frame(index, *size)
            picture = av.VideoFrame.from_ndarray(drawn, format="rgb24")
            picture.pts, picture.time_base = stamp + round(begin / unit), unit
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))
        if audio is not None:
            for start in range(0, int(48_000 * frames / rate), 1000):
                seconds = np.arange(start, start + 1000) / 48_000
                if not heard[0] <= seconds[0] < heard[1]:
                    continue
                wave = np.sin(seconds * (2 * np.pi * 440)) * 12_000
                if beep is not None:
                    wave *= (seconds >= beep) & (seconds < beep + 0.1)
                tone = av.AudioFrame.from_ndarray(wave.astype(np.int16)[None], format="s16", layout="mono")
                tone.rate, tone.pts, tone.time_base = 48_000, start + begin * 48_000, Fraction(1, 48_000)
                for packet in audio.encode(tone):
                    if not silent[0] <= float(packet.pts * packet.time_base) - begin < silent[1]:
                        output.mux(packet)
            output.mux(audio.encode(None))
    return file.getvalue()


@pytest.fixture
def frame() -> Callable[..., np.ndarray]:
    return _frame


@pytest.fixture
def index_of() -> Callable[[np.ndarray], float]:
    return _index


@pytest.fixture(scope="session")
def clip() -> Callable[..., bytes]:
    """`_clip`, but the same clip is encoded once in a session."""
    made: dict[str, bytes] = {}

    def once(*args: Any, **options: Any) -> bytes:
        key = repr((args, options))
        if key not in made:
            made[key] = _clip(*args, **options)
        return made[key]

    return once
