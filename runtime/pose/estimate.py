"""From pictures to poses: the estimators by name, and a whole clip in one call."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from typing import Any, Protocol

import numpy as np

from ..errors import InputError, MotionError
from ..files import read_head
from ..limits import Limits
from ..validation import ArrayLike, plain_array
from .network import Picture, check_frame
from .sequence import PoseSequence

ESTIMATORS = ("mediapipe", "dwpose")
FRAMES_RATE = 30.0
"""Frames per second of frames whose rate is not given."""


class PoseEstimator(Protocol):
    """Finds one person's pose in picture after picture of a clip."""

    def estimate(self, frame: Picture) -> PoseSequence:
        """The pose in an RGB picture uint8 [H,W,3], as one frame; scores of 0 if nobody is there."""
        ...

    def reset(self) -> None:
        """Forget the person: the next picture begins another clip."""
        ...


class ChoosingEstimator(PoseEstimator, Protocol):
    """One that can be told whom of several people to follow."""

    @property
    def people(self) -> int:
        """The most people who were seen in one picture."""
        ...

    def check_found(self, setting: str = "person") -> None:
        """Raise `SettingsError` for `setting` if the person whom it asks for was never seen, though others were."""
        ...


def open_estimator(
    name: str = "mediapipe", *, threads: int | None = None, person: str | None = None
) -> ChoosingEstimator:
    """An estimator by name: `mediapipe` (comes with the package) or `dwpose` (the reference's, by path).

    `person` says whom of several people it follows, as `Settings.person`. `threads` is the number of threads of a
    network's run, None for all cores. Raises `InputError` for an
    unknown name or missing networks.
    """
    if name not in ESTIMATORS:
        raise InputError(
            f"Unknown pose estimator {name!r}.",
            remedy=f"Known ones: {', '.join(ESTIMATORS)}.",
            field="estimator",
        )
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}.", remedy="Choose 1 or more.", field="threads")
    if name == "dwpose":
        from .dwpose import DwposeEstimator

        return DwposeEstimator(threads=threads, person=person)
    from .mediapipe import MediapipeEstimator

    return MediapipeEstimator(threads=threads, person=person)


def estimate_poses(
    source: str | os.PathLike[str] | bytes | ArrayLike | Iterable[ArrayLike],
    estimator: str | PoseEstimator = "mediapipe",
    *,
    fps: float | None = None,
    stride: int = 1,
    threads: int | None = None,
    limits: Limits | None = None,
    person: str | None = None,
) -> PoseSequence:
    """The pose of one person in every frame of a video, of a picture, or of frames.

    `source` is the path or the bytes of a video or picture, one RGB picture uint8 [H,W,3], or frames uint8
    [F,H,W,3] or any iterable of pictures of one size, as arrays of numpy, tensors of PyTorch on the CPU, or
    pictures of Pillow; a video is read frame by frame. `fps` is the frame rate
    of the source; None takes the video's own, and 30 for frames. Only every `stride`-th frame is looked at,
    and the result's frame rate is divided by it. In frames without the person all scores are 0. `person` says whom of
    several people an estimator that is named follows, as `Settings.person`.

    Raises `MotionError` if no frame shows a person, for frames of a wrong type or shape, and for what cannot
    be read; `InputError` for an unknown estimator.
    """
    if stride < 1:
        raise MotionError(f"stride is {stride}.", remedy="Choose 1 or more.", field="settings.stride")
    named = open_estimator(estimator, threads=threads, person=person) if isinstance(estimator, str) else None
    found = named or estimator
    assert not isinstance(found, str)
    found.reset()
    if isinstance(source, str | os.PathLike | bytes):
        poses, rate = _from_file(source, found, stride, limits)
    else:
        frames: Any = plain_array(source, MotionError, "motion")
        if isinstance(frames, np.ndarray) and frames.ndim == 3:
            frames = [frames]
        if not isinstance(frames, Iterable):
            raise MotionError(
                f"The motion is a {type(frames).__name__}.",
                remedy="Give a path, bytes, or frames uint8 [F,H,W,3].",
                field="motion",
            )
        poses, rate = _estimate(islice(frames, 0, None, stride), found), FRAMES_RATE / stride
    if named is not None:
        named.check_found()
    if not (poses.body_score > 0).any():
        raise MotionError(
            f"Nobody was found in {len(poses)} frame{'s' * (len(poses) != 1)}.",
            remedy="Give a recording in which a person is seen, or keypoints.",
            field="motion",
        )
    return replace(poses, fps=rate if fps is None else fps / stride)


def _from_file(
    source: str | os.PathLike[str] | bytes, estimator: PoseEstimator, stride: int, limits: Limits | None
) -> tuple[PoseSequence, float]:
    """The poses and their frame rate in a video or a still picture; a GIF counts as a video."""
    from ..media.picture import picture_format, read_picture
    from ..media.reader import VideoReader

    file = source if isinstance(source, bytes) else os.fspath(source)
    if picture_format(read_head(file)) not in ("", "GIF"):
        return _estimate([read_picture(file, limits)], estimator), 1.0
    video = VideoReader(file, limits)
    poses = _estimate((frame for _, frame in video.frames(stride=stride)), estimator)
    return poses, video.fps / stride


def _estimate(frames: Iterable[Any], estimator: PoseEstimator) -> PoseSequence:
    poses: list[PoseSequence] = []
    for given in frames:
        frame: Picture = plain_array(given, MotionError, "motion")
        check_frame(frame)
        pose = estimator.estimate(frame)
        if poses and pose.size != poses[0].size:
            raise MotionError(
                f"Frame {len(poses)} is {pose.size}, the first is {poses[0].size} (width, height).",
                remedy="Give frames of one size.",
                field="motion",
            )
        poses.append(pose)
    if not poses:
        raise MotionError("The motion has no frames.", remedy="Give at least one frame.", field="motion")
    return PoseSequence.concat(poses)
