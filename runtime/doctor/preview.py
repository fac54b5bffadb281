"""What would be animated, without running anything but the pose estimator: a sheet of the reference and the poses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import counted
from ..files import read_head
from ..inputs import Request, read_reference
from ..limits import Limits
from ..media.picture import fit_picture, picture_format, read_picture
from ..media.reader import VideoReader
from ..media.sheet import Row, contact_sheet, evenly
from ..pose import PoseSequence, draw_poses
from ..pose.draw import ALL, Drawing
from ..pose.retarget import retarget
from ..settings import REFERENCE, Settings
from ..validation import described_clip

Picture = NDArray[np.uint8]
COLUMNS = 8
"""Tiles of a preview: the picture, its pose over it, and frames of the motion."""
ACROSS, LONGEST = 4, 480
"""Tiles in a row of a sheet of poses, and pixels of a side: up to it frames are shown in their own size."""


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
    picture = read_picture(image)
    reference = read_reference(Request(picture, None, None, estimator), settings, Limits(), sizes, threads)
    height, width = reference.picture.shape[:2]
    canvas = settings.canvas or int(REFERENCE["canvas"])
    drawing = Drawing.of(settings)
    drawn = draw_poses(reference.pose, height, width, canvas, drawing)[0]
    crop = reference.crop
    box = (crop.left, crop.top, crop.right, crop.bottom)
    label = f"{width}x{height} of {picture.shape[1]}x{picture.shape[0]}, from {box[:2]} to {box[2:]}"
    tiles = [reference.picture, overlaid(reference.picture, drawn)]
    if motion is not None:
        shown, _ = retarget(motion, reference.pose, settings, (width, height))
        chosen = evenly(len(shown), COLUMNS - len(tiles))
        tiles.extend(draw_poses(shown.take(chosen), height, width, canvas, drawing))
        label += f"; {len(chosen)} of {counted(len(motion), 'frame')} of motion"
    return contact_sheet([(label, tiles)], columns=COLUMNS, tile_height=256), box


def pose_sheet(
    poses: PoseSequence, recording: Path | None, taken: Sequence[int], drawing: Drawing = ALL
) -> Picture:
    """A sheet uint8 [H,W,3] of skeletons over the frames of the video or picture that they were found in.

    `taken`: which of its frames the poses are. Without a recording they lie over black. Raises `InputError`.
    """
    chosen = evenly(len(poses), 2 * ACROSS)
    scale = min(1.0, LONGEST / max(poses.size))
    width, height = (max(1, round(side * scale)) for side in poses.size)
    drawn = draw_poses(poses.take(chosen), height, width, round(1.5 * min(height, width)), drawing)
    tiles = list(drawn)
    if recording is not None:
        frames = zip(_frames(recording, [taken[index] for index in chosen]), drawn, strict=True)
        tiles = [overlaid(fit_picture(frame, width, height), skeleton) for frame, skeleton in frames]
    rows: list[Row] = [(described_clip(len(poses), poses.size, poses.fps), tiles[:ACROSS])]
    if tiles[ACROSS:]:
        rows.append(("", tiles[ACROSS:]))
    return contact_sheet(rows, columns=ACROSS, tile_height=height)


def overlaid(picture: Picture, skeleton: Picture) -> Picture:
    """A skeleton on its picture, both uint8 [H,W,3]; the picture is dimmed, so that thin lines are seen."""
    return np.maximum(picture // 2, skeleton)


def _frames(recording: Path, chosen: list[int]) -> list[Picture]:
    """Frames of a video by their numbers, or a still picture."""
    if picture_format(read_head(recording)) not in ("", "GIF"):
        return [read_picture(recording)]
    return [frame for _, frame in VideoReader(recording).pick(chosen)]
