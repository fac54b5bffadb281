"""Events, jobs and settings as the schema's messages, and back; the only module that knows both forms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from google.protobuf.timestamp_pb2 import Timestamp

from ..errors import MimicMotionError, ServiceError, SettingsError
from ..events import Accepted, Done, Event, OtherVideo, Preview, Progress, Queued, Started, Video
from ..facts import Facts
from ..settings import Settings
from . import status
from .generated.mimicmotion.v1 import animation_pb2 as pb

PARTS = ("picture", "motion", "reference_pose")
"""The files of an upload, in their order."""
MotionKind = Literal["video", "keypoints", "pose_pictures", "pose_video", "person_video"]
MOTION_KINDS: dict[int, MotionKind] = {
    pb.MOTION_KIND_VIDEO: "video",
    pb.MOTION_KIND_KEYPOINTS: "keypoints",
    pb.MOTION_KIND_POSE_PICTURES: "pose_pictures",
    pb.MOTION_KIND_POSE_VIDEO: "pose_video",
    pb.MOTION_KIND_PERSON_VIDEO: "person_video",
}
PAIRS = {"guidance": ("first", "last"), "size": ("width", "height"), "guidance_interval": ("low", "high")}
"""Settings that are pairs, and what their messages call the two."""

SettingsLike = Settings | Mapping[str, Any] | None
"""A mapping sets only what it names; all else is the bundle's default."""
State = Literal["receiving", "queued", "running", "succeeded", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class JobInfo:
    """A job as the server reports it; times are seconds since 1970, None before it started or ended."""

    job: str
    request_id: str
    state: State
    settings: Settings
    last_sequence: int
    """Of the newest event; 0 before the first."""
    created: float
    started: float | None
    ended: float | None
    progress: Progress | None
    """The newest report, while it runs."""
    done: Done | None
    """Set when it succeeded."""
    error: MimicMotionError | None
    """Set when it failed or was cancelled."""
    cancel_pending: bool = False
    """It was asked to stop and has not stopped yet."""
    priority: int = 0
    """-9 to 9; higher ones go first."""
    deadline: float | None = None
    """By when the video has to be finished; None: at any time."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a job would cost; None where the server cannot tell yet."""

    frames: int
    """Of the finished video."""
    segments: int | None
    """Computed in each step."""
    seconds: float | None
    """From start to end."""
    queue_seconds: float | None
    """Until it would start."""
    measured_jobs: int
    """Finished jobs behind the prediction."""


# ---- settings ----


def settings_to_wire(settings: SettingsLike) -> pb.AnimationSettings:
    """Settings as a message; None stays unset. Raises `SettingsError` for a mapping that makes no settings."""
    if isinstance(settings, Settings):
        plain = settings.to_dict()
    else:
        given = {} if settings is None else settings
        checked = Settings.from_dict(given).to_dict()
        plain = {name: checked[name] for name in given}
    message = pb.AnimationSettings()
    for name, value in plain.items():
        if value is None:
            continue
        field = pb.AnimationSettings.DESCRIPTOR.fields_by_name[name]
        if name in PAIRS:
            for part, number in zip(PAIRS[name], value, strict=True):
                setattr(getattr(message, name), part, number)
        elif isinstance(value, tuple):
            getattr(message, name).extend(_enum_number(field, one) for one in value)
        else:
            setattr(message, name, _enum_number(field, value))
    return message


def overrides_from_wire(message: pb.AnimationSettings) -> dict[str, Any]:
    """The settings that are set, as plain values; `SettingsError` for an enum value of a newer schema."""
    values: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.name in PAIRS:
            first, second = PAIRS[field.name]
            values[field.name] = (getattr(value, first), getattr(value, second))
        elif field.is_repeated:
            values[field.name] = tuple(_enum_name(field, one) for one in value)
        elif field.enum_type is None or value != 0:
            values[field.name] = _enum_name(field, value)
    return values


def resolve(defaults: Settings, overrides: dict[str, Any]) -> Settings:
    """The bundle's `defaults` with `overrides`; `SettingsError` names the field at fault."""
    return Settings.from_dict({**defaults.to_dict(), **overrides})


def settings_from_wire(message: pb.AnimationSettings) -> Settings:
    return Settings.from_dict(overrides_from_wire(message))


def _enum_number(field: Any, value: Any) -> Any:
    """The number of a choice; values of other fields as they are."""
    if field.enum_type is None:
        return value
    return field.enum_type.values_by_name[f"{field.name}_{value}".upper().replace("-", "_")].number


def _enum_name(field: Any, value: Any) -> Any:
    """The choice of a number; values of other fields as they are."""
    if field.enum_type is None:
        return value
    known = field.enum_type.values_by_number.get(value)
    if known is None:
        raise SettingsError(
            f"{field.name} has the unknown enum value {value}.",
            remedy="Use a value of the server's schema.",
            field=f"settings.{field.name}",
        )
    return str(known.name).removeprefix(f"{field.name}_".upper()).lower().replace("_", "-")


# ---- events ----


def event_to_wire(event: Event) -> pb.AnimationEvent:
    """An event of a job's log; a `Video` must have its `data`. `Failed` has no message: it ends the call."""
    return pb.AnimationEvent(sequence=event.sequence, **{event.kind: _event_to_wire(event)})


def _event_to_wire(event: Event | None) -> Any:
    match event:
        case Accepted():
            settings = settings_to_wire(event.settings)
            return pb.AcceptedEvent(job=event.job, settings=settings, frames=event.frames or None)
        case Queued():
            return pb.QueuedEvent(position=event.position, eta_seconds=event.eta)
        case Started():
            size = pb.Size(width=event.size[0], height=event.size[1])
            return pb.StartedEvent(frames=event.frames or None, fps=event.fps, size=size)
        case Progress():
            return pb.ProgressEvent(
                stage=pb.Stage.Value(f"STAGE_{event.stage.upper()}"),
                step=event.step,
                steps=event.steps,
                segment=event.segment,
                segments=event.segments,
                elapsed_seconds=event.seconds,
                held=event.held,
                video=event.video,
            )
        case Preview():
            return pb.PreviewEvent(jpeg=event.jpeg, step=event.step, steps=event.steps)
        case Video():
            return pb.VideoEvent(offset=event.offset, data=event.data, crc32=event.crc32, video=event.video)
        case Done():
            return pb.DoneEvent(
                frames=event.frames,
                fps=event.fps,
                size=pb.Size(width=event.size[0], height=event.size[1]),
                bytes=event.bytes,
                sha256=event.sha256,
                seconds=event.seconds,
                held=event.held,
                note=event.note,
                others=[pb.OtherVideo(**asdict(other)) for other in event.others],
                **_facts_to_wire(event.facts),
            )
    return None


def _facts_to_wire(facts: Facts | None) -> dict[str, Any]:
    """Fields of a `DoneEvent`."""
    if facts is None:
        return {}
    people = pb.People(picture=facts.people_in_picture, motion=facts.people_in_motion)
    plain = {name: getattr(facts, name) for name in ("bundle", "build", "version", "device")}
    return {**plain, "settings": settings_to_wire(facts.settings), "people": people}


def _facts_from_wire(m: pb.DoneEvent) -> Facts | None:
    """None from a server of an older schema."""
    if not m.HasField("settings"):
        return None
    people = _optional(m.people, "picture"), _optional(m.people, "motion")
    return Facts(settings_from_wire(m.settings), m.bundle, m.build, m.version, m.device, *people, m.held)


def event_from_wire(message: pb.AnimationEvent) -> Event | None:
    """None for an event of a newer schema."""
    kind = message.WhichOneof("kind")
    return None if kind is None else _event_from_wire(message, kind, message.sequence)


def _event_from_wire(parent: Any, name: str, number: int) -> Any:
    """The event in the field `name` of `parent`; None if it is not set."""
    if not parent.HasField(name):
        return None
    m = getattr(parent, name)
    match name:
        case "accepted":
            return Accepted(m.job, settings_from_wire(m.settings), m.frames, sequence=number)
        case "queued":
            return Queued(m.position, _optional(m, "eta_seconds"), sequence=number)
        case "started":
            return Started(m.frames, m.fps, (m.size.width, m.size.height), sequence=number)
        case "progress":
            stage: Any = pb.Stage.Name(m.stage).removeprefix("STAGE_").lower()
            done = (m.step, m.steps, m.segment, m.segments)
            return Progress(stage, *done, m.elapsed_seconds, m.held, video=m.video or 1, sequence=number)
        case "preview":
            return Preview(m.jpeg, m.step, m.steps, sequence=number)
        case "video":
            return Video(m.offset, len(m.data), m.crc32, m.data, m.video or 1, sequence=number)
        case "done":
            size = m.size.width, m.size.height
            values = (m.frames, m.fps, size, m.bytes, m.sha256, dict(m.seconds), m.held, m.note)
            others = tuple(OtherVideo(other.seed, other.bytes, other.sha256) for other in m.others)
            return Done(*values, _facts_from_wire(m), others, sequence=number)
    return None


# ---- jobs ----


def info_to_wire(info: JobInfo) -> pb.Animation:
    return pb.Animation(
        job=info.job,
        request_id=info.request_id,
        state=pb.AnimationState.Value(f"ANIMATION_STATE_{info.state.upper()}"),
        settings=settings_to_wire(info.settings),
        last_sequence=info.last_sequence,
        create_time=_time_to_wire(info.created),
        start_time=_time_to_wire(info.started),
        end_time=_time_to_wire(info.ended),
        progress=_event_to_wire(info.progress),
        done=_event_to_wire(info.done),
        error=None if info.error is None else _error_to_wire(info.error),
        cancel_pending=info.cancel_pending,
        priority=info.priority,
        deadline_time=_time_to_wire(info.deadline),
    )


def info_from_wire(message: pb.Animation) -> JobInfo:
    number = message.last_sequence
    state: Any = pb.AnimationState.Name(message.state).removeprefix("ANIMATION_STATE_").lower()
    return JobInfo(
        job=message.job,
        request_id=message.request_id,
        state=state,
        settings=settings_from_wire(message.settings),
        last_sequence=number,
        created=message.create_time.ToMilliseconds() / 1000,
        started=_time_from_wire(message, "start_time"),
        ended=_time_from_wire(message, "end_time"),
        progress=_event_from_wire(message, "progress", number),
        done=_event_from_wire(message, "done", number),
        error=_error_from_wire(message.error) if message.HasField("error") else None,
        cancel_pending=message.cancel_pending,
        priority=message.priority,
        deadline=_time_from_wire(message, "deadline_time"),
    )


def _error_to_wire(error: MimicMotionError) -> pb.AnimationError:
    code, reason = status.code(error), status.reason(type(error))
    return pb.AnimationError(code=code, reason=reason, **status.texts_of(error))


def _error_from_wire(message: pb.AnimationError) -> MimicMotionError:
    kind = status.KINDS.get(message.reason, ServiceError)
    return kind(message.message, remedy=message.remedy, field=message.field)


def estimate_to_wire(estimate: Estimate) -> pb.EstimateAnimationResponse:
    return pb.EstimateAnimationResponse(**asdict(estimate))


def estimate_from_wire(message: pb.EstimateAnimationResponse) -> Estimate:
    return Estimate(
        frames=message.frames,
        segments=_optional(message, "segments"),
        seconds=_optional(message, "seconds"),
        queue_seconds=_optional(message, "queue_seconds"),
        measured_jobs=message.measured_jobs,
    )


def _time_to_wire(seconds: float | None) -> Timestamp | None:
    if seconds is None:
        return None
    time = Timestamp()
    time.FromMilliseconds(round(seconds * 1000))
    return time


def _time_from_wire(message: Any, name: str) -> float | None:
    time = _optional(message, name)
    return None if time is None else float(time.ToMilliseconds()) / 1000


def _optional(message: Any, name: str) -> Any:
    """A field that may be unset, as None then."""
    return getattr(message, name) if message.HasField(name) else None
