"""What an animation is made from, opened and checked: the picture, and a motion in any of its forms."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import MotionError, PictureError
from .files import motion_errors, read_head
from .limits import FASTEST_FPS, SLOWEST_FPS, Limits, check_limit
from .media.picture import read_picture
from .pose import PoseSequence, open_estimator
from .pose.estimate import ChoosingEstimator
from .pose.framing import Reference, frame_reference
from .settings import SIZE_MULTIPLE, Framing, Settings
from .validation import described

Picture = NDArray[np.uint8]
Size = tuple[int, int]
"""(width, height)."""
KEYPOINT_SUFFIXES = (".npz", ".json")
PICTURES_FPS = 15.0
"""Frame rate of pose pictures, which state none: the rate at which MimicMotion was trained."""


@dataclass(frozen=True)
class Request:
    """What a caller asks to have animated; see `Animator.animate`."""

    image: Any
    motion: Any
    reference_pose: Any = None
    estimator: str = "mediapipe"


@dataclass(frozen=True)
class AnimationInputs:
    """The checked inputs of one animation."""

    picture: Picture
    """The reference picture as it came, uint8 [H,W,3]."""
    size: Size
    """Of the video."""
    motion: Motion
    reference_pose: PoseSequence | None
    """Of the picture as it came; None: to be estimated."""
    estimator: str
    threads: int | None

    def reference(self, framing: Framing, person: str | None = None) -> Reference:
        """The picture and the pose of the person in it, as they are animated; see `Settings`."""
        pose = self.reference_pose or self._estimate_reference(person)
        return frame_reference(self.picture, pose, self.size, framing)

    def open_estimator(self, person: str | None) -> ChoosingEstimator:
        """The estimator that was asked for, to follow this person."""
        return open_estimator(self.estimator, threads=self.threads, person=person)

    def _estimate_reference(self, person: str | None) -> PoseSequence:
        # In the whole picture, not in the crop: what is around a person helps an estimator to find them.
        estimator = self.open_estimator(person)
        pose = estimator.estimate(self.picture)
        estimator.check_found()
        if not pose.body_score.any():
            raise PictureError(
                "nobody was found in the reference picture.",
                remedy="Give a picture that shows one person, or the person's pose as reference_pose.",
                field="image",
            )
        return pose


def open_inputs(
    request: Request, settings: Settings, limits: Limits, sizes: tuple[Size, ...], threads: int | None
) -> AnimationInputs:
    """Read the picture and the motion's header; raises `InputError`.

    Without `settings.size`, the video has the size of the bundle's `sizes` nearest in shape to the picture.
    """
    picture, pose = read_picture(request.image, limits), request.reference_pose
    if pose is not None and not (isinstance(pose, PoseSequence) and len(pose) == 1):
        kind = type(pose).__name__
        raise MotionError(
            f"the reference pose is {kind}{' of several frames' if kind == 'PoseSequence' else ''}.",
            remedy="Give a PoseSequence of one frame, or None.",
            field="reference_pose",
        )
    size = settings.size or nearest_size((picture.shape[1], picture.shape[0]), sizes)
    check_limit("pixels of the video", size[0] * size[1], limits.output_pixels, field="settings.size")
    motion = open_motion(request.motion, settings, limits)
    return AnimationInputs(picture, size, motion, pose, request.estimator, threads)


def nearest_size(picture: Size, sizes: tuple[Size, ...]) -> Size:
    """The size of `sizes` nearest in shape to the picture's; of equally near ones the widest."""
    shape = np.log(picture[0] / picture[1])
    return min(sizes, key=lambda size: (round(abs(float(np.log(size[0] / size[1]) - shape)), 6), -size[0]))


def check_pose_pictures(pictures: Any, settings: Settings) -> Picture:
    """Pose pictures uint8 [F,H,W,3] of a size that the networks take, or a `MotionError`."""
    if not _are_pictures(pictures):
        raise MotionError(
            f"pose_frames are {described(pictures)}.",
            remedy="Give uint8 [F,H,W,3], the reference's own pose first.",
            field="pose_frames",
        )
    size = (pictures.shape[2], pictures.shape[1])
    if size[0] % SIZE_MULTIPLE or size[1] % SIZE_MULTIPLE or settings.size not in (None, size):
        raise MotionError(
            f"pose_frames are {size[0]}x{size[1]}.",
            remedy=f"Both sides must be multiples of {SIZE_MULTIPLE}, and settings.size the same or None.",
            field="pose_frames",
        )
    return pictures  # type: ignore[no-any-return]


