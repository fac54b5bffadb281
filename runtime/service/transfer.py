"""The files of a job, uploaded in pieces: both ends check every piece."""

from __future__ import annotations

import asyncio
import hashlib
import io
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import (
    Cancelled,
    InputError,
    MotionError,
    PictureError,
    SettingsError,
)
from ..events import CHUNK_BYTES
from ..files import plain_file
from ..limits import Limits, check_limit
from ..pose import PoseSequence
from ..validation import ArrayLike, described, plain_array
from .generated.mimicmotion.v1 import animation_pb2 as pb
from .jobs import StoredJob
from .status import Busy, Late, UploadError
from .tokens import checked_priority
from .wire import MOTION_KINDS, PARTS, SettingsLike, settings_to_wire

LONGEST_KEY = 128
"""Characters of a request_id."""
REFERENCE_POSE_BYTES = 2**20
DRAIN_SECONDS = 3.0
LATEST = 10**8
"""Seconds to the latest deadline: three years."""

Image = str | Path | bytes | ArrayLike
VIDEOS = {
    "auto": pb.MOTION_KIND_VIDEO,
    "video": pb.MOTION_KIND_PERSON_VIDEO,
    "pose-video": pb.MOTION_KIND_POSE_VIDEO,
}
"""What a video shows, as callers say it."""
Motion = str | Path | bytes | PoseSequence | ArrayLike


# ---- an upload, cut by the client ----


class Upload:
    """The messages of one upload; iterate it once. Raises `InputError` at once for what cannot be read."""

    def __init__(
        self,
        image: Image,
        motion: Motion,
        settings: SettingsLike,
        *,
        reference_pose: PoseSequence | None = None,
        motion_kind: str = "auto",
        request_id: str = "",
        detach: bool = False,
        priority: int = 0,
        deadline: float | None = None,
    ) -> None:
        given = settings_to_wire(settings)
        self._files = {"picture": _picture(image), "motion": _motion(motion)}
        if reference_pose is not None:
            self._files["reference_pose"] = io.BytesIO(reference_pose.to_bytes())
        sizes: Any = {f"{name}_bytes": _size(file) for name, file in self._files.items()}
        self._header = pb.AnimationHeader(
            settings=given,
            motion_kind=_kind(self._files["motion"], motion_kind),
            request_id=request_id,
            container=pb.CONTAINER_MP4,
            want_previews=given.preview > 0,
            detach=detach,
            priority=checked_priority(priority),
            deadline_seconds=checked_deadline(deadline),
            **sizes,
        )

    def __iter__(self) -> Iterator[pb.AnimationUpload]:
        with ExitStack() as files:
            opened = {name: files.enter_context(file) for name, file in self._files.items()}
            yield pb.AnimationUpload(header=self._header)
            for name, file in opened.items():  # in the order of `PARTS`
                while data := file.read(CHUNK_BYTES):
                    part: Any = {name: data}
                    yield pb.AnimationUpload(**part)


def _picture(image: Image) -> BinaryIO:
    if isinstance(image, str | Path | bytes):
        return _open(image, PictureError, "image")
    from ..media.picture import encode_picture, read_picture, transparent_png

    if (png := transparent_png(image)) is not None:  # what is behind it is the server's to see
        return io.BytesIO(png)
    return io.BytesIO(encode_picture(read_picture(image)))


def _motion(motion: Motion) -> BinaryIO:
    if isinstance(motion, PoseSequence):
        return io.BytesIO(motion.to_bytes())
    if isinstance(motion, str | Path | bytes):
        return _open(motion, MotionError, "motion")
    pictures = plain_array(motion, MotionError, "motion")
    if not isinstance(pictures, np.ndarray):
        raise MotionError(
            f"the motion is {described(motion)}.",
            remedy="Give a path, bytes, a PoseSequence, or pose pictures uint8 [F,H,W,3].",
            field="motion",
        )
    file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the upload
    np.save(file, pictures, allow_pickle=False)
    file.seek(0)
    return file


def _open(source: str | Path | bytes, kind: type[InputError], field: str) -> BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    named = "picture" if kind is PictureError else "motion"

    def refuse(message: str, remedy: str) -> InputError:
        return kind(message, remedy=remedy, field=field)

    return plain_file(source, named, refuse, f"Give the file of a {named}.").open("rb")


