"""What would be animated, without running anything but the pose estimator: a sheet of the reference and the poses."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..inputs import AnimationInputs, nearest_size
from ..limits import Limits
from ..media.picture import read_picture
from ..media.sheet import Row, contact_sheet, evenly
from ..pose import PoseSequence, draw_poses, rescale_to_reference
from ..pose.motion import Motion
from ..settings import Settings

Picture = NDArray[np.uint8]
COLUMNS = 8
"""Frames of the motion that are shown."""


def preview_sheet(
    image: Any,
    motion: PoseSequence | None,
    settings: Settings,
    sizes: tuple[tuple[int, int], ...],
    *,
    estimator: str = "mediapipe",
    threads: int | None = None,
) -> tuple[Picture, tuple[int, int, int, int]]:
    """A sheet uint8 [H,W,3] of a reference picture as it is animated, its pose over it, and a motion fitted to it.

    `image` is as in `Animator.animate`, `sizes` are a bundle's. With the sheet comes the part of the picture that is
    taken, (left, top, right, bottom) in pixels. Raises `InputError`.
    """
    picture = read_picture(image, Limits())
    size = settings.size or nearest_size((picture.shape[1], picture.shape[0]), sizes)
    width, height = size
    inputs = AnimationInputs(picture, size, Motion(fps=1.0, frames=0), None, estimator, threads)
    reference = inputs.reference(settings.framing, settings.person)
    canvas = settings.canvas or 2160
    drawn = draw_poses(reference.pose, height, width, canvas)[0]
    crop = reference.crop
    box = (crop.left, crop.top, crop.right, crop.bottom)
    label = f"{width}x{height} of {picture.shape[1]}x{picture.shape[0]}, from {box[:2]} to {box[2:]}"
    rows: list[Row] = [(label, [reference.picture, np.maximum(reference.picture // 3, drawn)])]
    if motion is not None:
        shown = rescale_to_reference(motion, reference.pose, height, width) if settings.rescale else motion
        chosen = shown.take(evenly(len(shown), COLUMNS))
        rows.append((f"{len(motion)} frames of motion", list(draw_poses(chosen, height, width, canvas))))
    return contact_sheet(rows, columns=COLUMNS, tile_height=256), box
