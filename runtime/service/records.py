"""Jobs, events and errors as what the database holds, and back."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from sqlite3 import Row
from typing import Any

from ..errors import MimicMotionError, ServiceError
from ..events import Accepted, Done, Event, OtherVideo, Started, Video
from ..facts import Facts
from ..settings import Settings
from . import status
from .eventlog import EventLog
from .jobs import DURABLE, StoredJob, WriteJob
from .status import Refused

_RECORDED = (
    "motion_kind",
    "has_reference_pose",
    "motion_bytes",
    "priority",
    "deadline",
    "started",
    "frames",
    "cancel_asked",
    "detached",
    "deaths",
    "crashes",
    "ran",
)
"""Fields of a job that are recorded as they are."""
EVENTS = {kind.kind: kind for kind in (Accepted, *DURABLE)}


class Damaged(ValueError):  # noqa: N818 - read as what happened
    """A record is not what was written."""


def seal(values: dict[str, Any]) -> str:
    """A record: JSON behind its CRC-32."""
    text = json.dumps(values, separators=(",", ":"))
    return f"{zlib.crc32(text.encode()):08x} {text}"


def unseal(record: str) -> dict[str, Any]:
    """Raises `Damaged`."""
    crc, _, text = record.partition(" ")
    if f"{zlib.crc32(text.encode()):08x}" != crc:
        raise Damaged(f"a record of {len(record)} characters is damaged")
    values: dict[str, Any] = json.loads(text)
    return values


def event_to_record(event: Event) -> str:
    """Of an event that is `DURABLE`."""
    values = {name: value for name, value in asdict(event).items() if name not in ("data", "sequence")}
    return seal({"kind": event.kind, **values})


def event_from_record(sequence: int, record: str) -> Event:
    """Raises `Damaged`."""
    values = unseal(record)
    kind = EVENTS[values.pop("kind")]
    if kind is Accepted:
        values["settings"] = Settings.from_dict(values["settings"])
    if kind is Done:
        return done_from_values(values | {"sequence": sequence})
    if kind is Started:
        values["size"] = tuple(values["size"])
    return kind(**values, sequence=sequence)


def done_from_values(values: dict[str, Any]) -> Done:
    """The event whose `asdict` this is."""
    facts = values.get("facts")
    others = tuple(OtherVideo(**other) for other in values.get("others", ()))
    made = {"size": tuple(values["size"]), "facts": None if facts is None else Facts.from_dict(facts)}
    return Done(**values | made | {"others": others})


def error_to_values(error: MimicMotionError) -> dict[str, Any]:
    """Plain values of an error."""
    values = {"reason": status.reason(type(error)), **status.texts_of(error)}
    return values | ({"retry_after": error.retry_after} if isinstance(error, Refused) else {})


def error_from_values(values: dict[str, Any]) -> MimicMotionError:
    """The error, of the same class; one of another version's class is a `ServiceError`."""
    kind = status.KINDS.get(values["reason"], ServiceError)
    error = kind(values["message"], remedy=values["remedy"], field=values["field"])
    if isinstance(error, Refused):
        error.retry_after = values.get("retry_after", error.retry_after)
    return error


# ---- rows ----


def job_to_row(job: StoredJob) -> dict[str, Any]:
    """What the table `jobs` holds of a job."""
    record: dict[str, Any] = {name: getattr(job, name) for name in _RECORDED}
    record |= {"fingerprint": job.fingerprint.hex(), "settings": job.settings.to_dict()}
    state, ended, size, numbered = job.state, None, 0, job.numbered
    if job.outcome is not None:
        outcome, ended = job.outcome
        state, numbered = job.state_after(outcome), job.log.numbered
        if isinstance(outcome, Done):
            size, record["done"] = outcome.total_bytes, asdict(outcome)
        else:
            record["error"] = error_to_values(outcome)
    return {
        "number": job.number,
        "id": job.id,
        "client": job.client,
        "request_id": job.request_id,
        "state": state,
        "created": job.created,
        "ended": ended,
        "bytes": size,
        "numbered": numbered,
        "record": seal(record),
    }


def event_rows(job: StoredJob, event: Event | None) -> list[tuple[str, int, str]]:
    """What the table `events` gets of an event, if there is one."""
    return [] if event is None else [(job.id, event.sequence, event_to_record(event))]


def job_from_row(row: Row, events: Sequence[Row], folder: Path, write: WriteJob) -> StoredJob:
    """The job of a row of `jobs` and of its rows of `events`. One whose record is damaged has failed for that."""
    told: list[Event] = []
    try:
        record = unseal(row["record"])
        settings = Settings.from_dict(record["settings"])
        told += [event_from_record(one["sequence"], one["event"]) for one in events]
    except (Damaged, KeyError, TypeError, MimicMotionError) as error:
        damage = ServiceError(f"The job's record is damaged: {error}.", remedy="Send the job again.")
        record, settings = {"error": error_to_values(damage)}, Settings()
    job = StoredJob(
        folder, row["request_id"], bytes.fromhex(record.get("fingerprint", "")), "video", False, settings,
        row["created"], row["client"], number=row["number"], state=row["state"], ended=row["ended"],
        log=EventLog(told, row["numbered"]), numbered=row["numbered"], write=write,
    )  # fmt: skip
    for name in _RECORDED:
        setattr(job, name, record.get(name, getattr(job, name)))
    job.told = [replace(event, sequence=0) for event in told if isinstance(event, Video)]
    job.started_told = any(isinstance(event, Started) for event in told)
    if (done := record.get("done")) is not None:
        job.done = done_from_values(done)
    if (fault := record.get("error")) is not None:
        job.error = error_from_values(fault)
    if job.ended is not None:
        job.outcome = (job.done or job.error or ServiceError("It is not known how the job ended."), job.ended)
        job.log.close()
    return job
