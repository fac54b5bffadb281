"""What an animation is made from, opened and checked: the picture, and a motion in any of its forms."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import MotionError, PictureError, SettingsError
from .limits import Limits, check_limit
from .media.picture import read_picture
from .pose import PoseSequence, open_estimator
from .pose.estimate import ChoosingEstimator
from .pose.framing import Reference, frame_reference
from .pose.motion import NOTHING, Motion, MotionKind, are_pictures, open_motion
from .settings import KEEP, SIZE_MULTIPLE, Framing, Settings
from .validation import described, plain_array

Picture = NDArray[np.uint8]
Size = tuple[int, int]
"""(width, height)."""

KEYPOINT_SETTINGS = ("draw", "face", "smooth", "hold", "confidence_floor", "confidence_gain")
"""Settings that pose pictures, which are drawn already, cannot follow."""


@dataclass(frozen=True)
class Request:
    """What a caller asks to have animated; see `Animator.animate`."""

    image: Any
    motion: Any
    reference_pose: Any = None
    estimator: str = "mediapipe"
    motion_kind: MotionKind = "auto"


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
        if self.reference_pose is not None:
            return frame_reference(self.picture, self.reference_pose, self.size, framing)
        pose, people = self._estimate_reference(person)
        return replace(frame_reference(self.picture, pose, self.size, framing), people=people)

    def open_estimator(self, person: str | None) -> ChoosingEstimator:
        """The estimator that was asked for, to follow this person."""
        return open_estimator(self.estimator, threads=self.threads, person=person)

    def _estimate_reference(self, person: str | None) -> tuple[PoseSequence, int]:
        """(the person's pose in the picture, how many people were seen)."""
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
        return pose, estimator.people


def open_inputs(
    request: Request, settings: Settings, limits: Limits, sizes: tuple[Size, ...], threads: int | None
) -> AnimationInputs:
    """Read the picture and the motion's header; raises `InputError`.

    Without `settings.size`, the video has the size of the bundle's `sizes` nearest in shape to the picture.
    """
    picture, pose, size = _open_picture(request, settings, limits, sizes)
    motion = open_motion(request.motion, settings, limits, request.motion_kind)
    if motion.pictures is not None:
        _check_no_keypoints(settings)
    return AnimationInputs(picture, size, motion, pose, request.estimator, threads)


def read_reference(
    request: Request, settings: Settings, limits: Limits, sizes: tuple[Size, ...], threads: int | None
) -> Reference:
    """The reference alone, as `open_inputs` and the pose stage give it; the request's motion is not looked at."""
    picture, pose, size = _open_picture(request, settings, limits, sizes)
    inputs = AnimationInputs(picture, size, Motion(NOTHING), pose, request.estimator, threads)
    return inputs.reference(settings.framing, settings.person)


def _open_picture(
    request: Request, settings: Settings, limits: Limits, sizes: tuple[Size, ...]
) -> tuple[Picture, PoseSequence | None, Size]:
    """The reference picture, the pose that came with it, and the size of the video."""
    picture, pose = reference_picture(request.image, settings, limits), request.reference_pose
    if pose is not None and not (isinstance(pose, PoseSequence) and len(pose) == 1):
        kind = type(pose).__name__
        raise MotionError(
            f"the reference pose is {kind}{' of several frames' if kind == 'PoseSequence' else ''}.",
            remedy="Give a PoseSequence of one frame, or None.",
            field="reference_pose",
        )
    size = settings.size or nearest_size((picture.shape[1], picture.shape[0]), sizes)
    check_limit("pixels of the video", size[0] * size[1], limits.output_pixels, field="settings.size")
    return picture, pose, size


def reference_picture(image: Any, settings: Settings, limits: Limits) -> Picture:
    """The reference picture uint8 [H,W,3]; what of it is transparent lies over `settings.background`."""
    if settings.background == KEEP:
        return read_picture(image, limits)
    return read_picture(image, limits, over=settings.background, shows=True)


def _check_no_keypoints(settings: Settings) -> None:
    """Raise `SettingsError` for a setting that changes keypoints, since pose pictures have none."""
    for name in KEYPOINT_SETTINGS:
        if getattr(settings, name) != getattr(Settings(), name):
            raise SettingsError(
                f"{name} changes keypoints, and the motion is pose pictures.",
                remedy=f"Leave {name} out, or give a video of a person, or keypoints.",
                field=f"settings.{name}",
            )


def nearest_size(picture: Size, sizes: tuple[Size, ...]) -> Size:
    """The size of `sizes` nearest in shape to the picture's; of equally near ones the widest."""
    shape = np.log(picture[0] / picture[1])
    return min(sizes, key=lambda size: (round(abs(float(np.log(size[0] / size[1]) - shape)), 6), -size[0]))


def check_pose_pictures(pictures: Any, settings: Settings) -> Picture:
    """Pose pictures uint8 [F,H,W,3] of a size that the networks take, or a `MotionError`."""
    pictures = plain_array(pictures, MotionError, "pose_frames")
    if not are_pictures(pictures):
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
