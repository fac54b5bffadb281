"""An upload: header first, then files in order and in chunks. The client's half cuts, the server's receives."""

from __future__ import annotations

import asyncio
import io
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import Cancelled, MotionError, PictureError
from ..events import CHUNK_BYTES
from ..limits import Limits, check_limit
from ..pose import PoseSequence
from .generated.mimicmotion.v1 import animation_pb2 as pb
from .jobs import StoredJob
from .status import Busy, Late, UploadError
from .wire import MOTION_KINDS, PARTS, SettingsLike, settings_to_wire

LONGEST_KEY = 128
"""Characters of a request_id."""
REFERENCE_POSE_BYTES = 2**20

Image = str | Path | bytes | NDArray[np.uint8]
Motion = str | Path | bytes | PoseSequence | NDArray[np.uint8]


# ---- the client's half ----


class Upload:
    """The messages of one upload; iterate it once. Raises `InputError` at once for what cannot be read."""

    def __init__(
        self,
        image: Image,
        motion: Motion,
        settings: SettingsLike,
        *,
        reference_pose: PoseSequence | None = None,
        request_id: str = "",
        detach: bool = False,
    ) -> None:
        given = settings_to_wire(settings)
        with ExitStack() as files:
            opened = {"picture": _picture(image), "motion": _motion(motion)}
            if reference_pose is not None:
                opened["reference_pose"] = io.BytesIO(reference_pose.to_bytes())
            for file in opened.values():
                files.enter_context(file)
            self._kept = files.pop_all()
        self._files = opened
        self._header = pb.AnimationHeader(
            settings=given,
            motion_kind=_kind(opened["motion"]),
            request_id=request_id,
            container=pb.CONTAINER_MP4,
            want_previews=given.preview > 0,
            picture_bytes=_size(opened["picture"]),
            motion_bytes=_size(opened["motion"]),
            reference_pose_bytes=_size(opened["reference_pose"]) if reference_pose is not None else 0,
            detach=detach,
        )

    def __iter__(self) -> Iterator[pb.AnimationUpload]:
        with self._kept:
            yield pb.AnimationUpload(header=self._header)
            for name in PARTS:
                while name in self._files and (data := self._files[name].read(CHUNK_BYTES)):
                    part: Any = {name: data}
                    yield pb.AnimationUpload(**part)


def _picture(image: Image) -> BinaryIO:
    if isinstance(image, bytes):
        return io.BytesIO(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise PictureError(
                f"The picture is an array of {image.dtype} {list(image.shape)}.",
                remedy="Give uint8 [H,W,3] in RGB order.",
                field="image",
            )
        from ..media.picture import encode_picture

        return io.BytesIO(encode_picture(image))
    try:
        return Path(image).open("rb")
    except (OSError, TypeError, ValueError) as error:
        raise PictureError(f"{image} cannot be read: {error}.", remedy="Check it.", field="image") from error


def _motion(motion: Motion) -> BinaryIO:
    if isinstance(motion, bytes):
        return io.BytesIO(motion)
    if isinstance(motion, PoseSequence):
        return io.BytesIO(motion.to_bytes())
    if isinstance(motion, np.ndarray):
        file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the upload
        np.save(file, motion, allow_pickle=False)
        file.seek(0)
        return file
    try:
        return Path(motion).open("rb")
    except (OSError, TypeError, ValueError) as error:
        raise MotionError(f"{motion} cannot be read: {error}.", remedy="Check it.", field="motion") from error


def _kind(file: BinaryIO) -> pb.MotionKind.ValueType:
    """By content: zip and JSON hold keypoints, .npy holds pose pictures, all else should be a video."""
    start = file.read(64)
    file.seek(0)
    if start.startswith(b"\x93NUMPY"):
        return pb.MOTION_KIND_POSE_PICTURES
    keypoints = start.startswith(b"PK") or start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{"
    return pb.MOTION_KIND_KEYPOINTS if keypoints else pb.MOTION_KIND_VIDEO


def _size(file: BinaryIO) -> int:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    return size


# ---- the server's half ----


class Receiver:
    """Reads the upload of one call; never more than its header declares. Raises `UploadError` for broken rules.

    `read()` gives the call's next message, or `end` after the last one; `Late` is raised after `patience` seconds
    without any.
    """

    def __init__(self, read: Callable[[], Awaitable[Any]], end: object, patience: float) -> None:
        self._read = read
        self._end = end
        self._patience = patience

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

    async def files(self, header: pb.AnimationHeader, job: StoredJob) -> None:
        """Write the uploaded files into the job's folder; raises `Cancelled` if the job is not wanted any more."""
        part = await self._next()
        for name in PARTS:
            declared: int = getattr(header, f"{name}_bytes")
            if declared == 0:
                continue
            with job.file(name).open("wb") as file:
                received = 0
                while received < declared:
                    data = _data(part, name, received, declared)
                    received += len(data)
                    await _write(file, data)
                    part = await self._next()
                    if job.cancel_asked:
                        raise Cancelled("The job was cancelled during its upload.")
        if part is not None:
            raise UploadError(
                f"The upload is complete, but {part.WhichOneof('part') or 'an empty message'} follows.",
                remedy="Send picture, motion and reference pose in this order, with their exact sizes.",
            )

    async def _next(self) -> pb.AnimationUpload | None:
        try:
            async with asyncio.timeout(self._patience):
                request = await self._read()
        except TimeoutError:
            raise Late(
                f"Nothing was received for {self._patience:g} s in the middle of an upload.",
                remedy="Send the upload without pauses and close its stream.",
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


async def _write(file: BinaryIO, data: bytes) -> None:
    try:
        await asyncio.to_thread(file.write, data)
    except OSError as error:
        raise Busy(f"The server's disk is full: {error.strerror}.", retry_after=60.0) from error


def check_output(size: tuple[int, int] | None, limits: Limits) -> None:
    """Raise `LimitError` if a video of this (width, height) is larger than allowed."""
    if size is not None:
        check_limit("pixels of a frame", size[0] * size[1], limits.output_pixels, field="settings.size")