def _kind(file: BinaryIO, shown: str) -> pb.MotionKind.ValueType:
    """By content: zip and JSON hold keypoints, .npy holds pose pictures, all else should be a video.

    `shown`: what a video shows, as in `Animator.animate`. Raises `MotionError`.
    """
    if shown not in VIDEOS:
        raise MotionError(
            f"the kind of a motion cannot be {shown!r}.",
            remedy=f"Choose {', '.join(VIDEOS)}.",
            field="motion_kind",
        )
    start = file.read(64)
    file.seek(0)
    if start.startswith(b"\x93NUMPY"):
        return pb.MOTION_KIND_POSE_PICTURES
    keypoints = start.startswith(b"PK") or start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[")
    return pb.MOTION_KIND_KEYPOINTS if keypoints else VIDEOS[shown]


def _size(file: BinaryIO) -> int:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    return size


def checked_deadline(seconds: float | None) -> float | None:
    """Raises `SettingsError`."""
    if seconds is None:
        return None
    if type(seconds) not in (int, float) or not 0 < seconds <= LATEST:
        raise SettingsError(
            f"deadline is {seconds!r:.40}.",
            remedy=f"Give seconds from now, up to {LATEST}.",
            field="deadline",
        )
    return seconds


# ---- an upload, received by the server ----


class Receiver:
    """Reads the upload of one call; never more than its header declares. Raises `UploadError` for broken rules.

    `read()` gives the call's next message, or `end` after the last one. Each has to come within `patience` seconds,
    and all of them in `patience` and the time that they take at `rate` bytes per second.
    """

    def __init__(self, read: Callable[[], Awaitable[Any]], end: object, patience: float, rate: float) -> None:
        self._read = read
        self._end = end
        self._patience = patience
        self._rate = rate
        self._began = asyncio.get_running_loop().time()
        self._received = 0  # bytes of the files

    async def header(self, limits: Limits) -> pb.AnimationHeader:
        """The checked header; raises `LimitError` for what this host will never take."""
        part = await self._next()
        if part is None or part.WhichOneof("part") != "header":
            raise UploadError("The upload does not begin with its header.", remedy="Send the header first.")
        header = part.header
        if header.motion_kind not in MOTION_KINDS:
            raise UploadError("motion_kind is not known.", remedy="Set it.", field="motion_kind")
        if header.container not in (pb.CONTAINER_UNSPECIFIED, pb.CONTAINER_MP4):
            raise UploadError("container is not known.", remedy="Choose MP4.", field="container")
        if len(header.request_id) > LONGEST_KEY:
            raise UploadError(f"request_id is longer than {LONGEST_KEY} characters.", field="request_id")
        checked_priority(header.priority)
        checked_deadline(header.deadline_seconds if header.HasField("deadline_seconds") else None)
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

    async def files(self, header: pb.AnimationHeader, job: StoredJob) -> bytes:
        """Write the uploaded files into the job's folder; returns the SHA-256 of them all.

        Raises `Cancelled` if the job is not wanted any more.
        """
        digest = hashlib.sha256()
        part = await self._next()
        for name in PARTS:
            declared: int = getattr(header, f"{name}_bytes")
            if declared == 0:
                continue
            with _opened(job.file(name)) as file:
                received = 0
                while received < declared:
                    data = _data(part, name, received, declared)
                    received += len(data)
                    digest.update(data)
                    self._received += len(data)
                    await _write(file, data)
                    part = await self._next()
                    if job.cancel_asked:
                        raise Cancelled("The job was cancelled during its upload.")
        if part is not None:
            raise UploadError(
                f"The upload is complete, but {part.WhichOneof('part') or 'an empty message'} follows.",
                remedy="Send picture, motion and reference pose in this order, with their exact sizes.",
            )
        return digest.digest()

    async def drain(self) -> None:
        """Read what is left of an upload that is refused, for a moment: clients on grpc.aio that are writing when the
        answer comes lose it (its error is "Internal error from Core" then)."""
        with suppress(Exception):  # what refused it is told, whatever else there is
            async with asyncio.timeout(DRAIN_SECONDS):
                while await self._read() is not self._end:
                    pass

    async def _next(self) -> pb.AnimationUpload | None:
        late = self._began + self._patience + self._received / self._rate
        try:
            async with asyncio.timeout_at(min(asyncio.get_running_loop().time() + self._patience, late)):
                request = await self._read()
        except TimeoutError:
            raise Late(
                f"The upload is too slow, or paused for {self._patience:g} s.",
                remedy=f"Send at least {self._rate:,.0f} bytes per second, without pauses, and close the stream.",
            ) from None
        return None if request is self._end else request.upload


def _data(part: pb.AnimationUpload | None, name: str, received: int, declared: int) -> bytes:
    """The next bytes of the file `name`, of which `received` of `declared` are there already."""
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
    if received + len(data) > declared:
        raise UploadError(f"The {name} is larger than its header declares.", field=f"{name}_bytes")
    return data


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("wb", buffering=0)  # an error comes with the write, not when the file is closed
    except OSError as error:
        raise _full(error) from error


async def _write(file: BinaryIO, data: bytes) -> None:
    def write() -> None:
        left = memoryview(data)
        while left:
            left = left[file.write(left) :]

    try:
        await asyncio.to_thread(write)
    except OSError as error:
        raise _full(error) from error


def _full(error: OSError) -> Busy:
    return Busy(f"The server cannot store the upload: {error.strerror}.", retry_after=60.0)
