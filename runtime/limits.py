"""How much this host takes: larger inputs are refused before they are decoded, older results forgotten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from .errors import LimitError
from .validation import Whole, checked

Count = Annotated[int, Whole(1)]
SLOWEST_FPS, FASTEST_FPS = 0.01, 1000.0
"""Frames per second of the videos that can be written: beyond them an MP4's clock has too few or too many ticks."""


@checked(LimitError, prefix="limits.")
@dataclass(frozen=True)
class Limits:
    """Upper bounds, each a positive whole number."""

    picture_bytes: Count = 64 * 2**20
    picture_pixels: Count = 100_000_000
    """Checked on the header, before any pixel is decoded."""
    motion_bytes: Count = 2 * 2**30
    keypoint_bytes: Count = 256 * 2**20
    """Of a file of keypoints (.npz), unpacked: 1,536 a frame."""
    json_bytes: Count = 32 * 2**20
    """Of a file of keypoints as JSON, 2,600 to 7,600 a frame; reading it takes up to 16 times as much memory."""
    frame_pixels: Count = 8192 * 4352
    """Pixels of one frame of the driving video."""
    frames: Count = 20_000
    """Frames of the finished video."""
    output_pixels: Count = 2048 * 2048
    """Pixels of one frame of the finished video."""
    memory_bytes: Count = 2**40
    """Memory that one job may take on a CPU, as estimated before it runs; what is free bounds it as well."""
    reuse_bytes: Count = 512 * 2**20
    """Memory of the host for what CLIP, VAE and PoseNet gave for pictures that may come again; 1 keeps nothing.

    PoseNet's features of 72 frames of 1024x576 are 425 MB in float16.
    """
    job_seconds: Count = 24 * 3600
    """Seconds that a job of the service may run."""
    jobs: Count = 1
    """Jobs that an engine process runs at once. On a GPU one is encoded or decoded while another is denoised."""
    together: Count = 1
    """Of these, how many equal ones share the batches of a GPU; the last bits then depend on the other jobs."""
    lora_choices: Count = 2
    """U-Nets with other LoRAs than the usual ones that are kept for the next job; each takes as much memory as the
    bundle's own."""


def check_limit(what: str, value: int, limit: int, *, field: str) -> None:
    """Raise `LimitError` naming `what` (for instance "pixels of the picture") if value > limit."""
    if value > limit:
        raise LimitError(
            f"{what}: {value:,} is more than the {limit:,} allowed here.",
            remedy="Send a smaller one, or raise the limit where the animator is loaded.",
            field=field,
        )
