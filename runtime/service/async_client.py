"""The client for asyncio; `client.py` says what each method does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ..errors import MimicMotionError, ServiceError
from ..events import Event
from ..pose import PoseSequence
from .client import CHANNEL_OPTIONS, RETRY_SECONDS, ClientTls
from .generated.mimicmotion.v1 import animation_pb2 as pb
from .generated.mimicmotion.v1 import animation_pb2_grpc as pb_grpc
from .received import Delivery, ReceivedVideo
from .status import from_rpc_error
from .uploads import Image, Motion, Upload
from .wire import Estimate, JobInfo, SettingsLike, estimate_from_wire, info_from_wire, settings_to_wire


class AsyncAnimation(AsyncIterator[Event]):
    """A job's events as they come, like `client.Animation`; files are written outside the event loop."""

    def __init__(self, call: Any, delivery: Delivery) -> None:
        self._call = call
        self._responses = aiter(call)
        self._delivery = delivery

    @property
    def job(self) -> str:
        return self._delivery.job

    async def __anext__(self) -> Event:
        try:
            async for response in self._responses:
                event = await asyncio.to_thread(self._delivery.take, response.event)
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
            return self._delivery.end()
        except MimicMotionError:
            self.cancel()
            raise

    async def save(self, path: str | Path) -> Path:
        result = await self.result()
        return await asyncio.to_thread(result.save, path)

    def cancel(self) -> None:
        self._call.cancel()
        self._delivery.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()


class AsyncClient:
    """Make it on the event loop that uses it."""

    def __init__(self, address: str, *, tls: ClientTls | None = None, timeout: float = 10.0) -> None:
        if tls is None:
            self._channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(address, tls.credentials(), options=CHANNEL_OPTIONS)
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
        delivery = Delivery(output)
        requests = _requests(upload, pb.AnimateRequest)
        return AsyncAnimation(self._stub.Animate(requests, timeout=timeout), delivery)

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
        return info_from_wire((await _answer(self._stub.CreateAnimation, requests, timeout)).animation)

    def watch(
        self, job: str, *, after: int = 0, output: str | Path | None = None, timeout: float | None = None
    ) -> AsyncAnimation:
        delivery = Delivery(output, first=after)
        request = pb.WatchAnimationRequest(job=job, after_sequence=after)
        return AsyncAnimation(self._stub.WatchAnimation(request, timeout=timeout), delivery)

    async def get(self, job: str) -> JobInfo:
        request = pb.GetAnimationRequest(job=job)
        return info_from_wire((await _answer(self._stub.GetAnimation, request, self._timeout)).animation)

    async def list(self) -> list[JobInfo]:
        answer = await _answer(self._stub.ListAnimations, pb.ListAnimationsRequest(), self._timeout)
        return [info_from_wire(animation) for animation in answer.animations]

    async def cancel(self, job: str) -> JobInfo:
        request = pb.CancelAnimationRequest(job=job)
        return info_from_wire((await _answer(self._stub.CancelAnimation, request, self._timeout)).animation)

    async def estimate(self, frames: int, settings: SettingsLike = None) -> Estimate:
        request = pb.EstimateAnimationRequest(settings=settings_to_wire(settings), frames=frames)
        return estimate_from_wire(await _answer(self._stub.EstimateAnimation, request, self._timeout))

    async def health(self) -> str:
        answer = await _answer(self._health.Check, health_pb2.HealthCheckRequest(), self._timeout)
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
            await asyncio.sleep(RETRY_SECONDS)

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def _requests(upload: Upload, kind: Any) -> AsyncIterator[Any]:
    parts = iter(upload)
    while (part := await asyncio.to_thread(next, parts, None)) is not None:
        yield kind(upload=part)


async def _answer(call: Any, request: Any, timeout: float | None) -> Any:
    try:
        return await call(request, timeout=timeout)
    except grpc.RpcError as error:
        raise from_rpc_error(error) from None
