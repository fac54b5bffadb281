"""OpenTelemetry traces: a span for each job, with its upload, its wait, its engine and the stages in it.

A job's spans are made when it ends, from the times that are known anyway, so that nothing is carried along and the
engine knows nothing of it. A caller that sends `traceparent` finds the job in its own trace.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from ..errors import ServiceError
from ..events import Event, Progress
from .jobs import StoredJob
from .observers import Observer
from .status import reason
from .tokens import Caller


@dataclass
class _Times:
    """Of one job; seconds since 1970."""

    parent: str
    accepted: float
    stages: dict[str, tuple[float, float]] = field(default_factory=dict)
    newest: float | None = None


class Traces(Observer):
    """Sends the spans of jobs to a collector, in the background and without ever delaying a job."""

    def __init__(self, endpoint: str, clock: Any) -> None:
        """Raises `ServiceError` if OpenTelemetry is not installed."""
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise ServiceError(
                f"traces need OpenTelemetry: {error}.",
                remedy="Install it: pip install 'mimicmotion-trt[otel]'.",
                field="traces",
            ) from error
        service = {"service.name": "mimicmotion", "service.version": version("mimicmotion-trt")}
        self._provider = TracerProvider(resource=Resource.create(service), shutdown_on_exit=False)
        exporter = OTLPSpanExporter(
            endpoint=endpoint, insecure=not endpoint.startswith("https://"), timeout=5
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("mimicmotion_trt.service")
        self._clock = clock
        self._jobs: dict[str, _Times] = {}

    def accepted(self, job: StoredJob, who: Caller) -> None:
        self._jobs[job.id] = _Times(who.traceparent, self._clock())

    def happened(self, job: StoredJob, event: Event) -> None:
        if not isinstance(event, Progress):
            return
        times = self._jobs.setdefault(job.id, _Times("", job.created))  # accepted by a server before this one
        now = self._clock()
        began, _ = times.stages.get(event.stage, (times.newest or job.started or now, 0.0))
        times.stages[event.stage] = (began, now)
        times.newest = now

    def ended(self, job: StoredJob) -> None:
        times = self._jobs.pop(job.id, None) or _Times("", job.created)
        if job.ended is None:
            return
        from opentelemetry.trace import Status, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        names = {"mimicmotion.job": job.id, "mimicmotion.request_id": job.request_id}
        names |= {"mimicmotion.client": job.client, "mimicmotion.state": job.state}
        parent = TraceContextTextMapPropagator().extract({"traceparent": times.parent})

        def span(name: str, within: Any, began: float, ended: float, **attributes: Any) -> Any:
            made = self._tracer.start_span(
                name, within, attributes=attributes, start_time=_nanoseconds(began)
            )
            if name == "animation" and job.error is not None:
                made.set_status(Status(StatusCode.ERROR, reason(type(job.error))))
            made.end(_nanoseconds(max(began, ended)))
            return set_span_in_context(made)

        whole = span("animation", parent, job.created, job.ended, **names)
        span("upload", whole, job.created, times.accepted)
        if job.started is None:
            return
        span("queue", whole, times.accepted, job.started)
        engine = span("engine", whole, job.started, job.ended)
        for stage, (began, ended) in times.stages.items():
            span(stage, engine, began, ended)

    def close(self) -> None:
        self._provider.shutdown()


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
