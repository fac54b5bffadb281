"""The server: engines, scheduler, store and gRPC put together, started and stopped in the right order."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import math
import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from ..errors import ServiceError
from ..events import CHUNK_BYTES
from ..files import write_text
from .config import ServiceConfig
from .gate import Gate
from .generated.mimicmotion.v1 import animation_pb2 as pb
from .generated.mimicmotion.v1 import animation_pb2_grpc as pb_grpc
from .jobs import StoredJob
from .logs import JobLog, LibraryLines, LineWriter, make_logger
from .observers import Observer, Observers
from .scheduler import CANCEL_SECONDS, Scheduler
from .servicer import AnimationServicer
from .store import JobStore
from .tokens import Tokens

if TYPE_CHECKING:
    from .metrics import Metrics, Snapshot

SERVICE: str = pb.DESCRIPTOR.services_by_name["AnimationService"].full_name
SWEEP_SECONDS = 30.0
"""Between two searches for jobs that are older than `Keep.seconds`."""
ASLEEP_SECONDS = 2.0
"""While the server stops, readers that take nothing for so long are not waited for."""
RATES = "rates.json"
"""In the store: how long jobs take, for the predictions of the next server."""
LIVE = "live"
"""The health service's name for whether the process works; the others say whether it takes jobs."""
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
            print(server.address)

    `on_ready(port)` is called on the loop when the first engine is warm for the first time. Engines are
    spawned processes, so a program that embeds this needs the usual `if __name__ == "__main__":` guard.
    """

    def __init__(
        self, config: ServiceConfig | None = None, *, on_ready: Callable[[int], None] | None = None
    ) -> None:
        self.config = config or ServiceConfig()
        self.port = 0
        """The bound port, known after `start`."""
        self.metrics_port = 0
        """The port of the metrics, where they are served."""
        self._log_lines = LineWriter()
        self.logger = make_logger(self.config.json_logs, self._log_lines)
        self._on_ready = on_ready
        self._health = health.aio.HealthServicer()
        self.over = asyncio.Event()
        """Set when no engine can run any more, or when the server itself failed: time to stop."""
        self.fault: BaseException | None = None
        """What ended one of the server's own tasks. Nothing can be relied on then: `live` is NOT_SERVING."""
        self._decided = asyncio.Event()  # an engine is warm, or all have been given up
        self._jobs_ended = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._metrics: Metrics | None = None

    @property
    def address(self) -> str:
        """HOST:PORT, the port known after `start`."""
        return _address(self.config.host, self.port)

    async def start(self) -> None:
        """Spawn the engines, then open the port. Calls are answered at once, jobs taken from `ready` on.

        Raises `BundleError` if there is no such bundle, `ServiceError` if the port cannot be bound, or if a file
        that the config names cannot be used.
        """
        config = self.config
        config.check_bundle()
        self._tokens = Tokens(config.tokens) if config.tokens is not None else None
        credentials = config.tls.credentials() if config.tls is not None else None
        self._observers = self._make_observers()
        try:
            await self._start(credentials)
        except BaseException:
            await asyncio.to_thread(self._observers.close)
            raise

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
        self._stopping = True
        running = [job.id for job in self.store.active() if job.state == "running"]
        self.logger.info("draining", waiting=self.scheduler.queue_length, running=running)
        self.scheduler.drain()
        await self._set_health()
        await self._wait_for_jobs(until - loop.time())
        self.scheduler.cut()
        await self._wait_for_jobs(CANCEL_SECONDS)
        await self._deliver(until)
        await self._server.stop(0.5)  # not `until`: watchers of the health never leave by themselves
        for task in self._tasks:
            task.cancel()
        await self._close_engines()
        if self.config.ready_file is not None:
            with contextlib.suppress(OSError):
                self.config.ready_file.unlink(missing_ok=True)
        await asyncio.to_thread(self._observers.close)
        self.logger.info("stopped")
        await asyncio.to_thread(self._log_lines.close)

    def reload(self) -> None:
        """Read the file of tokens again; one that is wrong is logged and changes nothing."""
        if self._tokens is None:
            return
        try:
            self._tokens.reload()
        except ServiceError as error:
            self.logger.error("tokens not reloaded", error=str(error))
        else:
            self.logger.info("tokens reloaded", tokens=len(self._tokens))

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

    def library_lines(self) -> LibraryLines:
        """A context in which what libraries print on the standard error becomes lines of this server's log."""
        return LibraryLines(self.logger, self._log_lines, plain=not self.config.json_logs)

    def log_fault(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A handler of the loop's exceptions: into the log, which never blocks, and never past it."""
        self.logger.error("unexpected", what=context.get("message", ""), exc_info=context.get("exception"))

    # ---- inside ----

    async def _start(self, credentials: grpc.ServerCredentials | None) -> None:
        config = self.config
        self.store = JobStore.open(config.store, config.folder, config.keep)
        self.scheduler = Scheduler(
            config.engines(),
            config.max_queue,
            max_queue_seconds=config.max_queue_seconds,
            on_end=self._job_ended,
            on_change=self._changed,
            on_event=self._observers.happened,
            on_lost=self._observers.engine_lost,
            clock=self.store.clock,
            patience=config.engine_patience,
            keep_unfinished=self.store.durable,
        )
        for engine in self.scheduler.engines:  # before gRPC has threads and sockets of its own
            await engine.start()
            assert engine.supervisor is not None
            engine.supervisor.add_done_callback(self._task_ended)
        try:
            await self._open(credentials)
        except BaseException:
            await self._close_engines()
            raise
        for job in self.store.unfinished:
            self.scheduler.submit(job)
        self._spawn(self.store.broken())
        self._spawn(self._sweep())
        self._spawn(self._announce())

    def _make_observers(self) -> Observers:
        config = self.config
        observers: list[Observer] = [JobLog(self.logger)]
        if config.metrics_port is not None:
            from .metrics import Metrics  # loaded where it is asked for only

            self._metrics = Metrics(self._look)
            observers.append(self._metrics)
        if config.traces:
            from .traces import Traces

            observers.append(Traces(config.traces, time.time))
        return Observers(*observers)

    def _look(self) -> Snapshot:
        """The gauges of the metrics."""
        from .metrics import Snapshot

        scheduler, (jobs, size) = self.scheduler, self.store.totals()
        wait = scheduler.predict_start("", 0.0)
        return Snapshot(
            ready=int(self._ready),
            engines_warm=sum(engine.warm for engine in scheduler.engines),
            uploads=scheduler.uploads,
            queue_jobs=scheduler.queue_length,
            queue_seconds=math.nan if wait is None else wait,
            jobs_running=sum(job.state == "running" for job in self.store.active()),
            jobs_stored=jobs,
            stored_bytes=size,
        )

    @property
    def _build(self) -> str:
        return next((engine.ready.build for engine in self.scheduler.engines if engine.ready is not None), "")

    @property
    def _ready(self) -> bool:
        return self.scheduler.warm and not self.scheduler.draining and self.fault is None

    async def _open(self, credentials: grpc.ServerCredentials | None) -> None:
        config = self.config
        gate = Gate(config.max_calls, config.calls, self._tokens, self.logger, self._observers)
        self._server = grpc.aio.server(options=CHANNEL_OPTIONS, interceptors=[gate])
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        servicer = AnimationServicer(config, self.store, self.scheduler, self.logger, self._observers)
        pb_grpc.add_AnimationServiceServicer_to_server(servicer, self._server)
        if config.reflection:
            names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)
        await self._set_health()
        self.port = _bind(self._server, config.host, config.port, credentials)
        if self._metrics is not None and config.metrics_port is not None:
            self.metrics_port = self._metrics.open(config.host, config.metrics_port)
        await self._server.start()
        guarded = {"tls": config.tls is not None, "tokens": self._tokens is not None}
        self.logger.info("listening", address=self.address, bundle=str(config.bundle), **guarded)
        if (config.tls is None or self._tokens is None) and not _is_loopback(config.host):
            lacks = [name for name, has in (("TLS", config.tls), ("tokens", self._tokens)) if has is None]
            self.logger.warning("open to the network", host=config.host, without=" and ".join(lacks))

    async def _set_health(self) -> None:
        states = health_pb2.HealthCheckResponse
        for name, good in (("", self._ready), (SERVICE, self._ready), (LIVE, self.fault is None)):
            await self._health.set(name, states.SERVING if good else states.NOT_SERVING)

    def _changed(self) -> None:
        """An engine became warm, was lost, or was given up."""
        self._spawn(self._set_health())
        if self.scheduler.warm:
            if not self._decided.is_set() and self.store.durable:
                self.scheduler.rates.load(self.store.folder / RATES, self._build)
            self._decided.set()
        if self.scheduler.failure is not None:
            self._decided.set()
            self.over.set()

    async def _announce(self) -> None:
        await self._decided.wait()
        engine = next((engine.ready for engine in self.scheduler.engines if engine.ready is not None), None)
        if engine is None:
            return
        self.logger.info("ready", address=self.address, bundle=engine.bundle_name, note=engine.note)
        self.logger.info("next step", command=_animate_command(self.config, self.port))
        if self.config.ready_file is not None:
            await asyncio.to_thread(write_text, self.config.ready_file, self.address)
        if self._on_ready is not None:
            self._on_ready(self.port)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        """One of the server's own tasks, or the supervisor of an engine. If it failed, so has the server."""
        if self._stopping or (not task.cancelled() and task.exception() is None):
            return
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        self.logger.error("the server failed", task=str(task.get_coro()), exc_info=error)
        if self.fault is None:
            self.fault = error
            self._spawn(self._set_health())
            self._decided.set()
            self.over.set()

    def _job_ended(self, job: StoredJob) -> None:
        if job.ended is not None:  # else it is kept for the server's next life
            self._observers.ended(job)
        if job.done is not None and self.store.durable:
            save = self.scheduler.rates.save
            asyncio.get_running_loop().run_in_executor(None, save, self.store.folder / RATES, self._build)
        self.store.sweep()
        self._jobs_ended.set()

    async def _deliver(self, until: float) -> None:
        """Wait for those who still read, as long as one of them takes something."""
        loop = asyncio.get_running_loop()
        taken, moved = -1, loop.time()
        while reading := [job for job in self.store.active() if job.readers]:
            now, total = loop.time(), sum(job.taken for job in reading)
            if total != taken:
                taken, moved = total, now
            if now > until or now - moved > ASLEEP_SECONDS:
                return
            await asyncio.sleep(0.05)

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
        await self.store.close()


