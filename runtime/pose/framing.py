"""Which part of the reference picture is animated: one of the video's shape that holds the person."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..media.picture import fit_picture
from ..settings import PARTS, Framing
from .rescale import VISIBLE
from .sequence import PoseSequence

Picture = npt.NDArray[np.uint8]
Points = npt.NDArray[np.float64]
Size = tuple[int, int]
"""(width, height)."""

A_LITTLE = 0.05
"""Share of a person's width or height that a crop may cut off without being moved."""
MARGIN = 0.06
"""Room on each side of a person, as a share of the longer side of their box."""
_NOSE, _NECK = 0, 1
_CROWN = 0.9  # of the way from the neck to the nose, once more beyond the nose


@dataclass(frozen=True)
class Crop:
    """A part of a picture in whole pixels. Where it reaches beyond the picture, its edges are continued."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def size(self) -> Size:
        """(width, height)."""
        return self.right - self.left, self.bottom - self.top


@dataclass(frozen=True, eq=False)
class Reference:
    """The reference as it is animated."""

    picture: Picture
    """uint8 [height,width,3] of the video's size."""
    pose: PoseSequence
    """The person's, one frame, in fractions of that picture."""
    crop: Crop
    """Where it lies in the picture as it came."""
    people: int | None = None
    """Seen in the picture; None where the pose was given."""

    def __repr__(self) -> str:
        height, width = self.picture.shape[:2]
        return f"<Reference: {width}x{height}, {self.crop}>"


def frame_reference(picture: Picture, pose: PoseSequence, size: Size, framing: Framing) -> Reference:
    """A picture uint8 [H,W,3] and the pose (one frame) of the person in it, as they are animated at `size`.

    Costs nothing beside the resizing that every picture needs.
    """
    whole = (picture.shape[1], picture.shape[0])
    crop = choose_crop(pose, whole, size, framing)
    return Reference(cut_picture(picture, crop, size), pose_in_crop(pose, whole, crop, size), crop)


def choose_crop(pose: PoseSequence, picture: Size, size: Size, framing: Framing) -> Crop:
    """The crop of a picture, in the shape of `size`, that is animated.

    `centre`: the largest crop around the middle. `person`: the same if it cuts off no more than a little of the
    person (`A_LITTLE`), else the largest crop with the person in its middle, as far as the picture goes; where that
    does not hold them, one so large that it does, beyond the picture. `pad`: the whole picture is in it.
    """
    scale = min(picture[0] / size[0], picture[1] / size[1])
    sides = np.array(size) * scale
    axis = int(np.argmax(picture - sides))  # along which there is room to choose
    room = picture[axis] - sides[axis]
    middle = room / 2
    seen = person_span(pose, picture, axis)
    if room < 1 or framing == "centre" or (framing == "person" and seen is None):
        return _crop(picture, sides, axis, middle)
    if framing == "pad":
        return _crop(picture, sides * picture[axis] / sides[axis], axis, 0.0)
    assert seen is not None
    (low, high), margin = seen, MARGIN * _longest(pose, picture)
    length, side = high - low, float(sides[axis])
    if max(0.0, middle - low) + max(0.0, high - middle - side) <= A_LITTLE * length:
        return _crop(picture, sides, axis, middle)
    first, last = max(0.0, low - margin), min(float(picture[axis]), high + margin)
    if last - first <= side or length <= side * (1 + A_LITTLE):
        return _crop(picture, sides, axis, float(np.clip((low + high - side) / 2, 0, room)))
    return _crop(picture, sides * (last - first) / side, axis, first)


def person_span(pose: PoseSequence, picture: Size, axis: int) -> tuple[float, float] | None:
    """From where to where the person is in a picture, in pixels along x (0) or y (1); None if nobody is seen."""
    points = _seen(pose)
    if not len(points):
        return None
    along = np.clip(points[:, axis], 0, 1) * picture[axis]
    return float(along.min()), float(along.max())


