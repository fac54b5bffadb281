"""A motion in any of its forms, as a stream of poses or of pose pictures."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import MotionError
from .limits import Limits, check_limit
from .pose import PoseSequence, open_estimator
from .settings import SIZE_MULTIPLE, Settings

Picture = NDArray[np.uint8]
KEYPOINT_SUFFIXES = (".npz", ".json")
PICTURES_FPS = 15.0
"""Frame rate of pose pictures, which state none: the rate at which MimicMotion was trained."""


@dataclass(frozen=True)
class Motion:
    """One of `poses`, `pictures` or `video`, sampled by the settings' stride and length."""

    fps: float
    """Frames per second after the stride."""
    frames: int
    """Driving frames; 0 if only reading the video will tell."""
    poses: PoseSequence | None = None
    pictures: Callable[[], Iterator[Picture]] | None = None
    """Pose pictures uint8 [H,W,3], one by one."""
    video: Callable[[], Iterator[Picture]] | None = None
    """Frames to find poses in."""
    audio: str | Path | bytes | None = None
    """What the sound comes from."""
    close: Callable[[], None] = field(default=lambda: None)


def open_motion(motion: Any, settings: Settings, limits: Limits) -> Motion:
    """Recognise a motion: keypoints, a video, a folder or an array of pose pictures. Raises `MotionError`.

    Files are told apart by their first bytes, not by their names.
    """
    if isinstance(motion, PoseSequence):
        return _from_poses(motion, settings, limits)
    if isinstance(motion, np.ndarray):
        return _from_array(motion, settings, limits)
    if not isinstance(motion, str | Path | bytes):
        raise MotionError(
            f"a motion cannot be {type(motion).__name__}.",
            remedy="Give a path, a PoseSequence, or pose pictures uint8 [F,H,W,3].",
            field="motion",
        )
    if not isinstance(motion, bytes) and is_folder(motion):
        return _from_folder(Path(motion), settings, limits)
    if is_keypoints(motion):
        return _from_poses(PoseSequence.load(motion), settings, limits)
    return _from_video(motion, settings, limits)


def is_folder(source: str | Path) -> bool:
    """Whether this is a folder; raises `MotionError` if there is nothing there."""
    try:
        return stat.S_ISDIR(os.stat(source).st_mode)
    except (OSError, ValueError) as error:
        raise _unreadable(source, error) from None


def is_keypoints(source: str | Path | bytes) -> bool:
    """Whether this is a keypoint file: by suffix, or by its first bytes (a zip archive or a JSON object)."""
    if isinstance(source, bytes):
        head = source[:64]
    else:
        if Path(source).suffix.lower() in KEYPOINT_SUFFIXES:
            return True
        try:
            with open(source, "rb") as stream:
                head = stream.read(64)
        except (OSError, ValueError) as error:
            raise _unreadable(source, error) from None
    return head.startswith(b"PK\x03\x04") or head.lstrip().startswith(b"{")


def _unreadable(source: str | Path, error: OSError | ValueError) -> MotionError:
    return MotionError(
        f"{str(source)!r:.200} cannot be read: {getattr(error, 'strerror', None) or error}.",
        remedy="Check the path.",
        field="motion",
    )


def _from_poses(poses: PoseSequence, settings: Settings, limits: Limits) -> Motion:
    poses = poses.strided(settings.stride or 1)[: settings.frames]
    check_limit("frames of the motion", len(poses), limits.frames, field="motion")
    return Motion(fps=poses.fps, frames=len(poses), poses=poses)


def _from_array(pictures: NDArray[Any], settings: Settings, limits: Limits) -> Motion:
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[-1] != 3 or not pictures.size:
        raise MotionError(
            f"pose pictures are {pictures.dtype}{list(pictures.shape)}.",
            remedy="Give uint8 [F,H,W,3] with at least one frame.",
            field="motion",
        )
    stride = settings.stride or 1
    chosen = pictures[::stride][: settings.frames]
    check_limit("frames of the motion", len(chosen), limits.frames, field="motion")
    return Motion(fps=PICTURES_FPS / stride, frames=len(chosen), pictures=lambda: iter(chosen))


def _from_folder(folder: Path, settings: Settings, limits: Limits) -> Motion:
    from .media.picture import list_pictures, read_pictures

    stride = settings.stride or 1
    count = len(list_pictures(folder)[::stride][: settings.frames])
    check_limit("frames of the motion", count, limits.frames, field="motion")

    def pictures() -> Iterator[Picture]:
        for index, picture in enumerate(read_pictures(folder, limits)):
            if index >= count * stride:
                return
            if index % stride == 0:
                yield picture

    return Motion(fps=PICTURES_FPS / stride, frames=count, pictures=pictures)


def _from_video(source: str | Path | bytes, settings: Settings, limits: Limits) -> Motion:
    from .media.reader import VideoReader

    reader = VideoReader(source, limits)
    stride = settings.stride or reference_stride(reader.fps)
    count = -(-(reader.frame_count or 0) // stride)
    if settings.frames is not None:
        count = min(count, settings.frames)
    else:
        check_limit("frames of the motion", count, limits.frames, field="motion")

    def frames() -> Iterator[Picture]:
        for index, (_, frame) in enumerate(reader.frames(stride, settings.frames)):
            check_limit("frames of the motion", index + 1, limits.frames, field="motion")
            yield frame

    return Motion(
        fps=reader.fps / stride,
        frames=count,
        video=frames,
        audio=source if reader.has_audio else None,
        close=reader.close,
    )


def reference_stride(fps: float) -> int:
    """Every how many frames of a driving video the reference implementation takes: about 15 a second."""
    return 2 * max(1, int(fps / 24))


def estimate(
    motion: Motion, name: str, threads: int | None, checked: Callable[[], None]
) -> Iterator[tuple[int, PoseSequence]]:
    """Poses of a video motion, frame by frame as (frames done, pose); `checked` may raise between frames."""
    assert motion.video is not None
    estimator = open_estimator(name, threads=threads)
    for done, frame in enumerate(motion.video(), 1):
        checked()
        yield done, estimator.estimate(frame)


def sized_pictures(pictures: Iterator[Picture], width: int, height: int) -> Iterator[Picture]:
    """Pose pictures, each checked to be uint8 [height,width,3]."""
    for index, picture in enumerate(pictures):
        if picture.shape != (height, width, 3):
            raise MotionError(
                f"pose picture {index} is {picture.shape[1]}x{picture.shape[0]}, the video {width}x{height}.",
                remedy=f"Draw pose pictures of the video's own size (multiples of {SIZE_MULTIPLE}).",
                field="motion",
            )
        yield picture
