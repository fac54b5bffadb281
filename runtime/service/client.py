"""The synchronous client, and a server of this machine to try it on."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ..errors import MimicMotionError, ServiceError
from ..events import Event
from ..pose import PoseSequence
from .generated.mimicmotion.v1 import animation_pb2 as pb
from .generated.mimicmotion.v1 import animation_pb2_grpc as pb_grpc
from .received import Delivery, ReceivedVideo
from .status import from_rpc_error
from .uploads import Image, Motion, Upload
from .wire import Estimate, JobInfo, SettingsLike, estimate_from_wire, info_from_wire, settings_to_wire

Answer = TypeVar("Answer")
CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", 4 * 2**20),
    # A queued job's stream may be silent for long: find out when the server is gone.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
]
RETRY_SECONDS = 0.05
"""Between two questions whether a server is ready."""


@dataclass(frozen=True, slots=True)
class ClientTls:
    """PEM files: the authority behind the server's certificate (None: the system's), and our own pair."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises `ServiceError` if a file cannot be read."""
        try:
            ca, key, certificate = (
                path.read_bytes() if path is not None else None
                for path in (self.ca, self.key, self.certificate)
            )
        except OSError as error:
            raise ServiceError(f"{error.filename} cannot be read: {error.strerror}.", field="tls") from error
        return grpc.ssl_channel_credentials(ca, key, certificate)


class Animation(Iterator[Event]):
    """A job's events as they come. `result()` takes what is left of them; leaving early cancels the call.

    Raises what the animation raised on the server, as the same class with `field` and `remedy`;
    `ServiceError` if the server cannot be reached or the stream is damaged.
    """

    def __init__(self, call: Any, delivery: Delivery) -> None:
        self._call = call
        self._delivery = delivery

    @property
    def job(self) -> str:
        """The job's name on the server, empty until it was accepted."""
        return self._delivery.job

    def __next__(self) -> Event:
        try:
            for response in self._call:
                event = self._delivery.take(response.event)
                if event is not None:
                    return event
        except grpc.RpcError as error:
            self.cancel()
            raise from_rpc_error(error) from None
        except BaseException:
            self.cancel()
            raise
        raise StopIteration

    def result(self) -> ReceivedVideo:
        """Wait for the end; the finished video."""
        for _ in self:
            pass
        try:
            return self._delivery.end()
        except MimicMotionError:
            self.cancel()
            raise

    def save(self, path: str | Path) -> Path:
        """Wait for the end and write the MP4 to `path`."""
        return self.result().save(path)

    def cancel(self) -> None:
        """Stop listening; the server cancels a job that was not detached."""
        self._call.cancel()
        self._delivery.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()


class Client:
    """Talks to a server at `address` ("host:port"); `timeout` is for all calls but streams, in seconds."""

    def __init__(self, address: str, *, tls: ClientTls | None = None, timeout: float = 10.0) -> None:
        if tls is None:
            self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        else:
            self._channel = grpc.secure_channel(address, tls.credentials(), options=CHANNEL_OPTIONS)
        self._stub = pb_grpc.AnimationServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)
        self._timeout = timeout

    def animate(
        self,
        image: Image,
        motion: Motion,
        settings: SettingsLike = None,
        *,
        reference_pose: PoseSequence | None = None,
        output: str | Path | None = None,
        timeout: float | None = None,
        request_id: str = "",
        detach: bool = False,
    ) -> Animation:
        """Animate `image` (path, bytes of a file, or uint8 [H,W,3]) with `motion` (path or bytes of a video
        or of keypoints, a `PoseSequence`, or pose pictures uint8 [F,H,W,3]).

        `output` is written when the video is whole. After `timeout` seconds the job is cancelled; so it is
        when the caller goes away, unless `detach`. The same `request_id` gives the same job.
        """
        upload = Upload(
            image, motion, settings, reference_pose=reference_pose, request_id=request_id, detach=detach
        )
        delivery = Delivery(output)
        requests = (pb.AnimateRequest(upload=part) for part in upload)
        return Animation(self._stub.Animate(requests, timeout=timeout), delivery)

    def create(
        self,
        image: Image,
        motion: Motion,
        settings: SettingsLike = None,
        *,
        reference_pose: PoseSequence | None = None,
        request_id: str = "",
        timeout: float | None = None,
    ) -> JobInfo:
        """Like `animate`, but returns once the job is queued; it goes on without its caller."""
        upload = Upload(image, motion, settings, reference_pose=reference_pose, request_id=request_id)
        requests = (pb.CreateAnimationRequest(upload=part) for part in upload)
        return info_from_wire(_answer(self._stub.CreateAnimation, requests, timeout).animation)

    def watch(
        self, job: str, *, after: int = 0, output: str | Path | None = None, timeout: float | None = None
    ) -> Animation:
        """The job's events after sequence number `after`; from 0 on, its video as well."""
        delivery = Delivery(output, first=after)
        request = pb.WatchAnimationRequest(job=job, after_sequence=after)
        return Animation(self._stub.WatchAnimation(request, timeout=timeout), delivery)

    def get(self, job: str) -> JobInfo:
        """Raises `ServiceError` if the server does not know the job (any more)."""
        request = pb.GetAnimationRequest(job=job)
        return info_from_wire(_answer(self._stub.GetAnimation, request, self._timeout).animation)

    def list(self) -> list[JobInfo]:
        """All jobs that the server keeps, newest first."""
        answer = _answer(self._stub.ListAnimations, pb.ListAnimationsRequest(), self._timeout)
        return [info_from_wire(animation) for animation in answer.animations]

    def cancel(self, job: str) -> JobInfo:
        """Ask the job to stop; a running one does within a denoising step."""
        request = pb.CancelAnimationRequest(job=job)
        return info_from_wire(_answer(self._stub.CancelAnimation, request, self._timeout).animation)

    def estimate(self, frames: int, settings: SettingsLike = None) -> Estimate:
        """What a video of `frames` frames would cost, from what the server measured so far."""
        request = pb.EstimateAnimationRequest(settings=settings_to_wire(settings), frames=frames)
        return estimate_from_wire(_answer(self._stub.EstimateAnimation, request, self._timeout))

    def health(self) -> str:
        """SERVING or NOT_SERVING (loading, or about to stop)."""
        answer = _answer(self._health.Check, health_pb2.HealthCheckRequest(), self._timeout)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

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

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _answer(call: Callable[..., Answer], request: Any, timeout: float | None) -> Answer:
    try:
        return call(request, timeout=timeout)
    except grpc.RpcError as error:
        raise from_rpc_error(error) from None


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
                with Client(_address(process, ready, log, patience)) as client:
                    yield client
            finally:
                process.terminate()
                process.wait()


def _address(process: subprocess.Popen[bytes], ready: Path, log: Path, patience: float) -> str:
    until = time.monotonic() + patience
    while time.monotonic() < until and process.poll() is None:
        if ready.exists() and (address := ready.read_text().strip()):
            return address
        time.sleep(0.02)
    raise ServiceError(f"the server did not start: {log.read_text()[-2000:].strip()}")
