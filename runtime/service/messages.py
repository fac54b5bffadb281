"""What crosses the pipe between server and engine process: small frozen values, never pixels or video."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import MimicMotionError
from ..events import Stage
from ..limits import Limits
from ..settings import Settings

CHUNK_BYTES = 2**20
"""Largest piece of a file in one message of the wire."""

PICTURE, MOTION, REFERENCE_POSE, VIDEO = "picture", "motion", "reference_pose", "video.mp4"
"""Names of the files in a job's folder."""
INPUTS = (PICTURE, MOTION, REFERENCE_POSE)

MotionKind = Literal["video", "keypoints", "pose_pictures"]


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """How an engine process gets its animator: `factory` ("module:callable") called with the other fields."""

    factory: str
    bundle: str | Path
    device: str
    threads: int | None
    limits: Limits
    graphs: bool = True


# ---- to the engine ----


@dataclass(frozen=True, slots=True)
class Run:
    """Animate the files in `folder` and spool the video there."""

    job: str
    folder: Path
    motion_kind: MotionKind
    has_reference_pose: bool
    settings: Settings


@dataclass(frozen=True, slots=True)
class Cancel:
    job: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Leave after the running jobs, if any."""


# ---- from the engine ----


@dataclass(frozen=True, slots=True)
class Ready:
    """The animator is loaded and warm."""

    bundle_name: str
    note: str
    defaults: Settings


@dataclass(frozen=True, slots=True)
class LoadFailed:
    error: MimicMotionError


@dataclass(frozen=True, slots=True)
class Started:
    """The inputs were taken; `frames` and `size` are 0 where they are not known yet."""

    frames: int
    fps: float
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Progress:
    stage: Stage
    step: int
    steps: int
    segment: int
    segments: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Preview:
    jpeg: bytes
    step: int
    steps: int


@dataclass(frozen=True, slots=True)
class Video:
    """`size` bytes at `offset` are in the job's video file, with this CRC-32."""

    offset: int
    size: int
    crc32: int


@dataclass(frozen=True, slots=True)
class Done:
    frames: int
    fps: float
    size: tuple[int, int]
    bytes: int
    sha256: str
    seconds: dict[str, float]
    """By stage: pose, encode, denoise, decode, and write for making the MP4."""


@dataclass(frozen=True, slots=True)
class Failed:
    error: MimicMotionError


# ---- kept in a job's log, but made by the server ----


@dataclass(frozen=True, slots=True)
class Accepted:
    job: str
    settings: Settings


@dataclass(frozen=True, slots=True)
class Queued:
    position: int
    eta_seconds: float | None


Report = Started | Progress | Preview | Video | Done | Failed
ToEngine = Run | Cancel | Stop


@dataclass(frozen=True, slots=True)
class About:
    """A report about one job."""

    job: str
    report: Report


FromEngine = Ready | LoadFailed | About
Entry = Accepted | Queued | Started | Progress | Preview | Video | Done
