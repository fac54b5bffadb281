"""The clients, and a server of this machine to try them on."""

# mypy: no-warn-return-any
# The calls of both clients are written once; `_answer` returns a value in one and a coroutine in the other.

from __future__ import annotations

import asyncio
import ipaddress
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ..errors import ServiceError
from ..pose import PoseSequence
from ..pose.motion import MotionKind
from ..validation import described
from .delivery import Delivery
from .generated.mimicmotion.v1 import animation_pb2 as pb
from .generated.mimicmotion.v1 import animation_pb2_grpc as pb_grpc
from .status import from_rpc_error
from .tls import ClientTls
from .transfer import Image, Motion, Upload
from .watching import Animation, AsyncAnimation, JobEvents, Reconnection
from .wire import Estimate, JobInfo, SettingsLike, estimate_from_wire, info_from_wire, settings_to_wire

CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", 4 * 2**20),
    # A queued job's stream may be silent for long: find out when the server is gone.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A server that is started again is found within 2 s.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]
LIST_PAGE = 500
"""Jobs that `list` asks for at a time."""
STOP_SECONDS = 2.0
"""For cancelling a job whose own call is gone."""
RETRY_SECONDS = 0.05
"""Between two questions whether a server is ready."""


def _is_loopback(address: str) -> bool:
    """Whether this is our own machine, to which no proxy leads."""
    host = address.rpartition(":")[0].strip("[]") or address
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.startswith("unix")


# ---- the calls ----

Events = TypeVar("Events", bound=JobEvents)
Info = TypeVar("Info")
Page = TypeVar("Page")
Cost = TypeVar("Cost")
Health = TypeVar("Health")


class _Closed:
    """Stands for the stubs of a client that was closed."""

    def __getattr__(self, name: str) -> Any:
        raise ServiceError("the client is closed.", remedy="Make another one.")


