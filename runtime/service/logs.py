"""One structured line per job, for people or as JSON, on standard error."""

from __future__ import annotations

import sys
from typing import Any

import structlog

from . import status
from .jobs import StoredJob


def make_logger(as_json: bool) -> Any:
    """A structlog logger that needs no global configuration, so that an embedding program keeps its own."""
    style: Any = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=False)
    )
    processors = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        style,
    ]
    return structlog.wrap_logger(structlog.PrintLogger(sys.stderr), processors=processors)


def log_job(logger: Any, job: StoredJob) -> None:
    """Say how a job ended."""
    facts: dict[str, Any] = {"job": job.id, "state": job.state}
    if job.request_id:
        facts["request_id"] = job.request_id
    if job.started is not None and job.ended is not None:
        facts["waited"] = round(job.started - job.created, 3)
        facts["ran"] = round(job.ended - job.started, 3)
    if job.done is not None:
        facts |= {"frames": job.done.frames, "size": "{}x{}".format(*job.done.size), "bytes": job.done.bytes}
        facts["seconds"] = {stage: round(seconds, 3) for stage, seconds in job.done.seconds.items()}
    if job.error is not None:
        facts |= {"reason": status.reason(job.error), "error": str(job.error)}
    logger.info("job", **facts)
