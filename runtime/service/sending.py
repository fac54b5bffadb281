"""The client's half of an upload: whatever the user gave, as files of known size, cut into messages."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import MotionError, PictureError
from ..events import CHUNK_BYTES
from ..pose import PoseSequence
from ..settings import Settings
from .generated.mimicmotion.v1 import animation_pb2 as pb
from .wire import PARTS, settings_to_wire

Image = str | Path | bytes | NDArray[np.uint8]
Motion = str | Path | bytes | PoseSequence | NDArray[np.uint8]


class Upload:
    """Opens its inputs at once, so that a missing file is an error where it was named; iterate it once."""

    def __init__(
        self,
        image: Image,
        motion: Motion,
        settings: Settings | Mapping[str, Any] | None,
        *,
        reference_pose: PoseSequence | None = None,
        request_id: str = "",
        detach: bool = False,
    ) -> None:
        # A mapping only overrides what it names; checking it here gives the error before anything is sent.
        given = Settings() if settings is None else settings
        checked = given if isinstance(given, Settings) else Settings.from_dict(given)
        with ExitStack() as files:
            opened = {"picture": _picture(image), "motion": _motion(motion)}
            if reference_pose is not None:
                opened["reference_pose"] = io.BytesIO(_pack(reference_pose))
            for file in opened.values():
                files.enter_context(file)
            self._kept = files.pop_all()
        self._files = opened
        self._header = pb.AnimationHeader(
            settings=settings_to_wire({} if settings is None else _plain(settings)),
            motion_kind=_kind(opened["motion"]),
            request_id=request_id,
            container=pb.CONTAINER_MP4,
            want_previews=checked.preview > 0,
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


def _plain(settings: Settings | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(settings, Settings):
        return settings.to_dict()
    checked = Settings.from_dict(settings).to_dict()  # also makes a pair of a single guidance scale
    return {name: checked[name] for name in settings}


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
        from ..media import encode_picture

        return io.BytesIO(encode_picture(image))
    try:
        return Path(image).open("rb")
    except (OSError, TypeError, ValueError) as error:
        raise PictureError(f"{image} cannot be read: {error}.", remedy="Check it.", field="image") from error


def _motion(motion: Motion) -> BinaryIO:
    if isinstance(motion, bytes):
        return io.BytesIO(motion)
    if isinstance(motion, PoseSequence):
        return io.BytesIO(_pack(motion))
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


def _pack(sequence: PoseSequence) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "poses.npz"
        sequence.save(path)
        return path.read_bytes()


def _size(file: BinaryIO) -> int:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    return size