class _Calls(Generic[Events, Info, Page, Cost, Health]):
    """Every call of both clients. What its methods return depends on the client: a value, or a coroutine of it."""

    _grpc: Any
    """The module `grpc` or `grpc.aio`."""
    _events: type[Events]

    def __init__(
        self,
        address: str,
        *,
        tls: ClientTls | None = None,
        token: str = "",
        timeout: float = 10.0,
        patience: float = 60.0,
    ) -> None:
        """`address` is "host:port"; `token` for servers that want one (send it over TLS only); `timeout` is for all
        calls but streams and uploads, in seconds.

        Where the connection to an accepted job breaks, or the server stops and keeps the job (`serve --store`), the
        job is watched again from where it was, tried for `patience` seconds from the break on; 0: not at all.
        """
        if not isinstance(address, str) or ":" not in address:  # gRPC would take the port 443
            raise ServiceError(
                f"{address} has no port.", remedy="For instance: localhost:50051.", field="server"
            )
        if not (isinstance(token, str) and token.isascii() and token.isprintable()):
            raise ServiceError(
                "The token is no line of ASCII.", remedy="Give the token alone.", field="token"
            )
        self._metadata = [("authorization", f"Bearer {token}")] if token else None
        options = [*CHANNEL_OPTIONS, *([("grpc.enable_http_proxy", 0)] if _is_loopback(address) else [])]
        if tls is not None and not isinstance(tls, ClientTls):
            raise ServiceError(
                f"tls is {described(tls)}.",
                remedy="Give ClientTls(ca=...), or None to go without.",
                field="tls",
            )
        self._address = address
        if tls is None:
            self._channel = self._grpc.insecure_channel(address, options=options)
        else:
            self._channel = self._grpc.secure_channel(address, tls.credentials(), options=options)
        self._stub: Any = pb_grpc.AnimationServiceStub(self._channel)
        self._health: Any = health_pb2_grpc.HealthStub(self._channel)
        self._timeout = timeout
        self._patience = patience

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._address}>"

    def animate(
        self,
        image: Image,
        motion: Motion,
        settings: SettingsLike = None,
        *,
        reference_pose: PoseSequence | None = None,
        motion_kind: MotionKind = "auto",
        output: str | Path | None = None,
        timeout: float | None = None,
        request_id: str = "",
        detach: bool = False,
        priority: int = 0,
        deadline: float | None = None,
    ) -> Events:
        """Animate `image` (path, bytes of a file, or uint8 [H,W,3]) with `motion` (path or bytes of a video
        or of keypoints, a `PoseSequence`, or pose pictures uint8 [F,H,W,3]).

        `output` is written when the video is whole. After `timeout` seconds the job is cancelled; so it is
        when the caller goes away, unless `detach`. The same `request_id` gives the same job. Jobs of a higher
        `priority` (-9 to 9) go first. A job that is not likely to be finished within `deadline` seconds is refused.
        """
        upload = Upload(
            image,
            motion,
            settings,
            reference_pose=reference_pose,
            motion_kind=motion_kind,
            request_id=request_id,
            detach=detach,
            priority=priority,
            deadline=deadline,
        )
        delivery = Delivery(output)
        requests = self._requests(upload, pb.AnimateRequest)
        call = self._stub.Animate(requests, timeout=timeout, metadata=self._metadata)
        stop = None if detach else self._stop
        return self._events(call, delivery, Reconnection(self._watch, stop, self._patience, timeout))

    def create(
        self,
        image: Image,
        motion: Motion,
        settings: SettingsLike = None,
        *,
        reference_pose: PoseSequence | None = None,
        motion_kind: MotionKind = "auto",
        request_id: str = "",
        priority: int = 0,
        deadline: float | None = None,
        timeout: float | None = None,
    ) -> Info:
        """Like `animate`, but returns once the job is queued; it goes on without its caller."""
        upload = Upload(
            image,
            motion,
            settings,
            reference_pose=reference_pose,
            motion_kind=motion_kind,
            request_id=request_id,
            priority=priority,
            deadline=deadline,
        )
        requests = self._requests(upload, pb.CreateAnimationRequest)
        return self._answer(self._stub.CreateAnimation, requests, _job_info, timeout)

    def watch(
        self, job: str, *, after: int = 0, output: str | Path | None = None, timeout: float | None = None
    ) -> Events:
        """The job's events after sequence number `after`; from 0 on, its video as well."""
        delivery = Delivery(output, first=after)
        call = self._watch(job, after, timeout)
        return self._events(call, delivery, Reconnection(self._watch, None, self._patience, timeout, job))

    def get(self, job: str) -> Info:
        """Raises `ServiceError` if the server does not know the job (any more)."""
        request = pb.GetAnimationRequest(job=job)
        return self._answer(self._stub.GetAnimation, request, _job_info, self._timeout)

    def cancel(self, job: str) -> Info:
        """Ask the job to stop; a running one does within a denoising step."""
        request = pb.CancelAnimationRequest(job=job)
        return self._answer(self._stub.CancelAnimation, request, _job_info, self._timeout)

    def estimate(
        self, frames: int = 0, settings: SettingsLike = None, *, seconds: float | None = None
    ) -> Cost:
        """What a video of `frames` frames would cost, or one of a motion of `seconds`, from what the server measured
        so far. Of the seconds those from `start` to `end` count, at the settings' `fps` or 15 a second."""
        request = pb.EstimateAnimationRequest(
            settings=settings_to_wire(settings), frames=frames, seconds=seconds
        )
        return self._answer(self._stub.EstimateAnimation, request, estimate_from_wire, self._timeout)

    def page(self, size: int = 100, token: str = "") -> Page:
        """(up to `size` of the server's jobs, newest first; the token of the next page, empty after the last)."""
        request = pb.ListAnimationsRequest(page_size=size, page_token=token)
        return self._answer(self._stub.ListAnimations, request, _job_page, self._timeout)

    def health(self, service: str = "") -> Health:
        """SERVING, or NOT_SERVING (loading, or about to stop). Of `live`: whether the process works at all."""
        request = health_pb2.HealthCheckRequest(service=service)
        return self._answer(self._health.Check, request, _health_name, self._timeout)

    def _watch(self, job: str, after: int, timeout: float | None) -> Any:
        request = pb.WatchAnimationRequest(job=job, after_sequence=after)
        return self._stub.WatchAnimation(request, timeout=timeout, metadata=self._metadata)

    def _stop(self, job: str) -> None:
        """Ask the job to stop, if the server can be reached."""
        raise NotImplementedError

    def _requests(self, upload: Upload, kind: Any) -> Any:
        """The messages of an upload, each as a request of this kind."""
        raise NotImplementedError

    def _answer(self, call: Any, request: Any, decode: Callable[[Any], Any], timeout: float | None) -> Any:
        """Call and decode the answer; raises the server's error."""
        raise NotImplementedError


def _job_info(answer: Any) -> JobInfo:
    return info_from_wire(answer.animation)


def _job_page(answer: pb.ListAnimationsResponse) -> tuple[list[JobInfo], str]:
    return [info_from_wire(animation) for animation in answer.animations], answer.next_page_token


def _health_name(answer: health_pb2.HealthCheckResponse) -> str:
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


