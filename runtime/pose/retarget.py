"""A driving motion as it is drawn: smoothed, fitted to the person in the picture, with what was not seen held."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..settings import Settings
from .face import keep_face
from .follow import Flags, hold_poses
from .rescale import rescale_to_reference
from .sampling import interpolate, places, shown_frames
from .sequence import PoseSequence
from .smooth import smooth_poses


def retarget(
    driving: PoseSequence, reference: PoseSequence, settings: Settings, size: tuple[int, int]
) -> tuple[PoseSequence, Flags]:
    """The driving motion as it is drawn, and in which of its frames nobody was seen: bool [F].

    `reference` is one frame: the pose of the person in the picture as it is animated, of `size` (width, height).
    The steps, each by its setting: smoothed (`smooth`), fitted to the reference (`rescale`), held where nobody is
    seen (`hold`), interpolated where the video has more frames (`fps`), with the reference's own face (`face`). A
    frame between two is held if the nearer of the two is. Raises `InputError`.
    """
    width, height = size
    if settings.smooth is not None:
        driving = smooth_poses(driving, settings.smooth)
    if settings.rescale:
        driving = rescale_to_reference(driving, reference, height, width)
    driving, held = hold_poses(driving, settings.hold)
    driving = replace(driving, size=size)
    if settings.fps is not None and settings.fps > driving.fps:
        count = shown_frames(len(driving), driving.fps, settings.fps)
        at = places(min(count, settings.frames or count), driving.fps, settings.fps)
        held = held[np.minimum((at + 0.5).astype(int), len(driving) - 1)]
        driving = interpolate(driving, at, settings.fps)
    if settings.face == "reference":
        driving = keep_face(driving, reference)
    return driving, held
