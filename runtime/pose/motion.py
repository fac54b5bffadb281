"""A motion in any of its forms: keypoints, a driving video, pose pictures, or several files in a row."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import MotionError
from ..files import motion_errors, read_head
from ..limits import Limits
from ..media.picture import fit_picture
from ..settings import PARTS, Settings, driver_of
from ..validation import ArrayLike, described, plain_array
from .formats import read_files, wholebody_sequence
from .sampling import Sampling, sample
from .sequence import PoseSequence, read_json

Picture = NDArray[np.uint8]
SoundFile = str | Path | bytes
Sound = SoundFile | Sequence[tuple[SoundFile, float]]
MotionLike = str | Path | bytes | PoseSequence | ArrayLike | Sequence[Any]
"""A file or folder, the bytes of a file, keypoints, pose pictures uint8 [F,H,W,3], or several of these in a row."""
MotionKind = Literal["auto", "video", "pose-video"]
MOTION_KINDS: tuple[MotionKind, ...] = ("auto", "video", "pose-video")
KEYPOINT_SUFFIXES = (".npz", ".json")
PICTURES_FPS = 15.0
"""Frame rate of pose pictures, which state none: the rate at which MimicMotion was trained."""
NOTHING = Sampling((), rate=1.0, begin=0.0, fps=1.0, frames=0)
MANY = 2**40
_LOOKED_AT = 8
"""Frames that tell whether a video shows skeletons."""


@dataclass(frozen=True)
class Motion:
    """One of `poses`, `pictures` or `video`, sampled as settings say."""

    sampling: Sampling
    """Which frames are taken; `poses`, `pictures` and `video` hold these."""
    poses: PoseSequence | None = None
    pictures: Callable[[], Iterator[Picture]] | None = None
    """Pose pictures uint8 [H,W,3], one by one."""
    exact: bool = False
    """They must have the size of the video; others are fitted to it."""
    video: Callable[[], Iterator[Picture]] | None = None
    """Frames to find poses in."""
    audio: Sound | None = None
    """What the sound comes from, with the seconds of the video at which each begins, if that is not 0."""

    @property
    def fps(self) -> float:
        """Frames of the finished video a second."""
        return self.sampling.fps

    @property
    def frames(self) -> int:
        """Of the finished video."""
        return self.sampling.frames


def open_motion(motion: Any, settings: Settings, limits: Limits, kind: MotionKind = "auto") -> Motion:
    """Recognise a motion: keypoints, a video, a folder or an array of pose pictures, or a list of files in a row.

    Files are told apart by their first bytes, not by their names; a video of skeletons by its first frames, unless
    `kind` says what it is. Raises `MotionError`.
    """
    if kind not in MOTION_KINDS:
        raise MotionError(
            f"the kind of a motion cannot be {kind!r}.",
            remedy=f"Choose {', '.join(MOTION_KINDS)}.",
            field="motion_kind",
        )
    if isinstance(motion, PoseSequence):
        return _from_poses(motion, settings, limits)
    if not isinstance(motion, str | Path | bytes | list | tuple):
        motion = plain_array(motion, MotionError, "motion")
    if isinstance(motion, np.ndarray):
        return _from_array(motion, settings, limits)
    if isinstance(motion, list | tuple):
        if not motion:
            raise MotionError("the list of motions is empty.", remedy="Give one at least.", field="motion")
        if len(motion) > 1:
            return _in_a_row(motion, settings, limits, kind)
        motion = motion[0]
    if not isinstance(motion, str | Path | bytes):
        raise MotionError(
            f"the motion is {described(motion)}.",
            remedy="Give a path, a PoseSequence, or pose pictures uint8 [F,H,W,3].",
            field="motion",
        )
    if not isinstance(motion, bytes) and is_folder(motion):
        return _from_folder(Path(motion), settings, limits)
    if is_keypoints(motion):
        return _from_poses(PoseSequence.load(motion, limits, driver_of(settings)), settings, limits)
    named_npy = not isinstance(motion, bytes) and Path(motion).suffix.lower() == ".npy"
    if named_npy or read_head(motion).startswith(b"\x93NUMPY"):
        array = map_pictures(motion)
        if array.dtype.kind == "f":
            name = "the motion" if isinstance(motion, bytes) else Path(motion).name
            return _from_poses(wholebody_sequence(np.asarray(array), name), settings, limits)
        return _from_array(array, settings, limits)
    return _from_video(motion, settings, limits, kind)


def is_folder(source: str | Path) -> bool:
    """Whether this is a folder; raises `MotionError` if there is nothing there."""
    with motion_errors(source):
        return stat.S_ISDIR(os.stat(source).st_mode)


def is_keypoints(source: str | Path | bytes) -> bool:
    """Whether this is a keypoint file: by suffix, or by its first bytes (a zip archive or a JSON object)."""
    if not isinstance(source, bytes) and Path(source).suffix.lower() in KEYPOINT_SUFFIXES:
        return True
    head = read_head(source)
    return head.startswith(b"PK\x03\x04") or head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[")


def map_pictures(file: SoundFile) -> NDArray[Any]:
    """The array of a .npy file, read as it is used; raises `MotionError`. Its shape is not checked."""
    try:
        if isinstance(file, bytes):
            array: NDArray[Any] = np.lib.format.read_array(io.BytesIO(file), allow_pickle=False)
            return array
        return np.lib.format.open_memmap(file, mode="r")
    except Exception as error:  # numpy evaluates the header as Python: TokenError, SyntaxError and more
        if "greater than file size" in str(error) or "EOF" in str(error):
            raise MotionError(
                "the .npy file of pose pictures is truncated.", remedy="Copy it again.", field="motion"
            ) from None
        reason = f": {str(error).rstrip('.'):.200}" if isinstance(error, ValueError) else ""
        raise MotionError(
            f"the pose pictures are not a .npy file{reason}.",
            remedy="Give uint8 [frames, height, width, 3] as numpy.save writes it.",
            field="motion",
        ) from None


def _from_poses(poses: PoseSequence, settings: Settings, limits: Limits) -> Motion:
    sampling = sample(len(poses), poses.fps, settings, limits)
    taken = replace(poses.take(sampling.taken), fps=sampling.rate)
    return Motion(sampling, poses=taken)


def _from_array(pictures: NDArray[Any], settings: Settings, limits: Limits) -> Motion:
    if not are_pictures(pictures):
        raise MotionError(
            f"pose pictures are {pictures.dtype}{list(pictures.shape)}.",
            remedy="Give uint8 [F,H,W,3] with at least one frame.",
            field="motion",
        )
    sampling = _sample_pictures(len(pictures), PICTURES_FPS, settings, limits)
    return Motion(sampling, pictures=lambda: (pictures[index] for index in sampling.taken), exact=True)


def _sample_pictures(
    count: int, rate: float, settings: Settings, limits: Limits, stride: int = 1
) -> Sampling:
    """The sampling of pose pictures, between which nothing can be interpolated; raises `MotionError` as well."""
    sampling = sample(count, rate, settings, limits, stride)
    if sampling.interpolates:
        raise MotionError(
            f"fps is {sampling.fps:g}, and the motion is {sampling.rate:g} pose pictures a second.",
            remedy="Choose no more than that, or give a video of a person, or keypoints.",
            field="settings.fps",
        )
    return sampling


def _from_folder(folder: Path, settings: Settings, limits: Limits) -> Motion:
    """Pose pictures, or OpenPose's files of keypoints, one a frame."""
    from ..media.picture import list_pictures, read_pictures

    if any(folder.glob("[!.]*.json")):
        return _from_poses(folder_of_keypoints(folder, limits, driver_of(settings)), settings, limits)
    paths = list_pictures(folder)
    sampling = _sample_pictures(len(paths), PICTURES_FPS, settings, limits)
    taken = [paths[index] for index in sampling.taken]
    return Motion(sampling, pictures=lambda: read_pictures(taken, limits, over="black"))


