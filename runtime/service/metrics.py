"""Prometheus metrics on a port of their own. Counters and histograms grow with events, gauges are read on demand."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from ..errors import LimitError, MimicMotionError, ServiceError
from ..events import Event, Progress
from ..validation import field_docs
from .engine_process import EngineProcess
from .jobs import StoredJob
from .observers import Observer
from .status import EngineLost, Refused, Unauthorized, reason
from .tokens import Caller

SECONDS = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1800)
ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
SCRAPE_SECONDS = 5.0
"""The event loop has so long to answer a scrape; one that hangs makes the scrape fail."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a server is doing now; each field is a gauge with its docstring as help."""

    ready: int
    """1 while the server takes jobs."""
    engines_warm: int
    """Engine processes that can run a job."""
    uploads: int
    """Jobs that are being uploaded."""
    queue_jobs: int
    """Jobs that wait for an engine."""
    queue_seconds: float
    """Predicted seconds until a job that came now would start; NaN before anything was measured."""
    jobs_running: int
    """Jobs in engines."""
    jobs_stored: int
    """Jobs that the server knows."""
    stored_bytes: int
    """Bytes of the videos that it keeps."""


class Metrics(Observer):
    """All metrics of one server, in a registry of their own; `look` reads the gauges on the event loop."""

    def __init__(self, look: Callable[[], Snapshot]) -> None:
        self.registry = CollectorRegistry()
        self._http: WSGIServer | None = None
        self._stage_began: dict[str, float] = {}  # by running job: when the newest step or stage ended

        def counter(name: str, help: str, *labels: str) -> Counter:
            return Counter(f"mimicmotion_{name}", help, labels, registry=self.registry)

        def histogram(name: str, help: str, *labels: str, buckets: Any = SECONDS) -> Histogram:
            return Histogram(f"mimicmotion_{name}", help, labels, registry=self.registry, buckets=buckets)

        self._requests = counter("requests", "Calls that ended, by their status.", "method", "code")
        self._request_seconds = histogram("request_seconds", "How long calls took.", "method")
        self._refusals = counter("refusals", "Calls that were sent away.", "reason")
        self._jobs = counter(
            "jobs", "Jobs that ended; `reason` is empty where they succeeded.", "state", "reason"
        )
        self._wait = histogram("wait_seconds", "From a job's creation to its start, its upload included.")
        self._run = histogram("run_seconds", "From a job's start to its end.")
        self._stages = histogram("stage_seconds", "What finished jobs spent in each stage.", "stage")
        self._steps = histogram("step_seconds", "One denoising step.")
        self._rows = histogram("batch_rows", "Rows in the largest batch of a denoising step.", buckets=ROWS)
        self._frames = counter("frames", "Frames of finished videos.")
        self._restarts = counter("engine_restarts", "Engine processes that ended unasked.", "device")
        self.registry.register(_Gauges(look, asyncio.get_running_loop()))
        self.registry.register(_Gpus())
        ProcessCollector(registry=self.registry)

    def open(self, host: str, port: int) -> int:
        """Serve them; returns the port. Raises `ServiceError` if it cannot be bound."""
        try:
            self._http, _ = start_http_server(port, host, self.registry)
        except OSError as error:
            raise ServiceError(
                f"{host}:{port} cannot be bound for metrics: {error.strerror or error}.",
                remedy="Choose another --metrics-port.",
                field="metrics_port",
            ) from error
        return int(self._http.server_port)

    def close(self) -> None:
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        self._requests.labels(method, code).inc()
        self._request_seconds.labels(method).observe(seconds)

    def call_failed(self, method: str, who: Caller, error: MimicMotionError) -> None:
        if isinstance(error, Refused | Unauthorized | LimitError) and not isinstance(error, EngineLost):
            self._refusals.labels(reason(type(error))).inc()

    def happened(self, job: StoredJob, event: Event) -> None:
        if not isinstance(event, Progress):
            return
        step_ended = event.stage == "denoise" and event.segment == event.segments
        if step_ended:
            began = self._stage_began.get(job.id, 0.0)
            self._steps.observe(
                event.seconds - (began if began <= event.seconds else 0.0)
            )  # or it runs again
            if event.rows:
                self._rows.observe(event.rows)
        if step_ended or event.stage != "denoise":
            self._stage_began[job.id] = event.seconds

    def ended(self, job: StoredJob) -> None:
        self._stage_began.pop(job.id, None)
        self._jobs.labels(job.state, reason(type(job.error)) if job.error is not None else "").inc()
        if job.started is not None and job.ended is not None:
            self._wait.observe(max(0.0, job.started - job.created))
            self._run.observe(max(0.0, job.ended - job.started))
        if job.done is not None:
            self._frames.inc(job.done.frames)
            for stage, seconds in job.done.seconds.items():
                self._stages.labels(stage).observe(seconds)

    def engine_lost(self, engine: EngineProcess, exit_code: int | None) -> None:
        self._restarts.labels(engine.config.device).inc()


class _Gauges(Collector):
    """Read on the event loop, as nothing there may be looked at from another thread."""

    def __init__(self, look: Callable[[], Snapshot], loop: asyncio.AbstractEventLoop) -> None:
        self._look, self._loop, self._help = look, loop, field_docs(Snapshot)

    async def _read(self) -> Snapshot:
        return self._look()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        now = asyncio.run_coroutine_threadsafe(self._read(), self._loop).result(SCRAPE_SECONDS)
        for name, help in self._help.items():
            yield GaugeMetricFamily(f"mimicmotion_{name}", help, value=getattr(now, name))
        build = GaugeMetricFamily("mimicmotion_build_info", "The package's version.", labels=["version"])
        build.add_metric([version("mimicmotion-trt")], 1)
        yield build


class _Gpus(Collector):
    """What NVML says, where there is a GPU and nvidia-ml-py is installed."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        try:
            nvml = importlib.import_module("pynvml")
            nvml.nvmlInit()
        except Exception:  # not installed, or no driver: then there is nothing to tell
            return
        labels = ["gpu", "name"]
        used = GaugeMetricFamily("mimicmotion_gpu_memory_used_bytes", "By all programs.", labels=labels)
        total = GaugeMetricFamily("mimicmotion_gpu_memory_total_bytes", "Of the GPU.", labels=labels)
        busy = GaugeMetricFamily("mimicmotion_gpu_use_ratio", "Of the time, 0 to 1.", labels=labels)
        try:
            for index in range(nvml.nvmlDeviceGetCount()):
                gpu = nvml.nvmlDeviceGetHandleByIndex(index)
                names = [str(index), str(nvml.nvmlDeviceGetName(gpu))]
                memory = nvml.nvmlDeviceGetMemoryInfo(gpu)
                used.add_metric(names, memory.used)
                total.add_metric(names, memory.total)
                busy.add_metric(names, nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100)
        except nvml.NVMLError:  # a GPU that does not tell everything: what there is so far
            pass
        finally:
            nvml.nvmlShutdown()
        yield from (used, total, busy)
