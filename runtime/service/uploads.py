"""Receiving an upload: header first, then files in order, straight to disk and never more than declared."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import BinaryIO, Protocol

from ..events import CHUNK_BYTES
from ..limits import Limits, check_limit
from .faults import Busy, Late, UploadError
from .generated.mimicmotion.v1 import animation_pb2 as pb
from .jobs import StoredJob
from .wire import MOTION_KINDS, PARTS

LONGEST_KEY = 128
REFERENCE_POSE_BYTES = 2**20

Next = Callable[[], Awaitable[pb.AnimationUpload | None]]
"""Gives the next message of an upload, None at its end."""


class _Request(Protocol):
    @property
    def upload(self) -> pb.AnimationUpload: ...


def reader(read: Callable[[], Awaitable[_Request | object]], end: object, patience: float) -> Next:
    """`Next` over a call's `read`, which gives `end` at the end; `Late` after `patience` silent seconds."""

    async def read_next() -> pb.AnimationUpload | None:
        try:
            async with asyncio.timeout(patience):
                request = await read()
        except TimeoutError:
            raise Late(
                f"Nothing was received for {patience:g} s in the middle of an upload.",
                remedy="Send the upload without pauses and close its stream.",
            ) from None
        return None if request is end else request.upload  # type: ignore[union-attr]

    return read_next


async def receive_header(next_part: Next, limits: Limits) -> pb.AnimationHeader:
    """The checked header; raises `UploadError`, or `LimitError` for what this host will never take."""
    part = await next_part()
    if part is None or part.WhichOneof("part") != "header":
        raise UploadError("The upload does not begin with its header.", remedy="Send the header first.")
    header = part.header
    if header.motion_kind not in MOTION_KINDS:
        raise UploadError("motion_kind is not known.", remedy="Set it.", field="motion_kind")
    if header.container not in (pb.CONTAINER_UNSPECIFIED, pb.CONTAINER_MP4):
        raise UploadError("container is not known.", remedy="Choose MP4.", field="container")
    if len(header.request_id) > LONGEST_KEY:
        raise UploadError(f"request_id is longer than {LONGEST_KEY} characters.", field="request_id")
    for name, most, least in (
        ("picture", limits.picture_bytes, 1),
        ("motion", limits.motion_bytes, 1),
        ("reference_pose", REFERENCE_POSE_BYTES, 0),
    ):
        size = getattr(header, f"{name}_bytes")
        if size < least:
            raise UploadError(f"{name}_bytes is {size}.", remedy="State the size.", field=f"{name}_bytes")
        check_limit(f"bytes of the {name}", size, most, field="image" if name == "picture" else name)
    return header


def check_output(size: tuple[int, int] | None, limits: Limits) -> None:
    """Raise `LimitError` if a video of this (width, height) is larger than allowed."""
    if size is not None:
        check_limit("pixels of a frame", size[0] * size[1], limits.output_pixels, field="settings.size")


async def receive_files(
    next_part: Next, header: pb.AnimationHeader, job: StoredJob, stopped: Callable[[], None]
) -> None:
    """Write the uploaded files beside `job`; raises `UploadError` where they break the rules.

    `stopped()` is called before every message and may raise.
    """
    part = await next_part()
    for name in PARTS:
        declared: int = getattr(header, f"{name}_bytes")
        if declared == 0:
            continue
        with job.file(name).open("wb") as file:
            part = await _receive_file(next_part, part, name, declared, file, stopped)
    if part is not None:
        raise UploadError(
            f"The upload is complete, but {part.WhichOneof('part') or 'an empty message'} follows.",
            remedy="Send picture, motion and reference pose in this order, with their exact sizes.",
        )


async def _receive_file(
    next_part: Next,
    part: pb.AnimationUpload | None,
    name: str,
    declared: int,
    file: BinaryIO,
    stopped: Callable[[], None],
) -> pb.AnimationUpload | None:
    """Take the parts called `name`, beginning with `part`; returns the first part after them."""
    received = 0
    while received < declared:
        stopped()
        if part is None or part.WhichOneof("part") != name:
            found = "ends" if part is None else f"goes on with {part.WhichOneof('part') or 'nothing'}"
            raise UploadError(
                f"The upload {found} after {received:,} of {declared:,} bytes of the {name}.",
                remedy="Send exactly what the header declares, in order.",
                field=f"{name}_bytes",
            )
        data: bytes = getattr(part, name)
        if not 0 < len(data) <= CHUNK_BYTES:
            raise UploadError(
                f"A chunk of the {name} has {len(data):,} bytes.",
                remedy=f"Send 1 to {CHUNK_BYTES:,} bytes at a time.",
                field=name,
            )
        received += len(data)
        if received > declared:
            raise UploadError(f"The {name} is larger than its header declares.", field=f"{name}_bytes")
        await _write(file, data)
        part = await next_part()
    return part


async def _write(file: BinaryIO, data: bytes) -> None:
    try:
        await asyncio.to_thread(file.write, data)
    except OSError as error:
        raise Busy(f"The server's disk is full: {error.strerror}.", retry_after=60.0) from error