def folder_of_keypoints(folder: Path, limits: Limits, person: str | None = None) -> PoseSequence:
    """Files of keypoints in their natural order, as one sequence; raises `MotionError` if there are none.

    `person` says whom of several people, as `Settings.driver`.
    """
    from ..media.picture import natural_order

    paths = sorted(folder.glob("[!.]*.json"), key=natural_order)
    if not paths:
        raise MotionError(f"{folder} holds no keypoints (.json).", remedy="Check the path.", field="motion")
    files = [read_json(path, limits) for path in paths]
    if not any(isinstance(values, dict) and "format" in values for values in files):
        return read_files(files, folder.name, person)
    frames = [PoseSequence.load(path, limits) for path in paths]
    return PoseSequence.concat(resized(replace(frame, fps=frames[0].fps), frames[0].size) for frame in frames)


def _from_video(source: SoundFile, settings: Settings, limits: Limits, kind: MotionKind) -> Motion:
    from ..media.animated import open_video

    reader = open_video(source, limits)
    if kind == "auto":
        skeletons = shows_skeletons(frame for _, frame in reader.frames(limit=_LOOKED_AT))
    else:
        skeletons = kind == "pose-video"
    made = _sample_pictures if skeletons else sample
    sampling = made(reader.frame_count or 0, reader.fps, settings, limits, reference_stride(reader.fps))

    def frames() -> Iterator[Picture]:
        return (frame for _, frame in reader.pick(sampling.taken))

    audio: Sound | None = source if reader.has_audio else None
    if audio is not None and sampling.begin:
        audio = [(source, -sampling.begin)]
    motion = Motion(sampling, audio=audio)
    return replace(motion, pictures=frames) if skeletons else replace(motion, video=frames)


