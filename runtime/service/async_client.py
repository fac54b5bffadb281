"""The client for asyncio; `client.py` says what each method does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ..errors import MimicMotionError, ServiceError
from ..events import Event
from ..pose import PoseSequence
from . import channel
from .client import SettingsLike
from .generated.mimicmotion.v1 import animation_pb2 as pb
from .generated.mimicmotion.v1 import animation_pb2_grpc as pb_grpc
from .intake import Intake, ReceivedVideo
from .sending import Image, Motion, Upload
from .status import from_rpc_error
from .wire import Estimate, JobInfo, estimate_from_wire, info_from_wire, settings_to_wire

Answer = TypeVar("Answer")


class AsyncAnimation(AsyncIterator[Event]):
    """A job's events as they come, like `client.Animation`; files are written outside the event loop."""

    def __init__(self, call: Any, intake: Intake) -> None:
        self._call = call
        self._responses = aiter(call)
        self._intake = intake

    @property
    def job(self) -> str:
        return self._intake.job

    async def __anext__(self) -> Event:
        try:
            async for response in self._responses:
                event = await asyncio.to_thread(self._intake.take, response.event)
                if event is not None:
                    return event
        except grpc.RpcError as error:
            self.cancel()
            raise from_rpc_error(error) from None
        except BaseException:
            self.cancel()
            raise
        raise StopAsyncIteration

    async def result(self) -> ReceivedVideo:
        async for _ in self:
            pass
        try:
            return self._intake.end()
        except MimicMotionError:
            self.cancel()
            raise

    async def save(self, path: str | Path) -> Path:
        result = await self.result()
        return await asyncio.to_thread(result.save, path)

    def cancel(self) -> None:
        self._call.cancel()
        self._intake.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


class AsyncClient:
    """Make it on the event loop that uses it."""

    def __init__(self, address: str, *, tls: channel.ClientTls | None = None, timeout: float = 10.0) -> None:
        if tls is None:
            self._channel = grpc.aio.insecure_channel(address, options=channel.OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(address, tls.credentials(), options=channel.OPTIONS)
        self._stub: Any = pb_grpc.AnimationServiceStub(self._channel)
        self._health: Any = health_pb2_grpc.HealthStub(self._channel)
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
    ) -> AsyncAnimation:
        upload = Upload(
            image, motion, settings, reference_pose=reference_pose, request_id=request_id, detach=detach
        )
        intake = Intake(output)
        return AsyncAnimation(
            self._stub.Animate(_requests(upload, pb.AnimateRequest), timeout=timeout), intake
        )

    async def create(
        self,
        image: Image,
        motion: Motion,
        settings: SettingsLike = None,
        *,
        reference_pose: PoseSequence | None = None,
        request_id: str = "",
        timeout: float | None = None,
    ) -> JobInfo:
        upload = Upload(image, motion, settings, reference_pose=reference_pose, request_id=request_id)
        requests = _requests(upload, pb.CreateAnimationRequest)
        answer = await _asked(self._stub.CreateAnimation(requests, timeout=timeout))
        return info_from_wire(answer.animation)

    def watch(
        self, job: str, *, after: int = 0, output: str | Path | None = None, timeout: float | None = None
    ) -> AsyncAnimation:
        request = pb.WatchAnimationRequest(job=job, after_sequence=after)
        return AsyncAnimation(
            self._stub.WatchAnimation(request, timeout=timeout), Intake(output, first=after)
        )

    async def get(self, job: str) -> JobInfo:
        answer = await _asked(self._stub.GetAnimation(pb.GetAnimationRequest(job=job), timeout=self._timeout))
        return info_from_wire(answer.animation)

    async def list(self) -> list[JobInfo]:
        answer = await _asked(self._stub.ListAnimations(pb.ListAnimationsRequest(), timeout=self._timeout))
        return [info_from_wire(animation) for animation in answer.animations]

    async def cancel(self, job: str) -> JobInfo:
        request = pb.CancelAnimationRequest(job=job)
        answer = await _asked(self._stub.CancelAnimation(request, timeout=self._timeout))
        return info_from_wire(answer.animation)

    async def estimate(self, frames: int, settings: SettingsLike = None) -> Estimate:
        plain: Any = {} if settings is None else settings
        request = pb.EstimateAnimationRequest(settings=settings_to_wire(plain), frames=frames)
        return estimate_from_wire(await _asked(self._stub.EstimateAnimation(request, timeout=self._timeout)))

    async def health(self) -> str:
        request = health_pb2.HealthCheckRequest()
        answer = await _asked(self._health.Check(request, timeout=self._timeout))
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

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
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def _requests(upload: Upload, kind: Any) -> AsyncIterator[Any]:
    parts: Iterator[pb.AnimationUpload] = iter(upload)
    while (part := await asyncio.to_thread(next, parts, None)) is not None:
        yield kind(upload=part)


async def _asked(call: Awaitable[Answer]) -> Answer:
    try:
        return await call
    except grpc.RpcError as error:
        raise from_rpc_error(error) from None
