"""Plain values to the schema's messages and back."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from ..errors import SettingsError
from ..settings import Settings
from . import messages as m
from . import status
from .generated.mimicmotion.v1 import animation_pb2 as pb

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from .jobs import Job

MOTION_KINDS: dict[int, m.MotionKind] = {
    pb.MOTION_KIND_VIDEO: "video",
    pb.MOTION_KIND_KEYPOINTS: "keypoints",
    pb.MOTION_KIND_POSE_PICTURES: "pose_pictures",
}
PAIRS = {"guidance": ("first", "last"), "size": ("width", "height"), "guidance_interval": ("low", "high")}
"""Settings that are pairs, and what their messages call the two."""


# ---- settings ----


def settings_to_wire(values: Settings | dict[str, Any]) -> pb.AnimationSettings:
    """Settings, or only some of them, as a message; None stays unset."""
    plain = values.to_dict() if isinstance(values, Settings) else values
    message = pb.AnimationSettings()
    for name, value in plain.items():
        if value is None:
            continue
        field = pb.AnimationSettings.DESCRIPTOR.fields_by_name[name]
        if name in PAIRS:
            for part, number in zip(PAIRS[name], value, strict=True):
                setattr(getattr(message, name), part, number)
        elif field.enum_type is not None:
            known = f"{name}_{value}".upper().replace("-", "_")
            setattr(message, name, field.enum_type.values_by_name[known].number)
        else:
            setattr(message, name, value)
    return message


def overrides_from_wire(message: pb.AnimationSettings) -> dict[str, Any]:
    """The settings that are set, as plain values; `SettingsError` for an enum value of a newer schema."""
    values: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.name in PAIRS:
            first, second = PAIRS[field.name]
            values[field.name] = (getattr(value, first), getattr(value, second))
        elif field.enum_type is not None:
            if value != 0:
                values[field.name] = _enum_name(field, value)
        else:
            values[field.name] = value
    return values


def resolve(defaults: Settings, overrides: dict[str, Any]) -> Settings:
    """The bundle's `defaults` with `overrides`; `SettingsError` names the field at fault."""
    return Settings.from_dict({**{f.name: getattr(defaults, f.name) for f in fields(defaults)}, **overrides})


def settings_from_wire(message: pb.AnimationSettings) -> Settings:
    return Settings.from_dict(overrides_from_wire(message))


def _enum_name(field: Any, value: int) -> str:
    known = field.enum_type.values_by_number.get(value)
    if known is None:
        raise SettingsError(
            f"{field.name} has the unknown enum value {value}.",
            remedy="Use a value of the server's schema.",
            field=f"settings.{field.name}",
        )
    return str(known.name).removeprefix(f"{field.name}_".upper()).lower().replace("_", "-")


# ---- events ----


def event_to_wire(sequence: int, entry: m.Entry, data: bytes = b"") -> pb.AnimationEvent:
    """One log entry as an event; `data` are the bytes that a `Video` entry stands for."""
    event = pb.AnimationEvent(sequence=sequence)
    match entry:
        case m.Accepted(job, settings):
            event.accepted.job = job
            event.accepted.settings.CopyFrom(settings_to_wire(settings))
        case m.Queued(position, eta):
            event.queued.position = position
            if eta is not None:
                event.queued.eta_seconds = eta
        case m.Started(frames, fps, size):
            event.started.CopyFrom(pb.StartedEvent(fps=fps, size=_size(size)))
            if frames:
                event.started.frames = frames
        case m.Progress():
            event.progress.CopyFrom(_progress(entry))
        case m.Preview(jpeg, step, steps):
            event.preview.CopyFrom(pb.PreviewEvent(jpeg=jpeg, step=step, steps=steps))
        case m.Video(offset, _, crc32):
            event.video.CopyFrom(pb.VideoEvent(offset=offset, data=data, crc32=crc32))
        case m.Done():
            event.done.CopyFrom(_done(entry))
    return event


def job_to_wire(job: Job) -> pb.Animation:
    animation = pb.Animation(
        job=job.id,
        request_id=job.request_id,
        state=pb.AnimationState.Value(f"ANIMATION_STATE_{job.state.upper()}"),
        settings=settings_to_wire(job.settings),
        last_sequence=job.log.last_sequence,
    )
    _set_time(animation.create_time, job.created)
    if job.started is not None:
        _set_time(animation.start_time, job.started)
    if job.ended is not None:
        _set_time(animation.end_time, job.ended)
    if job.state == "running" and job.progress is not None:
        animation.progress.CopyFrom(_progress(job.progress))
    if job.done is not None:
        animation.done.CopyFrom(_done(job.done))
    if job.error is not None:
        code, reason = status.code(job.error), status.reason(job.error)
        animation.error.CopyFrom(pb.AnimationError(code=code, reason=reason, **status.texts_of(job.error)))
    return animation


def _progress(report: m.Progress) -> pb.ProgressEvent:
    return pb.ProgressEvent(
        stage=pb.Stage.Value(f"STAGE_{report.stage.upper()}"),
        step=report.step,
        steps=report.steps,
        segment=report.segment,
        segments=report.segments,
        elapsed_seconds=report.seconds,
    )


def _done(report: m.Done) -> pb.DoneEvent:
    return pb.DoneEvent(
        frames=report.frames,
        fps=report.fps,
        size=_size(report.size),
        bytes=report.bytes,
        sha256=report.sha256,
        seconds=report.seconds,
    )


def _size(size: tuple[int, int]) -> pb.Size:
    return pb.Size(width=size[0], height=size[1])


def _set_time(target: Timestamp, seconds: float) -> None:
    target.FromMilliseconds(round(seconds * 1000))
