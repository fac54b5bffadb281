"""Inputs for benchmarks: a real person's picture, real keypoints, and a driving video made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mimicmotion_trt.media.picture import fit_picture, read_picture
from mimicmotion_trt.media.writer import VideoWriter
from mimicmotion_trt.pose import PoseSequence

DEMO = Path(__file__).resolve().parent.parent / "demo"
PERSON = DEMO / "person.jpg"
MOTION = DEMO / "balance.npz"


def keypoints(frames: int) -> PoseSequence:
    """The demo's motion, run forth and back until there are `frames` of it."""
    poses = PoseSequence.load(MOTION)
    period = np.concatenate([np.arange(len(poses)), np.arange(len(poses) - 2, 0, -1)])
    return poses.take(period[np.arange(frames) % len(period)])


def driving_video(path: Path, frames: int, size: tuple[int, int] = (480, 854), fps: float = 15.0) -> Path:
    """A video of the demo's person swaying: for what pose estimation and decoding cost, not for looks."""
    person = fit_picture(read_picture(PERSON), size[0] + 64, size[1])
    with VideoWriter(path, fps=fps, size=size) as writer:
        for index in range(frames):
            left = round(32 + 30 * np.sin(index / 5))
            writer.write(np.ascontiguousarray(person[:, left : left + size[0]]))
    return path


def picture(size: tuple[int, int]) -> NDArray[np.uint8]:
    """The demo's person, uint8 [H,W,3] of `size` (width, height)."""
    return fit_picture(read_picture(PERSON), *size)
