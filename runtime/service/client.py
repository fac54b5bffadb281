"""The synchronous client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ..errors import MimicMotionError, ServiceError
from ..events import Event
from ..pose import PoseSequence
from ..settings import Settings
from . import channel
from .generated.mimicmotion.v1 import animation_pb2 as pb
from .generated.mimicmotion.v1 import animation_pb2_grpc as pb_grpc
from .intake import Intake, ReceivedVideo
from .sending import Image, Motion, Upload
from .status import from_rpc_error
from .wire import Estimate, JobInfo, estimate_from_wire, info_from_wire, settings_to_wire

SettingsLike = Settings | Mapping[str, Any] | None
"""A mapping overrides only what it names; all else is the bundle's default."""
Answer = TypeVar("Answer")


class Animation(Iterator[Event]):
    """A job's events as they come. `result()` takes what is left of them; leaving early cancels the call.

    Raises what the animation raised on the server, as the same class with `field` and `remedy`;
    `ServiceError` if the server cannot be reached or the stream is damaged.
    """

    def __init__(self, call: Any, intake: Intake) -> None:
        self._call = call
        self._intake = intake

    @property
    def job(self) -> str:
        """The job's name on the server, empty until it was accepted."""
        return self._intake.job

    def __next__(self) -> Event:
        try:
            for response in self._call:
                event = self._intake.take(response.event)
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
            return self._intake.end()
        except MimicMotionError:
            self.cancel()
            raise

    def save(self, path: str | Path) -> Path:
        """Wait for the end and write the MP4 to `path`."""
        return self.result().save(path)

    def cancel(self) -> None:
        """Stop listening; the server cancels a job that was not detached."""
        self._call.cancel()
        self._intake.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


class Client:
    """Talks to a server at `address` ("host:port"); `timeout` is for all calls but streams, in seconds."""

    def __init__(self, address: str, *, tls: channel.ClientTls | None = None, timeout: float = 10.0) -> None:
        if tls is None:
            self._channel = grpc.insecure_channel(address, options=channel.OPTIONS)
        else:
            self._channel = grpc.secure_channel(address, tls.credentials(), options=channel.OPTIONS)
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
        intake = Intake(output)
        requests = (pb.AnimateRequest(upload=part) for part in upload)
        return Animation(self._stub.Animate(requests, timeout=timeout), intake)

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
        answer = _asked(lambda: self._stub.CreateAnimation(requests, timeout=timeout))
        return info_from_wire(answer.animation)

    def watch(
        self, job: str, *, after: int = 0, output: str | Path | None = None, timeout: float | None = None
    ) -> Animation:
        """The job's events after sequence number `after`; from 0 on, its video as well."""
        request = pb.WatchAnimationRequest(job=job, after_sequence=after)
        return Animation(self._stub.WatchAnimation(request, timeout=timeout), Intake(output, first=after))

    def get(self, job: str) -> JobInfo:
        """Raises `ServiceError` if the server does not know the job (any more)."""
        request = pb.GetAnimationRequest(job=job)
        answer = _asked(lambda: self._stub.GetAnimation(request, timeout=self._timeout))
        return info_from_wire(answer.animation)

    def list(self) -> list[JobInfo]:
        """All jobs that the server keeps, newest first."""
        answer = _asked(lambda: self._stub.ListAnimations(pb.ListAnimationsRequest(), timeout=self._timeout))
        return [info_from_wire(animation) for animation in answer.animations]

    def cancel(self, job: str) -> JobInfo:
        """Ask the job to stop; a running one does within a denoising step."""
        request = pb.CancelAnimationRequest(job=job)
        answer = _asked(lambda: self._stub.CancelAnimation(request, timeout=self._timeout))
        return info_from_wire(answer.animation)

    def estimate(self, frames: int, settings: SettingsLike = None) -> Estimate:
        """What a video of `frames` frames would cost, from what the server measured so far."""
        plain: Any = {} if settings is None else settings
        request = pb.EstimateAnimationRequest(settings=settings_to_wire(plain), frames=frames)
        return estimate_from_wire(
            _asked(lambda: self._stub.EstimateAnimation(request, timeout=self._timeout))
        )

    def health(self) -> str:
        """SERVING or NOT_SERVING (loading, or about to stop)."""
        request = health_pb2.HealthCheckRequest()
        answer = _asked(lambda: self._health.Check(request, timeout=self._timeout))
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
            time.sleep(0.05)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _asked(ask: Callable[[], Answer]) -> Answer:
    try:
        return ask()
    except grpc.RpcError as error:
        raise from_rpc_error(error) from None
