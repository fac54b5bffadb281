"""The RPCs: each asks the store and the scheduler, and answers in messages."""

# ruff: noqa: N802 - methods bear the names of their RPCs

from __future__ import annotations

import functools
import time
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio

from ..errors import Cancelled, EngineError, MimicMotionError, SettingsError
from ..limits import check_limit
from ..settings import Settings
from . import wire
from .config import ServiceConfig
from .generated.mimicmotion.v1 import animation_pb2 as pb
from .generated.mimicmotion.v1 import animation_pb2_grpc as pb_grpc
from .jobs import JobStore, StoredJob
from .rates import count_segments
from .scheduler import Scheduler
from .status import abort
from .transfer import Receiver

Context = Any  # grpc.aio.ServicerContext; the generated stubs mix it with the synchronous one


def _answered(method: Any) -> Any:
    """Turn what a method raises into a status with details.

    Untyped, as the generated base class expects iterators where these methods write to their context.
    """

    @functools.wraps(method)
    async def answer(self: AnimationServicer, request: Any, context: Context) -> Any:
        try:
            return await method(self, request, context)
        except MimicMotionError as error:
            return await abort(context, error)
        except (grpc.aio.AbortError, grpc.aio.UsageError):
            raise
        except Exception as error:
            if context.cancelled():  # the caller left while a message was being read or written
                raise
            self.logger.exception("unexpected", rpc=method.__name__)
            fault = EngineError(
                f"The server failed: {type(error).__name__}.", remedy="Its log has the details."
            )
            return await abort(context, fault)

    return answer


class AnimationServicer(pb_grpc.AnimationServiceServicer):
    """`mimicmotion.v1.AnimationService` over a store and a scheduler, which the server starts and stops."""

    def __init__(self, config: ServiceConfig, store: JobStore, scheduler: Scheduler, logger: Any) -> None:
        self.logger = logger
        self._config = config
        self._store = store
        self._scheduler = scheduler

    @_answered
    async def Animate(self, request: object, context: Context) -> None:
        job, existed, header = await self._receive(context)
        try:
            async with aclosing(job.events()) as events:
                async for event in events:
                    await context.write(pb.AnimateResponse(event=wire.event_to_wire(event)))
        finally:  # the caller is served, or gone
            if not (existed or header.detach):
                self._scheduler.cancel(job)

    @_answered
    async def CreateAnimation(self, request: object, context: Context) -> pb.CreateAnimationResponse:
        job, existed, _ = await self._receive(context)
        return pb.CreateAnimationResponse(animation=wire.info_to_wire(job.info()), existed=existed)

    @_answered
    async def WatchAnimation(self, request: pb.WatchAnimationRequest, context: Context) -> None:
        job = self._store.get(request.job)
        async with aclosing(job.events(request.after_sequence)) as events:
            async for event in events:
                await context.write(pb.WatchAnimationResponse(event=wire.event_to_wire(event)))

    @_answered
    async def GetAnimation(
        self, request: pb.GetAnimationRequest, context: Context
    ) -> pb.GetAnimationResponse:
        return pb.GetAnimationResponse(animation=wire.info_to_wire(self._store.get(request.job).info()))

    @_answered
    async def ListAnimations(
        self, request: pb.ListAnimationsRequest, context: Context
    ) -> pb.ListAnimationsResponse:
        return pb.ListAnimationsResponse(
            animations=[wire.info_to_wire(job.info()) for job in self._store.all()]
        )

    @_answered
    async def CancelAnimation(
        self, request: pb.CancelAnimationRequest, context: Context
    ) -> pb.CancelAnimationResponse:
        job = self._store.get(request.job)
        self._scheduler.cancel(job)
        return pb.CancelAnimationResponse(animation=wire.info_to_wire(job.info()))

    @_answered
    async def EstimateAnimation(
        self, request: pb.EstimateAnimationRequest, context: Context
    ) -> pb.EstimateAnimationResponse:
        settings = self._settings(request.settings)
        if not 1 <= request.frames <= 1_000_000:
            raise SettingsError(f"frames is {request.frames}.", remedy="Choose 1 to 1000000.", field="frames")
        frames = min(request.frames, settings.frames or request.frames)
        rates = self._scheduler.rates
        seconds = rates.predict(settings, frames)
        estimate = wire.Estimate(
            frames=frames,
            segments=count_segments(settings, frames),
            seconds=seconds,
            queue_seconds=None if seconds is None else self._scheduler.predict_start("", seconds),
            measured_jobs=rates.jobs,
        )
        return wire.estimate_to_wire(estimate)

    # ---- inside ----

    async def _receive(self, context: Context) -> tuple[StoredJob, bool, pb.AnimationHeader]:
        """(the job of this call's upload, whether it existed already under the same key, the header)."""
        receiver = Receiver(context.read, grpc.aio.EOF, self._config.upload_patience)
        header = await receiver.header(self._config.limits)
        fingerprint = _fingerprint(header)
        known = self._store.same(header.request_id, fingerprint)
        if known is not None:
            return known, True, header
        settings = self._settings(header.settings)
        settings = replace(settings, preview=(settings.preview or 1) if header.want_previews else 0)
        kind, deadline = wire.MOTION_KINDS[header.motion_kind], None
        if header.HasField("deadline_seconds"):
            deadline = time.time() + header.deadline_seconds
        self._scheduler.check_room(
            "", settings, kind, header.motion_bytes, priority=header.priority, deadline=deadline
        )
        job = self._store.create(
            header.request_id,
            fingerprint,
            kind,
            settings,
            has_reference_pose=header.reference_pose_bytes > 0,
            motion_bytes=header.motion_bytes,
            priority=header.priority,
            deadline=deadline,
        )
        self._scheduler.expect(job)
        try:
            await receiver.files(header, job)
            self._scheduler.submit(job)
        except BaseException as error:
            named = error if isinstance(error, MimicMotionError) else Cancelled("Its upload broke off.")
            self._scheduler.abandon(job, named)
            self._store.discard(job)
            raise
        return job, False, header

    def _settings(self, message: pb.AnimationSettings) -> Settings:
        """The bundle's settings with those of a call; raises `LimitError` for a size that is too large."""
        settings = wire.resolve(self._scheduler.defaults, wire.overrides_from_wire(message))
        if settings.size is not None:
            pixels = settings.size[0] * settings.size[1]
            check_limit("pixels of a frame", pixels, self._config.limits.output_pixels, field="settings.size")
        return settings


def _fingerprint(header: pb.AnimationHeader) -> bytes:
    """What must be equal in two requests under one key: the header without what decides when and how it runs."""
    same = pb.AnimationHeader()
    same.CopyFrom(header)
    for name in ("detach", "priority", "deadline_seconds"):
        same.ClearField(name)
    return same.SerializeToString(deterministic=True)
