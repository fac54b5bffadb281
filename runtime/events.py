"""What a running animation tells its owner: the same objects in process, between processes, and from a server.

A job in this process yields `Progress` only. A job of a server goes through `Accepted`, `Queued`, `Started`,
`Progress`, `Preview` and `Video` to `Done`, or to `Failed`, which clients raise as the error inside.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from .errors import MimicMotionError, counted
from .facts import Facts
from .settings import Settings

Stage = Literal["pose", "encode", "denoise", "decode"]
STAGES: tuple[Stage, ...] = ("pose", "encode", "denoise", "decode")

CHUNK_BYTES = 2**20
"""Largest `Preview.jpeg` and `Video.data`, and largest piece of an upload."""


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events."""

    kind: ClassVar[str] = ""
    """What the wire's schema and the lines of JSON call it."""
    sequence: int = field(default=0, kw_only=True)
    """1, 2, … within a job of a server, with gaps where newer reports replaced older ones; 0 in process."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON: of bytes and of pictures only how many, and nothing that is unset."""
        values: dict[str, Any] = {"event": self.kind}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, bytes | np.ndarray):
                value = len(value)
            elif isinstance(value, Settings):
                value = value.to_dict()
            elif isinstance(value, MimicMotionError):
                value = str(value)
            elif f.name == "others":
                value = [asdict(other) for other in value] or None
            elif isinstance(value, Facts):
                values |= value.to_dict()
                continue
            if value is not None and (f.name != "sequence" or value):
                values[f.name] = value
        return values


@dataclass(frozen=True, slots=True)
class Accepted(Event):
    """The upload is complete and the job has a name."""

    kind: ClassVar[str] = "accepted"
    job: str
    settings: Settings
    """With the bundle's defaults filled in."""
    frames: int = 0
    """Of the finished video; 0 where that is not known yet."""

    def __str__(self) -> str:
        return f"accepted as {self.job}"


@dataclass(frozen=True, slots=True)
class Queued(Event):
    """The job waits."""

    kind: ClassVar[str] = "queued"
    position: int
    """Jobs that start before this one."""
    eta: float | None
    """Predicted seconds until it starts; None until the server has measured a job."""

    def __str__(self) -> str:
        before = counted(self.position, "job") + " before it" if self.position else "next"
        return f"queued: {before}" + (f", starts in {self.eta:.0f} s" if self.eta else "")


@dataclass(frozen=True, slots=True)
class Started(Event):
    """An engine took the job and read its inputs."""

    kind: ClassVar[str] = "started"
    frames: int
    """Of the finished video; 0 where that is not known yet."""
    fps: float
    """Frames per second of the finished video."""
    size: tuple[int, int]
    """(width, height) of the finished video."""

    def __str__(self) -> str:
        width, height = self.size
        return f"started: {self.frames or '?'} frames of {width}x{height}, {self.fps:g} per second"


@dataclass(frozen=True, slots=True)
class Progress(Event):
    """`step` of `steps` is done in `stage` (frames in pose and decode, sigmas in denoise). Decode begins with 0."""

    kind: ClassVar[str] = "progress"
    stage: Stage
    step: int
    steps: int
    """0 where the total is not known yet (a video whose length its container does not state)."""
    segment: int = 0
    """In denoise: segments done of the running step."""
    segments: int = 0
    seconds: float = 0.0
    """Since the job began."""
    held: int = 0
    """Frames so far in which the driving person was not seen."""
    video: int = 1
    """Which of several videos is being made; steps are counted over all of them."""
    rows: int = field(default=0, compare=False)
    """In denoise, once a step: rows in its largest batch."""
    preview: NDArray[np.uint8] | None = field(default=None, compare=False, repr=False)
    """uint8 [H,W,3]: the middle frame as the running denoise step sees it finished; in process only."""
    frames: NDArray[np.uint8] | None = field(default=None, compare=False, repr=False)
    """uint8 [n,H,W,3] RGB: finished frames, in order; in process only, and there only in decode."""

    def __str__(self) -> str:
        inner = f", segment {self.segment}/{self.segments}" if self.segments else ""
        extra = f", {counted(len(self.frames), 'frame')}" if self.frames is not None else ""
        return f"[{self.seconds:7.2f} s] {self.stage} {self.step}/{self.steps or '?'}{inner}{extra}"


@dataclass(frozen=True, slots=True)
class Preview(Event):
    """The video's middle frame as the running denoising step sees it finished."""

    kind: ClassVar[str] = "preview"
    jpeg: bytes = field(repr=False)
    """A JPEG file."""
    step: int
    steps: int

    def __str__(self) -> str:
        return f"preview of step {self.step}/{self.steps}"


@dataclass(frozen=True, slots=True)
class Video(Event):
    """The next bytes of the video file, for playing it while it arrives."""

    kind: ClassVar[str] = "video"
    offset: int
    """Of the first byte in the file."""
    size: int
    """Bytes, at most `CHUNK_BYTES`."""
    crc32: int
    """Of the bytes, as in zlib."""
    data: bytes = field(default=b"", repr=False)
    """The bytes; empty on the server, where they are only in the job's video file."""
    video: int = 1
    """Which of several videos; one comes after the other."""

    def __str__(self) -> str:
        return f"video bytes {self.offset} to {self.offset + self.size}"


@dataclass(frozen=True, slots=True)
class OtherVideo:
    """One of several videos of a job, after the first."""

    seed: int
    bytes: int
    """Of the file."""
    sha256: str
    """Of the file, 64 hexadecimal digits."""


@dataclass(frozen=True, slots=True)
class Done(Event):
    """The job succeeded; its last event. Of several videos these are the facts of the first."""

    kind: ClassVar[str] = "done"
    frames: int
    fps: float
    """Frames per second."""
    size: tuple[int, int]
    """(width, height)."""
    bytes: int
    """Of the video file."""
    sha256: str
    """Of the video file, 64 hexadecimal digits."""
    seconds: dict[str, float] = field(hash=False)
    """By stage: pose, encode, denoise, decode, and write for making the MP4."""
    held: int = 0
    """Frames in which the driving person was not seen: they hold the last pose."""
    note: str = ""
    """What the bundle says of itself (that it knows drawn people only, for instance), and what was lost of the
    motion's sound, and why; empty if there is nothing to say."""
    facts: Facts | None = None
    """How it was made; None from a server that does not say so."""
    others: tuple[OtherVideo, ...] = ()
    """The videos after the first, which are like it but for the seed."""

    @property
    def total_bytes(self) -> int:
        """Of all video files."""
        return self.bytes + sum(other.bytes for other in self.others)

    def each(self) -> list[Done]:
        """The facts of each of the videos, as if it were the only one."""
        first = replace(self, others=())
        if self.facts is None:
            return [first]
        facts, found = self.facts, [first]
        for other in self.others:
            own = facts.of_seed(other.seed)
            found.append(replace(first, bytes=other.bytes, sha256=other.sha256, facts=own))
        return found

    def __str__(self) -> str:
        held = f" ({self.held} of them hold a pose)" if self.held else ""
        frames, seconds = counted(self.frames, "frame"), sum(self.seconds.values())
        return f"done: {frames}{held}, {self.bytes:,} bytes, {seconds:.2f} s"


@dataclass(frozen=True, slots=True)
class Failed(Event):
    """The job failed or was cancelled; its last event."""

    kind: ClassVar[str] = "failed"
    error: MimicMotionError

    def __str__(self) -> str:
        return f"failed: {self.error}"


def joined_notes(*notes: str) -> str:
    """Notes one after another; empty ones are left out."""
    return "; ".join(filter(None, notes))
