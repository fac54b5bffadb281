"""What a client tells its user: the wire's messages as small frozen values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..errors import MimicMotionError, ServiceError
from ..events import Stage
from ..settings import Settings
from . import status
from .generated.mimicmotion.v1 import animation_pb2 as pb
from .wire import settings_from_wire


@dataclass(frozen=True, slots=True)
class Accepted:
    sequence: int
    job: str
    settings: Settings
    """With the bundle's defaults filled in."""
    frames: int
    """Of the finished video; 0 where that is not known yet."""

    def __str__(self) -> str:
        return f"accepted as {self.job}"


@dataclass(frozen=True, slots=True)
class Queued:
    sequence: int
    position: int
    """Jobs that start before this one."""
    eta: float | None
    """Predicted seconds until it starts."""

    def __str__(self) -> str:
        return f"queued at {self.position}" + (f", starts in {self.eta:.0f} s" if self.eta else "")


@dataclass(frozen=True, slots=True)
class Started:
    sequence: int
    frames: int
    """Of the finished video; 0 where that is not known yet."""
    fps: float
    size: tuple[int, int]

    def __str__(self) -> str:
        return (
            f"started: {self.frames or '?'} frames of {self.size[0]}x{self.size[1]}, {self.fps:g} per second"
        )


@dataclass(frozen=True, slots=True)
class Progress:
    """Named like `runtime.events.Event`, whose counts it carries."""

    sequence: int
    stage: Stage
    step: int
    steps: int
    segment: int
    segments: int
    seconds: float

    def __str__(self) -> str:
        inner = f", segment {self.segment}/{self.segments}" if self.segments else ""
        return f"[{self.seconds:7.2f} s] {self.stage} {self.step}/{self.steps or '?'}{inner}"


@dataclass(frozen=True, slots=True)
class Preview:
    sequence: int
    jpeg: bytes = field(repr=False)
    step: int
    steps: int

    def __str__(self) -> str:
        return f"preview of step {self.step}/{self.steps}"


@dataclass(frozen=True, slots=True)
class Video:
    """Checked bytes of the video file, for playing it while it arrives."""

    sequence: int
    offset: int
    data: bytes = field(repr=False)

    def __str__(self) -> str:
        return f"video bytes {self.offset} to {self.offset + len(self.data)}"


@dataclass(frozen=True, slots=True)
class Done:
    sequence: int
    frames: int
    fps: float
    size: tuple[int, int]
    bytes: int
    sha256: str
    seconds: dict[str, float]
    """By stage: pose, encode, denoise, decode, write."""

    def __str__(self) -> str:
        return f"done: {self.frames} frames, {self.bytes:,} bytes, {sum(self.seconds.values()):.2f} s"


Reply = Accepted | Queued | Started | Progress | Preview | Video | Done


@dataclass(frozen=True, slots=True)
class JobInfo:
    """A job as the server knows it; times are seconds since 1970, None where it has not come to that."""

    job: str
    request_id: str
    state: str
    """receiving, queued, running, succeeded, failed or cancelled"""
    settings: Settings
    last_sequence: int
    created: float
    started: float | None
    ended: float | None
    progress: Progress | None
    done: Done | None
    error: MimicMotionError | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """None where the server cannot tell yet."""

    frames: int
    segments: int | None
    seconds: float | None
    queue_seconds: float | None
    measured_jobs: int


def reply_from_wire(event: pb.AnimationEvent) -> Reply | None:
    """None for an event of a newer schema."""
    number = event.sequence
    match event.WhichOneof("kind"):
        case "accepted":
            settings = settings_from_wire(event.accepted.settings)
            return Accepted(number, event.accepted.job, settings, event.accepted.frames)
        case "queued":
            return Queued(number, event.queued.position, _optional(event.queued, "eta_seconds"))
        case "started":
            return Started(number, event.started.frames, event.started.fps, _size(event.started.size))
        case "progress":
            return _progress(number, event.progress)
        case "preview":
            return Preview(number, event.preview.jpeg, event.preview.step, event.preview.steps)
        case "video":
            return Video(number, event.video.offset, event.video.data)
        case "done":
            return _done(number, event.done)
    return None


def info_from_wire(animation: pb.Animation) -> JobInfo:
    number = animation.last_sequence
    return JobInfo(
        job=animation.job,
        request_id=animation.request_id,
        state=pb.AnimationState.Name(animation.state).removeprefix("ANIMATION_STATE_").lower(),
        settings=settings_from_wire(animation.settings),
        last_sequence=number,
        created=animation.create_time.ToMilliseconds() / 1000,
        started=_time(animation, "start_time"),
        ended=_time(animation, "end_time"),
        progress=_progress(number, animation.progress) if animation.HasField("progress") else None,
        done=_done(number, animation.done) if animation.HasField("done") else None,
        error=_error(animation.error) if animation.HasField("error") else None,
    )


def estimate_from_wire(answer: pb.EstimateAnimationResponse) -> Estimate:
    return Estimate(
        frames=answer.frames,
        segments=_optional(answer, "segments"),
        seconds=_optional(answer, "seconds"),
        queue_seconds=_optional(answer, "queue_seconds"),
        measured_jobs=answer.measured_jobs,
    )


def _progress(sequence: int, report: pb.ProgressEvent) -> Progress:
    stage: Any = pb.Stage.Name(report.stage).removeprefix("STAGE_").lower()
    return Progress(
        sequence, stage, report.step, report.steps, report.segment, report.segments, report.elapsed_seconds
    )


def _done(sequence: int, done: pb.DoneEvent) -> Done:
    return Done(
        sequence, done.frames, done.fps, _size(done.size), done.bytes, done.sha256, dict(done.seconds)
    )


def _error(error: pb.AnimationError) -> MimicMotionError:
    kind = status.class_of(error.reason) or ServiceError
    return kind(error.message, remedy=error.remedy, field=error.field)


def _size(size: pb.Size) -> tuple[int, int]:
    return size.width, size.height


def _optional(message: Any, name: str) -> Any:
    return getattr(message, name) if message.HasField(name) else None


def _time(animation: pb.Animation, name: str) -> float | None:
    return getattr(animation, name).ToMilliseconds() / 1000 if animation.HasField(name) else None  # type: ignore[arg-type]
