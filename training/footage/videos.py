"""The recordings in a folder: video files, and folders of numbered frames."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError, MotionError, PictureError
from ...limits import Limits
from ...media.picture import PICTURE_SUFFIXES, list_pictures, read_picture
from ...media.reader import VideoReader

Picture = NDArray[np.uint8]

VIDEO_SUFFIXES = (
    ".asf", ".avi", ".flv", ".gif", ".ivf", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mxf", ".ogv",
    ".ts", ".webm", ".wmv", ".y4m",
)  # fmt: skip
ASIDE = ("mask", "masks", "densepose", "depth", "pose", "poses", "skeleton", "segmentation")
"""Folders of pictures with these names lie beside the frames and hold no frames."""
_LIMITS = Limits(motion_bytes=2**62)  # recordings are one's own and may be long
_NEARLY_WHOLE = 0.02


@dataclass(frozen=True, slots=True)
class Video:
    """A video file, or a folder of frames."""

    path: Path
    name: str
    """The path below the folder that was searched."""
    is_folder: bool

    def pictures(self) -> list[Path]:
        """The frames of a folder in natural order, without other pictures beside them such as a cover."""
        return [path for path in list_pictures(self.path) if _is_frame(path.name)]

    def digest(self) -> str:
        """24 hexadecimal digits that stand for the content; raises `MotionError` if it cannot be read."""
        files = self.pictures() if self.is_folder else [self.path]
        total = hashlib.blake2b(digest_size=12)
        try:
            for file in files:
                with file.open("rb") as stream:
                    total.update(hashlib.file_digest(stream, "blake2b").digest())
        except OSError as error:
            raise MotionError(f"{self.name} cannot be read: {error.strerror or error}.") from error
        return total.hexdigest()


def find_videos(folder: Path, besides: Path) -> list[Video]:
    """All recordings below `folder` in the order of their names, without hidden ones and those in `besides`.

    A folder with two or more pictures whose names contain a number is one recording; a video file instead of a
    folder is the only one. Raises `InputError` if there are none.
    """
    if folder.is_file() and folder.suffix.lower() in VIDEO_SUFFIXES:
        return [Video(folder, folder.name, False)]
    if not folder.is_dir():
        raise InputError(
            f"{folder} is neither a folder nor a video.",
            remedy="Give the folder of the videos, or one of them.",
        )
    found: list[Video] = []
    for place, folders, files in os.walk(folder, followlinks=True):
        here = Path(place)
        below = [name for name in folders if (here / name).resolve() != besides.resolve()]
        folders[:] = [name for name in below if not name.startswith(".")]
        names = [name for name in files if not name.startswith(".")]
        for name in names:
            if Path(name).suffix.lower() in VIDEO_SUFFIXES:
                found.append(Video(here / name, (here / name).relative_to(folder).as_posix(), False))
        if here.name.lower() not in ASIDE and sum(map(_is_frame, names)) >= 2:
            found.append(Video(here, here.relative_to(folder).as_posix(), True))
    if not found:
        raise InputError(
            f"{folder} holds neither videos nor folders of numbered frames.",
            remedy=f"Video files end in {', '.join(VIDEO_SUFFIXES)}.",
        )
    return sorted(found, key=lambda video: video.name)


@contextmanager
def open_frames(video: Video, fps: float, frames_fps: float) -> Iterator[tuple[float, Iterator[Picture]]]:
    """(frames per second, frames uint8 [H,W,3] RGB) of a recording at about `fps`, or at its own lower rate.

    `frames_fps` is the rate of folders of frames. Raises `MotionError` or `LimitError`, also while frames are read.
    """
    if video.is_folder:
        stride, rest = _strides(frames_fps / fps)
        frames = (f for i, f in enumerate(_read(video.pictures())) if i % stride == 0)
        yield frames_fps / stride / rest, _thinned(frames, rest)
        return
    reader = VideoReader(video.path, _LIMITS)
    stride, rest = _strides(reader.fps / fps)
    yield reader.fps / stride / rest, _thinned((f for _, f in reader.frames(stride)), rest)


def _read(paths: list[Path]) -> Iterator[Picture]:
    size: tuple[int, ...] = ()
    for path in paths:
        try:
            picture = read_picture(path, _LIMITS)
        except PictureError as error:
            raise MotionError(error.message, remedy=error.remedy, field="videos") from error
        size = size or picture.shape
        if picture.shape != size:
            raise MotionError(f"{path.name} has another size than {paths[0].name}.", field="videos")
        yield picture


def _strides(step: float) -> tuple[int, float]:
    """A whole stride, and what is left of `step` after it (1 or more)."""
    whole = max(1, round(step))
    if abs(step - whole) < _NEARLY_WHOLE * whole or step < 1:
        return whole, 1.0
    return 1, step


def _thinned(frames: Iterable[Picture], step: float) -> Iterator[Picture]:
    """The frames nearest to the multiples of `step`."""
    taken = 0
    for index, frame in enumerate(frames):
        if index == math.floor(taken * step + 0.5):
            taken += 1
            yield frame


def _is_frame(name: str) -> bool:
    path = Path(name)
    return path.suffix.lower() in PICTURE_SUFFIXES and any(letter.isdigit() for letter in path.stem)