def _in_a_row(motions: Sequence[Any], settings: Settings, limits: Limits, kind: MotionKind) -> Motion:
    """Several motions one after another, at the rate of the first; all of one kind.

    Each is thinned by the stride for itself; what cuts and samples a motion then applies to all in a row.
    """
    stride = 1 if settings.stride is None and settings.fps is not None else settings.stride
    whole = replace(settings, start=0.0, end=None, fps=None, frames=None, stride=stride)
    unlimited = replace(limits, frames=MANY)  # of each: what is taken of all together counts
    parts = [open_motion(motion, whole, unlimited, kind) for motion in motions]
    first = parts[0]
    for name in ("poses", "pictures", "video"):
        if len({getattr(part, name) is None for part in parts}) > 1:
            raise MotionError(
                "the motions in a row are of different kinds.",
                remedy="Give videos only, keypoints only, or pose pictures only.",
                field="motion",
            )
    frames = [max(1, round(part.frames * first.fps / part.fps)) for part in parts]
    made = _sample_pictures if first.pictures is not None else sample
    sampling = made(sum(frames), first.fps, replace(settings, stride=1), limits)
    begins = [sum(frames[:index]) / first.fps - sampling.begin for index in range(len(frames))]
    audio = [
        (part.audio, at)
        for part, at in zip(parts, begins, strict=True)
        if isinstance(part.audio, str | Path | bytes)
    ]

    def joined(name: str) -> Callable[[], Iterator[Picture]]:
        return lambda: _picked(
            chain.from_iterable(_at_rate(getattr(part, name)(), part, first.fps) for part in parts),
            sampling.taken,
        )

    motion = Motion(sampling, audio=audio or None)
    if first.poses is not None:
        rows = [
            resized(replace(p.poses.take(_nearest(len(p.poses), count)), fps=first.fps), first.poses.size)
            for p, count in zip(parts, frames, strict=True)
            if p.poses is not None
        ]
        return replace(
            motion, poses=replace(PoseSequence.concat(rows).take(sampling.taken), fps=sampling.rate)
        )
    if first.pictures is not None:
        return replace(motion, pictures=joined("pictures"))
    return replace(motion, video=_of_one_size(joined("video")))


def _picked(pictures: Iterator[Picture], taken: Sequence[int]) -> Iterator[Picture]:
    """The pictures of these rising numbers."""
    waiting = iter(taken)
    wanted = next(waiting, None)
    for index, picture in enumerate(pictures):
        if wanted is None:
            return
        if index == wanted:
            yield picture
            wanted = next(waiting, None)


