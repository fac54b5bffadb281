"""The server: engines, scheduler, store and gRPC put together, started and stopped in the right order."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from ..errors import ServiceError
from ..events import CHUNK_BYTES
from .config import ServiceConfig, Tls, read_pem
from .generated.mimicmotion.v1 import animation_pb2 as pb
from .generated.mimicmotion.v1 import animation_pb2_grpc as pb_grpc
from .jobs import JobStore, StoredJob
from .scheduler import Scheduler
from .servicer import AnimationServicer
from .status import reason

SERVICE: str = pb.DESCRIPTOR.services_by_name["AnimationService"].full_name
SWEEP_SECONDS = 30.0
"""Between two searches for jobs that are older than `Keep.seconds`."""
CANCEL_SECONDS = 5.0
"""A cancelled job has so long to stop before its process is killed."""
CHANNEL_OPTIONS = [
    # Twice a chunk: gRPC lets a chunk that is too large through, and our own check explains the error.
    ("grpc.max_receive_message_length", 2 * CHUNK_BYTES + 65536),
    ("grpc.max_send_message_length", 2 * CHUNK_BYTES + 65536),
    # A stream may be silent for minutes. Ping callers that went away unseen; let callers ping us every 5 s.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.so_reuseport", 0),  # two servers on one port would each get some of the calls
]


class AnimationServer:
    """An embeddable server; it touches no signal handlers. Start and stop it on one event loop.

        async with AnimationServer(ServiceConfig(port=0)) as server:   # entered when an engine is warm
            print(server.port)

    `on_ready(port)` is called on the loop when the first engine is warm for the first time. Engines are
    spawned processes, so a program that embeds this needs the usual `if __name__ == "__main__":` guard.
    """

    def __init__(
        self, config: ServiceConfig | None = None, *, on_ready: Callable[[int], None] | None = None
    ) -> None:
        self.config = config or ServiceConfig()
        self.port = 0
        """The bound port, known after `start`."""
        self.logger = make_logger(self.config.json_logs)
        self._on_ready = on_ready
        self._health = health.aio.HealthServicer()
        self.over = asyncio.Event()
        """Set when no engine can run any more: time to stop."""
        self._decided = asyncio.Event()  # an engine is warm, or all have been given up
        self._jobs_ended = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Spawn the engines, then open the port. Calls are answered at once, jobs taken from `ready` on.

        Raises `ServiceError` if the port cannot be bound.
        """
        config = self.config
        folder = Path(tempfile.mkdtemp(prefix="mimicmotion-", dir=config.folder))
        self.store = JobStore(folder, config.keep)
        self.scheduler = Scheduler(
            config.engines(),
            config.max_queue,
            max_queue_seconds=config.max_queue_seconds,
            on_end=self._job_ended,
            on_change=self._changed,
            patience=config.engine_patience,
        )
        for engine in self.scheduler.engines:  # before gRPC has threads and sockets of its own
            await engine.start()
        try:
            await self._open()
        except BaseException:
            await self._close_engines()
            raise
        self._spawn(self._sweep())
        self._spawn(self._announce())

    async def ready(self) -> None:
        """Wait until an engine is warm; raises what keeps all of them from it, such as `BundleError`."""
        await self._decided.wait()
        if self.scheduler.failure is not None:
            raise self.scheduler.failure

    async def stop(self, grace: float | None = None) -> None:
        """Drain: report NOT_SERVING, give waiting jobs back, let running ones finish for `grace` seconds
        (0: not at all; None: the config's), cancel the rest, deliver what is still read, end everything."""
        loop = asyncio.get_running_loop()
        until = loop.time() + (self.config.grace if grace is None else grace)
        await self._health.enter_graceful_shutdown()
        self.scheduler.drain()
        await self._wait_for_jobs(until - loop.time())
        self.scheduler.cancel_all()
        await self._wait_for_jobs(CANCEL_SECONDS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                for job in self.store.all():
                    await job.unread.wait()
        await self._server.stop(0.5)  # not `until`: watchers of the health never leave by themselves
        for task in self._tasks:
            task.cancel()
        await self._close_engines()
        if self.config.ready_file is not None:
            self.config.ready_file.unlink(missing_ok=True)

    async def __aenter__(self) -> AnimationServer:
        await self.start()
        try:
            await self.ready()
        except BaseException:
            await self.stop(0)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    # ---- inside ----

    async def _open(self) -> None:
        config = self.config
        self._server = grpc.aio.server(options=CHANNEL_OPTIONS, maximum_concurrent_rpcs=config.max_calls)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        servicer = AnimationServicer(config, self.store, self.scheduler, self.logger)
        pb_grpc.add_AnimationServiceServicer_to_server(servicer, self._server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        await self._set_health()
        self.port = _bind(self._server, config.host, config.port, config.tls)
        await self._server.start()

    async def _set_health(self) -> None:
        states = health_pb2.HealthCheckResponse
        for name in ("", SERVICE):
            await self._health.set(name, states.SERVING if self.scheduler.warm else states.NOT_SERVING)

    def _changed(self) -> None:
        """An engine became warm, was lost, or was given up."""
        self._spawn(self._set_health())
        if self.scheduler.warm:
            self._decided.set()
        if self.scheduler.failure is not None:
            self._decided.set()
            self.over.set()

    async def _announce(self) -> None:
        await self._decided.wait()
        engine = next((engine.ready for engine in self.scheduler.engines if engine.ready is not None), None)
        if engine is None:
            return
        address = f"{self.config.host}:{self.port}"
        self.logger.info("ready", address=address, bundle=engine.bundle_name, note=engine.note)
        if self.config.ready_file is not None:
            await asyncio.to_thread(self.config.ready_file.write_text, address)
        if self._on_ready is not None:
            self._on_ready(self.port)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _job_ended(self, job: StoredJob) -> None:
        log_job(self.logger, job)
        self.store.sweep()
        self._jobs_ended.set()

    async def _wait_for_jobs(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                while self.scheduler.busy:
                    self._jobs_ended.clear()
                    await self._jobs_ended.wait()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self.store.sweep()

    async def _close_engines(self) -> None:
        await asyncio.gather(*(engine.stop() for engine in self.scheduler.engines))
        await asyncio.to_thread(shutil.rmtree, self.store.folder, True)


def serve(config: ServiceConfig | None = None, *, on_ready: Callable[[int], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends the process at once.

    Prints the bound address. Raises `ServiceError` if the port cannot be bound, and `BundleError` or
    `EngineError` when no engine can run.
    """
    asyncio.run(_serve(config or ServiceConfig(), on_ready))


async def _serve(config: ServiceConfig, on_ready: Callable[[int], None] | None) -> None:
    server = AnimationServer(config, on_ready=on_ready)
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, server.over.set)
    try:
        await server.start()
        print(f"mimicmotion.v1 listens on {config.host}:{server.port}", flush=True)
        await server.over.wait()
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
    failure = server.scheduler.failure
    await server.stop(0 if failure is not None else None)
    if failure is not None:
        raise failure


def _bind(server: grpc.aio.Server, host: str, port: int, tls: Tls | None) -> int:
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if tls is None:
            return server.add_insecure_port(address)
        key, certificate, client_ca = read_pem(tls.key, tls.certificate, tls.client_ca)
        credentials = grpc.ssl_server_credentials([(key, certificate)], client_ca, client_ca is not None)
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise ServiceError(
            f"{address} cannot be bound: {error}.", remedy="Choose another port or host.", field="port"
        ) from error


def make_logger(as_json: bool) -> Any:
    """A structlog logger that needs no global configuration, so that an embedding program keeps its own."""
    steps: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=False),
    ]
    return structlog.wrap_logger(structlog.PrintLogger(sys.stderr), processors=steps)


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
        facts |= {"reason": reason(type(job.error)), "error": str(job.error)}
    logger.info("job", **facts)