def serve(config: ServiceConfig | None = None, *, on_ready: Callable[[int], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends the process at once.

    Prints the bound address. Raises `ServiceError` if the port cannot be bound, and `BundleError` or
    `EngineError` when no engine can run.
    """
    config = config or ServiceConfig()
    server = AnimationServer(config, on_ready=on_ready)
    with server.library_lines():
        asyncio.run(_serve(server))


async def _serve(server: AnimationServer) -> None:
    loop = asyncio.get_running_loop()
    handlers = {signal.SIGTERM: server.over.set, signal.SIGINT: server.over.set, signal.SIGHUP: server.reload}
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    loop.set_exception_handler(server.log_fault)
    try:
        await server.start()
        with contextlib.suppress(OSError):  # nobody has to read it
            os.write(1, f"mimicmotion.v1 listens on {server.address}\n".encode())
        await server.over.wait()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):  # a second one ends the process at once
            loop.remove_signal_handler(number)
    failure = server.scheduler.failure
    if failure is None and server.fault is not None:
        failure = ServiceError("The server failed.", remedy="Its log has the details. Start it again.")
    await server.stop(0 if failure is not None else None)
    if failure is not None:
        raise failure


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _animate_command(config: ServiceConfig, port: int) -> str:
    """What a caller on this machine types; names of files that only the caller knows are in capitals."""
    own = config.host in ("127.0.0.1", "0.0.0.0", "::")  # certificates name the host, not its number
    words = ["mimicmotion-trt animate person.jpg dance.mp4 -o out.mp4"]
    words.append(f"--server {_address('localhost' if own else config.host, port)}")
    if config.tls is not None:
        words.append("--tls-ca CA.pem")
        if config.tls.client_ca is not None:
            words.append("--tls-cert CLIENT.pem --tls-key CLIENT.key")
    if config.tokens is not None:
        words.append("--token-file TOKEN")
    return " ".join(words)


def _bind(server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials | None) -> int:
    address = _address(host, port)
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:  # its text says only where to find the reason: in gRPC's own log
        raise ServiceError(
            f"{address} cannot be bound: another program listens there, or the host is not this machine's.",
            remedy="Choose another port or host.",
            field="port",
        ) from error