def _nearest(count: int, wanted: int) -> NDArray[np.intp]:
    """Which of `count` frames stand for `wanted` frames of the same time."""
    return np.minimum(np.arange(wanted) * count // wanted, count - 1).astype(np.intp)


def _at_rate(pictures: Iterator[Picture], part: Motion, fps: float) -> Iterator[Picture]:
    """Pictures at another rate: some are left out or repeated."""
    given = 0
    for index, picture in enumerate(pictures, 1):
        while given < round(index * fps / part.fps):
            given += 1
            yield picture


def _of_one_size(pictures: Callable[[], Iterator[Picture]]) -> Callable[[], Iterator[Picture]]:
    """Pictures of other sizes are brought to that of the first, whole, with black beside them."""

    def fitted() -> Iterator[Picture]:
        size: tuple[int, int] | None = None
        for picture in pictures():
            size = size or (picture.shape[1], picture.shape[0])
            yield _contained(picture, size)

    return fitted


def _contained(picture: Picture, size: tuple[int, int]) -> Picture:
    height, width = picture.shape[:2]
    if (width, height) == size:
        return picture
    scale = min(size[0] / width, size[1] / height)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    left, top = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    board = np.zeros((size[1], size[0], 3), np.uint8)
    board[top : top + inner[1], left : left + inner[0]] = cv2.resize(
        picture, inner, interpolation=cv2.INTER_AREA
    )
    return board


def resized(poses: PoseSequence, size: tuple[int, int]) -> PoseSequence:
    """Poses in a picture of another size, which holds the whole of their own in its middle, its shape kept."""
    if poses.size == size:
        return poses
    scale = min(size[0] / poses.size[0], size[1] / poses.size[1])
    share = np.array(poses.size) * scale / size
    moved: dict[str, Any] = {
        name: ((getattr(poses, name) - 0.5) * share + 0.5).astype(np.float32) for name in PARTS
    }
    return replace(poses, **moved, size=size)


def shows_skeletons(pictures: Iterator[Picture]) -> bool:
    """Whether these are drawn skeletons: dark, with thin lines of strong colours."""
    seen = [_is_skeleton(picture) for picture in pictures if picture.max(initial=0) > 64]
    return bool(seen) and sum(seen) * 2 > len(seen)


def _is_skeleton(picture: Picture) -> bool:
    scale = 256 / max(picture.shape[:2])
    if scale < 1:
        picture = np.asarray(
            cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8
        )
    light = picture.max(axis=2)
    lit = light > 48
    if not 0.001 < lit.mean() < 0.25 or np.median(light) > 16:
        return False
    saturation = (light - picture.min(axis=2))[lit] / light[lit]
    thick = cv2.erode(lit.astype(np.uint8), np.ones((9, 9), np.uint8)).sum() / lit.sum()
    # Lines on a small canvas are thick, and pure in colour as nothing that is filmed is.
    pure = (saturation > 0.8).mean() > 0.7
    return bool((saturation > 0.5).mean() > 0.4 and thick < (0.2 if pure else 0.02))


def reference_stride(fps: float) -> int:
    """Every how many frames of a driving video the reference implementation takes: about 15 a second."""
    return 2 * max(1, int(fps / 24))


def sized_pictures(motion: Motion, width: int, height: int) -> Iterator[Picture]:
    """The motion's pose pictures as uint8 [height,width,3]: resized to cover it and cropped around the centre.

    Those of an array must have that size: raises `MotionError`.
    """
    assert motion.pictures is not None
    for index, picture in enumerate(motion.pictures()):
        if motion.exact and picture.shape != (height, width, 3):
            raise MotionError(
                f"pose picture {index} is {picture.shape[1]}x{picture.shape[0]}, the video {width}x{height}.",
                remedy="Draw pose pictures of the video's own size, or give a folder of them.",
                field="motion",
            )
        yield fit_picture(picture, width, height)


def are_pictures(value: Any) -> bool:
    """Whether this is uint8 [F,H,W,3] with at least one frame."""
    array = isinstance(value, np.ndarray)
    return array and value.dtype == np.uint8 and value.ndim == 4 and value.shape[-1] == 3 and value.size > 0
