"""What the tests of the runtime share: golden runs, a person, her pose, motions, clips made on the fly."""

from __future__ import annotations

import io
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mimicmotion_trt import PoseSequence, estimate_poses

Array = NDArray[Any]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def person() -> Path:
    """A picture of a person, 512x512."""
    return ROOT / "demo" / "person.jpg"


@pytest.fixture(scope="session")
def person_pose(person: Path) -> PoseSequence:
    """The person's own pose, so that a test need not estimate it again."""
    return estimate_poses(person, threads=2)


@pytest.fixture(scope="session")
def dance() -> PoseSequence:
    """50 frames of keypoints at 30 fps."""
    return PoseSequence.load(ROOT / "demo" / "balance.npz")


@pytest.fixture(scope="session")
def clip_of(person: Path) -> Callable[..., bytes]:
    """An MP4 in which the person is shifted about; `empty=True` shows grey frames, nobody."""
    import av

    from mimicmotion_trt.media.picture import fit_picture, read_picture

    picture = fit_picture(read_picture(person), 256, 256)

    def make(frames: int, fps: int = 30, *, empty: bool = False, sound: bool = False) -> bytes:
        file = io.BytesIO()
        with av.open(file, "w", format="mp4") as output:
            stream = output.add_stream("libx264", rate=fps, options={"preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt = 256, 256, "yuv420p"
            tone = output.add_stream("aac", rate=48_000, layout="mono") if sound else None
            for index in range(frames):
                shown = np.full_like(picture, 127) if empty else np.roll(picture, 2 * index, axis=1)
                frame = av.VideoFrame.from_ndarray(shown, format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, fps)
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
            if tone is not None:
                for start in range(0, 48_000 * frames // fps, 1000):
                    wave = (np.sin(np.arange(start, start + 1000) / 17) * 9000).astype(np.int16)
                    piece = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
                    piece.rate, piece.pts, piece.time_base = 48_000, start, Fraction(1, 48_000)
                    output.mux(tone.encode(piece))
                output.mux(tone.encode(None))
        return file.getvalue()

    return make


@pytest.fixture(scope="session")
def pose_pictures() -> Callable[..., Array]:
    """Pose pictures uint8 [F,H,W,3] of seeded blobs on black; no real skeleton is needed by the networks."""

    def make(frames: int, height: int = 64, width: int = 64, seed: int = 0) -> Array:
        random = np.random.default_rng(seed)
        pictures = np.zeros((frames, height, width, 3), np.uint8)
        for picture in pictures:
            top, left = random.integers(0, (height - 16, width - 16))
            picture[top : top + 16, left : left + 16] = random.integers(60, 256, 3)
        return pictures

    return make
