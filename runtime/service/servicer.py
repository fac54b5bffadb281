"""The RPCs: each asks the store and the scheduler, and answers in messages."""

# ruff: noqa: N802 - methods bear the names of their RPCs

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import Coroutine
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio

from ..errors import Cancelled, MimicMotionError, SettingsError
from ..limits import check_limit
from ..pose.sampling import frames_of
from ..settings import Settings, check_lora_names
from . import wire
from .config import ServiceConfig
from .gate import Context, read_message
from .generated.mimicmotion.v1 import animation_pb2 as pb
from .generated.mimicmotion.v1 import animation_pb2_grpc as pb_grpc
from .jobs import StoredJob
from .logs import job_facts
from .observers import Observer
from .rates import count_segments
from .scheduler import Scheduler
from .status import UploadError, unknown_job
from .store import PAGE, JobStore
from .tokens import caller
from .transfer import Receiver

LARGEST_PAGE = 500
"""Jobs of one answer to `ListAnimations`."""
WRITE_SECONDS = 2.0
"""The answer to a cancel waits so long for the end of a job to be on the disk."""


class AnimationServicer(pb_grpc.AnimationServiceServicer):
    """`mimicmotion.v1.AnimationService` over a store and a scheduler, which the server starts and stops."""

    def __init__(
        self, config: ServiceConfig, store: JobStore, scheduler: Scheduler, logger: Any, observer: Observer
    ) -> None:
        self.logger = logger
        self._observer = observer
        self._config = config
        self._store = store
        self._scheduler = scheduler

    async def Animate(self, request: object, context: Context) -> None:  # type: ignore[override]
        job, _ = await self._receive(context, waits=True)
        try:
            async with aclosing(job.events()) as events:
                async for event in events:
                    await context.write(pb.AnimateResponse(event=wire.event_to_wire(event)))
        finally:  # the caller is served, or gone
            if job.leave():
                self._scheduler.release(job)

    async def CreateAnimation(self, request: object, context: Context) -> pb.CreateAnimationResponse:
        job, existed = await self._receive(context, waits=False)
        return pb.CreateAnimationResponse(animation=wire.info_to_wire(job.info()), existed=existed)

    async def WatchAnimation(  # type: ignore[override]
        self, request: pb.WatchAnimationRequest, context: Context
    ) -> None:
        job = self._job(request.job)
        async with aclosing(job.events(request.after_sequence)) as events:
            async for event in events:
                await context.write(pb.WatchAnimationResponse(event=wire.event_to_wire(event)))

    async def GetAnimation(
        self, request: pb.GetAnimationRequest, context: Context
    ) -> pb.GetAnimationResponse:
        return pb.GetAnimationResponse(animation=wire.info_to_wire(self._job(request.job).info()))

    async def ListAnimations(
        self, request: pb.ListAnimationsRequest, context: Context
    ) -> pb.ListAnimationsResponse:
        size = min(request.page_size or PAGE, LARGEST_PAGE)
        jobs, before = self._store.page(size, _page_start(request.page_token), caller().may_see)
        return pb.ListAnimationsResponse(
            animations=[wire.info_to_wire(job.info()) for job in jobs],
            next_page_token=str(before) if before else "",
        )

    async def CancelAnimation(
        self, request: pb.CancelAnimationRequest, context: Context
    ) -> pb.CancelAnimationResponse:
        job = self._job(request.job)
        self.logger.info("cancel asked", **job_facts(job), by=caller().name, peer=caller().peer)
        self._scheduler.cancel(job)
        if job.outcome is not None:  # it is being written down
            with suppress(TimeoutError):
                await asyncio.wait_for(job.over.wait(), WRITE_SECONDS)
        return pb.CancelAnimationResponse(animation=wire.info_to_wire(job.info()))

    async def EstimateAnimation(
        self, request: pb.EstimateAnimationRequest, context: Context
    ) -> pb.EstimateAnimationResponse:
        settings = self._settings(request.settings)
        frames = request.frames
        if request.HasField("seconds"):
            frames = frames_of(settings, request.seconds)
        if not 1 <= frames <= 1_000_000:
            raise SettingsError(f"frames is {frames}.", remedy="Choose 1 to 1000000.", field="frames")
        frames = min(frames, settings.frames or frames)
        rates = self._scheduler.rates
        seconds = rates.predict(settings, frames)
        estimate = wire.Estimate(
            frames=frames,
            segments=count_segments(settings, frames),
            seconds=seconds,
            queue_seconds=None if seconds is None else self._scheduler.predict_start(caller().name, seconds),
            measured_jobs=rates.jobs,
        )
        return wire.estimate_to_wire(estimate)

    # ---- inside ----

    async def _receive(self, context: Context, *, waits: bool) -> tuple[StoredJob, bool]:
        """(the job of this call's upload, whether it existed already under the same key).

        A caller that `waits` has joined the job.
        """
        config = self._config
        read = functools.partial(read_message, context)
        receiver = Receiver(read, grpc.aio.EOF, config.upload_patience, config.upload_rate)
        try:
            return await self._take_upload(receiver, waits=waits)
        except MimicMotionError:
            await receiver.drain()
            raise

    async def _take_upload(self, receiver: Receiver, *, waits: bool) -> tuple[StoredJob, bool]:
        config, who = self._config, caller()
        header = await receiver.header(config.limits)
        if header.priority > who.priority:
            raise SettingsError(
                f"priority is {header.priority}, and jobs of this token may have {who.priority} at most.",
                remedy=f"Choose {who.priority} or less.",
                field="priority",
            )
        settings = self._settings(header.settings)
        settings = replace(settings, preview=(settings.preview or 1) if header.want_previews else 0)
        kind, deadline = wire.MOTION_KINDS[header.motion_kind], None
        if header.HasField("deadline_seconds"):
            deadline = self._store.clock() + header.deadline_seconds
        if self._store.known(header.request_id, who.key_scope) is None:
            self._scheduler.check_room(
                who.name,
                settings,
                kind,
                header.motion_bytes,
                priority=header.priority,
                deadline=deadline,
                client_places=config.places,
            )
        job = self._store.create(
            header.request_id,
            b"",
            kind,
            settings,
            has_reference_pose=header.reference_pose_bytes > 0,
            client=who.name,
            motion_bytes=header.motion_bytes,
            priority=header.priority,
            deadline=deadline,
        )
        self._scheduler.expect(job)
        try:
            content = await receiver.files(header, job)
            job.fingerprint = _fingerprint(header, content)
            known = self._store.same(header.request_id, job.fingerprint, who.key_scope)
            if known is None:
                self._scheduler.check_open()
                self._observer.accepted(job, who)
        except BaseException as error:
            self._abandon(job, error)
            raise
        wanted = known or job
        wanted.detached |= header.detach or not waits
        if waits:
            wanted.join()
        if known is not None:
            self._abandon(job, Cancelled("Its upload was not needed."))
            known.save()
            return known, True
        # numbered before another task runs: a second request under the same key has to find it
        admission = asyncio.ensure_future(self._admit(job, self._store.accept(job)))
        try:
            await asyncio.shield(admission)  # another caller of the same key may have joined the job already
        except BaseException:
            if waits and job.leave():
                self._scheduler.release(job)
            raise
        return job, False

    async def _admit(self, job: StoredJob, written: Coroutine[Any, Any, None]) -> None:
        try:
            await written
        except BaseException as error:
            self._abandon(job, error)
            raise
        self._scheduler.submit(job)

    def _abandon(self, job: StoredJob, error: BaseException) -> None:
        """Forget a job that was not accepted."""
        named = error if isinstance(error, MimicMotionError) else Cancelled("Its upload broke off.")
        self._scheduler.abandon(job, named)
        self._store.discard(job)

    def _job(self, job_id: str) -> StoredJob:
        """Raises `NotFound`, for a job of somebody else as well."""
        job = self._store.get(job_id)
        if not caller().may_see(job.client):
            raise unknown_job(job_id)
        return job

    def _settings(self, message: pb.AnimationSettings) -> Settings:
        """The bundle's settings with those of a call.

        Raises `LimitError` for a size that is too large, `SettingsError` for a LoRA that is not there.
        """
        settings = wire.resolve(self._scheduler.defaults, wire.overrides_from_wire(message))
        check_lora_names(settings.lora, self._config.loras)
        if settings.size is not None:
            pixels = settings.size[0] * settings.size[1]
            check_limit("pixels of a frame", pixels, self._config.limits.output_pixels, field="settings.size")
        return settings


def _page_start(token: str) -> int:
    """Raises `UploadError` for a token that no answer had."""
    if token and not (token.isascii() and token.isdigit() and len(token) < 19):
        raise UploadError(
            f"page_token {token[:40]!r} is not one of this server's.",
            remedy="Give the next_page_token of the page before.",
            field="page_token",
        )
    return int(token or 0)


def _fingerprint(header: pb.AnimationHeader, content: bytes) -> bytes:
    """What must be equal in two requests under one key: the files, and the header without what decides when and how
    it runs."""
    same = pb.AnimationHeader()
    same.CopyFrom(header)
    for name in ("detach", "priority", "deadline_seconds"):
        same.ClearField(name)
    return hashlib.sha256(same.SerializeToString(deterministic=True) + content).digest()