def _longest(pose: PoseSequence, picture: Size) -> float:
    spans = [person_span(pose, picture, axis) or (0.0, 0.0) for axis in (0, 1)]
    return max(high - low for low, high in spans)


def _seen(pose: PoseSequence) -> Points:
    """Visible points [N,2] of body, hands and face in fractions of the picture, and the top of the head."""
    body, score = pose.body[0].astype(np.float64), pose.body_score[0]
    least = VISIBLE if (score > VISIBLE).any() else 0.0
    parts = [
        body[score > least],
        pose.hands[0][pose.hands_score[0] > max(least, VISIBLE)],
        pose.face[0][pose.face_score[0] > max(least, VISIBLE)],
    ]
    if min(score[_NOSE], score[_NECK]) > least:
        parts.append((body[_NOSE] + _CROWN * (body[_NOSE] - body[_NECK]))[None])
    return np.concatenate(parts).astype(np.float64)


def _crop(picture: Size, sides: Points, axis: int, start: float) -> Crop:
    """The crop with these sides that begins at `start` along an axis, and is in the middle of the other one."""
    begin = [(whole - side) / 2 for whole, side in zip(picture, sides, strict=True)]
    begin[axis] = start
    left, top = (round(value) for value in begin)
    width, height = (max(1, round(side)) for side in sides)
    if width <= picture[0] and height <= picture[1]:  # rounding must not lead out of the picture
        left, top = min(max(left, 0), picture[0] - width), min(max(top, 0), picture[1] - height)
    return Crop(left, top, left + width, top + height)


def cut_picture(picture: Picture, crop: Crop, size: Size) -> Picture:
    """A crop of a picture uint8 [H,W,3], resized to uint8 [height,width,3]; the centred one as by the reference."""
    rows, columns = picture.shape[:2]
    if crop == _centred((columns, rows), size):
        return fit_picture(picture, *size)
    inside = picture[max(0, crop.top) : crop.bottom, max(0, crop.left) : crop.right]
    if inside.shape[:2] == crop.size[::-1]:
        return fit_picture(inside, *size)
    import cv2

    # Resized first: what is continued may be much larger than the picture.
    across, down = (side / whole for side, whole in zip(size, crop.size, strict=True))
    width, height = (
        max(1, min(whole, round(scale * side)))
        for whole, scale, side in zip(size, (across, down), inside.shape[1::-1], strict=True)
    )
    small = fit_picture(inside, width, height)
    left = min(max(0, round(-crop.left * across)), size[0] - width)
    top = min(max(0, round(-crop.top * down)), size[1] - height)
    bordered = cv2.copyMakeBorder(
        small, top, size[1] - height - top, left, size[0] - width - left, cv2.BORDER_REPLICATE
    )
    return np.asarray(bordered, np.uint8)


def pose_in_crop(pose: PoseSequence, picture: Size, crop: Crop, size: Size) -> PoseSequence:
    """A pose in fractions of a whole picture, in fractions of a crop of it that is resized to `size`."""
    if crop == _centred(picture, size):
        return _moved(pose, *_middle(picture, size), size)
    box = np.array(crop.size) / picture
    return _moved(pose, np.array([crop.left, crop.top]) / picture, box, size)


def _moved(pose: PoseSequence, start: Points, box: Points, size: Size) -> PoseSequence:
    moved = {name: ((getattr(pose, name) - start) / box).astype(np.float32) for name in PARTS}
    return replace(pose, **moved, size=size)


def _centred(picture: Size, size: Size) -> Crop:
    scale = min(picture[0] / size[0], picture[1] / size[1])
    sides = np.array(size) * scale
    axis = int(np.argmax(picture - sides))
    return _crop(picture, sides, axis, (picture[axis] - sides[axis]) / 2)


def _middle(picture: Size, size: Size) -> tuple[Points, Points]:
    """Where the centred crop begins, and its sides, in fractions of the picture; not rounded to pixels."""
    box = np.array(size) * min(picture[0] / size[0], picture[1] / size[1]) / picture
    return (1 - box) / 2, box