def _are_pictures(value: Any) -> bool:
    array = isinstance(value, np.ndarray)
    return array and value.dtype == np.uint8 and value.ndim == 4 and value.shape[-1] == 3 and value.size > 0


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
        return _from_poses(PoseSequence.load(motion, limits), settings, limits)
    return _from_video(motion, settings, limits)


def is_folder(source: str | Path) -> bool:
    """Whether this is a folder; raises `MotionError` if there is nothing there."""
    with motion_errors(source):
        return stat.S_ISDIR(os.stat(source).st_mode)


def is_keypoints(source: str | Path | bytes) -> bool:
    """Whether this is a keypoint file: by suffix, or by its first bytes (a zip archive or a JSON object)."""
    if not isinstance(source, bytes) and Path(source).suffix.lower() in KEYPOINT_SUFFIXES:
        return True
    head = read_head(source)
    return head.startswith(b"PK\x03\x04") or head.lstrip().startswith(b"{")


def map_pictures(path: Path) -> NDArray[Any]:
    """The array of a .npy file, read as it is used; raises `MotionError`. Its shape is not checked."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # numpy evaluates the header as Python: TokenError, SyntaxError and more
        reason = f": {error!s:.200}" if isinstance(error, ValueError) else ""
        raise MotionError(
            f"the pose pictures are not a .npy file{reason}.",
            remedy="Give uint8 [frames, height, width, 3] as numpy.save writes it.",
            field="motion",
        ) from None


def _sampled_rate(fps: float, stride: int) -> float:
    """Frames per second after a stride; raises `MotionError` where no video can have so many, or so few."""
    if SLOWEST_FPS <= fps / stride <= FASTEST_FPS:
        return fps / stride
    raise MotionError(
        f"the motion has {fps:g} frames per second and a stride of {stride}.",
        remedy=f"A video has {SLOWEST_FPS:g} to {FASTEST_FPS:g} a second; give another motion, or another stride.",
        field="settings.stride" if SLOWEST_FPS <= fps <= FASTEST_FPS else "motion",
    )


def _from_poses(poses: PoseSequence, settings: Settings, limits: Limits) -> Motion:
    _sampled_rate(poses.fps, settings.stride or 1)
    poses = poses.strided(settings.stride or 1)[: settings.frames]
    check_limit("frames of the motion", len(poses), limits.frames, field="motion")
    return Motion(fps=poses.fps, frames=len(poses), poses=poses)


def _from_array(pictures: NDArray[Any], settings: Settings, limits: Limits) -> Motion:
    if not _are_pictures(pictures):
        raise MotionError(
            f"pose pictures are {pictures.dtype}{list(pictures.shape)}.",
            remedy="Give uint8 [F,H,W,3] with at least one frame.",
            field="motion",
        )
    stride = settings.stride or 1
    chosen = pictures[::stride][: settings.frames]
    check_limit("frames of the motion", len(chosen), limits.frames, field="motion")
    return Motion(fps=_sampled_rate(PICTURES_FPS, stride), frames=len(chosen), pictures=lambda: iter(chosen))


def _from_folder(folder: Path, settings: Settings, limits: Limits) -> Motion:
    from .media.picture import list_pictures, read_pictures

    stride = settings.stride or 1
    paths = list_pictures(folder)[::stride][: settings.frames]
    check_limit("frames of the motion", len(paths), limits.frames, field="motion")
    fps = _sampled_rate(PICTURES_FPS, stride)
    return Motion(fps=fps, frames=len(paths), pictures=lambda: read_pictures(paths, limits))


def _from_video(source: str | Path | bytes, settings: Settings, limits: Limits) -> Motion:
    from .media.reader import VideoReader

    reader = VideoReader(source, limits)
    stride = settings.stride or reference_stride(reader.fps)
    count = -(-(reader.frame_count or 0) // stride)
    fps = _sampled_rate(reader.fps, stride)
    if settings.frames is not None:
        count = min(count, settings.frames)
    else:
        check_limit("frames of the motion", count, limits.frames, field="motion")

    def frames() -> Iterator[Picture]:
        for index, (_, frame) in enumerate(reader.frames(stride, settings.frames)):
            check_limit("frames of the motion", index + 1, limits.frames, field="motion")
            yield frame

    return Motion(fps=fps, frames=count, video=frames, audio=source if reader.has_audio else None)


def reference_stride(fps: float) -> int:
    """Every how many frames of a driving video the reference implementation takes: about 15 a second."""
    return 2 * max(1, int(fps / 24))


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