class Client(_Calls[Animation, JobInfo, tuple[list[JobInfo], str], Estimate, str]):
    """Talks to a server; every method returns when the answer is there."""

    _grpc = grpc
    _events = Animation

    def wait_until_ready(self, timeout: float = 60.0) -> None:
        """Return when the server is SERVING; raises `ServiceError` after `timeout` seconds."""
        until = time.monotonic() + timeout
        while True:
            try:
                state = self.health()
            except ServiceError as error:
                state = str(error)
            if state == "SERVING":
                return
            if time.monotonic() > until:
                raise ServiceError(f"The server is not ready after {timeout:g} s: {state}")
            time.sleep(RETRY_SECONDS)

    def list(self) -> list[JobInfo]:
        """All jobs that the server keeps, newest first."""
        jobs, token = self.page(LIST_PAGE)
        while token:
            more, token = self.page(LIST_PAGE, token)
            jobs += more
        return jobs

    def close(self) -> None:
        self._stub = self._health = _Closed()
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stop(self, job: str) -> None:
        request = pb.CancelAnimationRequest(job=job)
        with suppress(grpc.RpcError, ServiceError):
            self._stub.CancelAnimation(request, timeout=STOP_SECONDS, metadata=self._metadata)

    def _requests(self, upload: Upload, kind: Any) -> Iterator[Any]:
        return (kind(upload=part) for part in upload)

    def _answer(self, call: Any, request: Any, decode: Callable[[Any], Any], timeout: float | None) -> Any:
        try:
            return decode(call(request, timeout=timeout, metadata=self._metadata))
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None


Answer = TypeVar("Answer")
Awaited = Coroutine[Any, Any, Answer]


class AsyncClient(
    _Calls[
        AsyncAnimation, Awaited[JobInfo], Awaited[tuple[list[JobInfo], str]], Awaited[Estimate], Awaited[str]
    ]
):
    """Talks to a server with asyncio. Make it on the event loop that uses it."""

    _grpc = grpc.aio
    _events = AsyncAnimation

    def __init__(self, address: str, **options: Any) -> None:
        super().__init__(address, **options)
        self._stopping: set[asyncio.Future[Any]] = set()  # calls that cancel jobs which nobody waits for

    async def wait_until_ready(self, timeout: float = 60.0) -> None:
        until = time.monotonic() + timeout
        while True:
            try:
                state = await self.health()
            except ServiceError as error:
                state = str(error)
            if state == "SERVING":
                return
            if time.monotonic() > until:
                raise ServiceError(f"The server is not ready after {timeout:g} s: {state}")
            await asyncio.sleep(RETRY_SECONDS)

    async def list(self) -> list[JobInfo]:
        jobs, token = await self.page(LIST_PAGE)
        while token:
            more, token = await self.page(LIST_PAGE, token)
            jobs += more
        return jobs

    async def close(self) -> None:
        await asyncio.gather(*self._stopping)
        self._stub = self._health = _Closed()
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _stop(self, job: str) -> None:
        request = pb.CancelAnimationRequest(job=job)
        with suppress(ServiceError):
            call = self._stub.CancelAnimation(request, timeout=STOP_SECONDS, metadata=self._metadata)
            self._stopping.add(asyncio.ensure_future(call.code()))  # which raises nothing

    async def _requests(self, upload: Upload, kind: Any) -> AsyncIterator[Any]:
        parts = iter(upload)
        while (part := await asyncio.to_thread(next, parts, None)) is not None:
            yield kind(upload=part)

    async def _answer(
        self, call: Any, request: Any, decode: Callable[[Any], Any], timeout: float | None
    ) -> Any:
        try:
            return decode(await call(request, timeout=timeout, metadata=self._metadata))
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None


# ---- a server of this machine ----


@contextmanager
def local_server(
    bundle: str | Path, *, threads: int | None = None, patience: float = 60.0
) -> Iterator[Client]:
    """Run `mimicmotion-trt serve` on a free port of this machine; a client of it, once it is warm.

    Raises `ServiceError` with what the server printed if it is not warm within `patience` seconds.
    """
    with tempfile.TemporaryDirectory(prefix="mimicmotion-") as folder:
        ready, log = Path(folder) / "ready", Path(folder) / "log"
        command = [sys.executable, "-m", "mimicmotion_trt", "serve", "--bundle", str(bundle), "--port", "0"]
        command += ["--ready-file", str(ready)] + (["--threads", str(threads)] if threads else [])
        with log.open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output)
            try:
                until = time.monotonic() + patience
                while not (ready.exists() and ready.read_text()):
                    if time.monotonic() > until or process.poll() is not None:
                        raise ServiceError(f"the server did not start: {log.read_text()[-2000:].strip()}")
                    time.sleep(0.02)
                with Client(ready.read_text()) as client:
                    yield client
            finally:
                process.terminate()
                process.wait()
