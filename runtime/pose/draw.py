"""Pose pictures: the drawings of a skeleton that PoseNet reads.

Limbs, joints, hands and face are drawn on a large black canvas, brightness standing for confidence, and
brought down bilinearly. Equal to the reference implementation's pictures to the pixel, which fixes the
rounding below: coordinates are cut to whole canvas pixels, angles to whole degrees, colours to whole numbers.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import MotionError
from ..settings import PARTS, Part, Settings
from .sequence import Floats, PoseSequence

Picture = npt.NDArray[np.uint8]

BODY_THRESHOLD = 0.3
"""Limbs with an end of less confidence, and joints of this or less, are not drawn."""
LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13),
    (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
FINGERS = tuple(
    (0 if joint == 0 else 4 * finger + joint, 4 * finger + joint + 1)
    for finger in range(5) for joint in range(4)
)  # fmt: skip
_LIMB_HALF_WIDTH, _LIMB_DIMMING, _JOINT_RADIUS = 4, 0.6, 4
_FINGER_WIDTH, _FINGER_RADIUS, _FACE_RADIUS = 2, 4, 3
_LIT = 24  # of 255, from which a pixel belongs to a line
_LONGEST = 32767  # pixels that OpenCV's drawing and resizing are sure to take
_FAR = 100.0  # in pictures: keeps what lies absurdly far outside within OpenCV's whole numbers


@dataclass(frozen=True)
class Drawing:
    """Which parts of poses are drawn, and how brightly."""

    parts: tuple[Part, ...] = PARTS
    floor: float = 0.0
    """Points of a lower confidence are not drawn."""
    gain: float = 1.0
    """Times which confidences are drawn, up to 1."""

    @classmethod
    def of(cls, settings: Settings) -> Drawing:
        parts = tuple(part for part in settings.draw if part != "face" or settings.face != "none")
        return cls(parts, settings.confidence_floor, settings.confidence_gain)

    def shares(self, scores: Floats) -> list[float]:
        """Of the full brightness, of each point; below 0 for those that are not drawn."""
        brightness = np.minimum(scores * np.float32(self.gain), np.float32(1))
        shares: list[float] = np.where(scores < self.floor, np.float32(-1), brightness).tolist()
        return shares


ALL = Drawing()


def _rainbow(index: int) -> tuple[int, int, int]:
    """Colour of joint or limb `index`: a colour wheel in steps of a third of 255, from red to purple."""
    sector, step = divmod(index, 3)
    up, down = 85 * step, 255 - 85 * step
    wheel = ((255, up, 0), (down, 255, 0), (0, 255, up), (0, down, 255), (up, 0, 255), (255, 0, down))
    return wheel[sector]


def draw_poses(
    sequence: PoseSequence, height: int, width: int, canvas: int, drawing: Drawing = ALL
) -> Picture:
    """Pose pictures, uint8 [F,height,width,3].

    `canvas` is the shorter side in pixels of the canvas that is drawn on before resizing: a model expects lines of
    the relative thickness that it was trained with, MimicMotion's own weights 2160. `Animator.draw_poses` takes
    that of the model that is loaded. Raises `MotionError` for sizes below 1, and for pictures
    so narrow that the canvas would be longer than 32767 pixels.
    """
    drawn = iter_pose_pictures(sequence, height, width, canvas, drawing)
    pictures = np.empty((len(sequence), height, width, 3), np.uint8)
    for index, picture in enumerate(drawn):
        pictures[index] = picture
    return pictures


LINE_WIDTH = 6.5
"""What `drawn_width` finds on the canvas itself, whatever the pose."""


def drawn_width(picture: Picture) -> float:
    """How wide the lit lines of a pose picture uint8 [H,W,3] are, in pixels; 0 for a black one.

    Twice the area over the length of its outline; exact for straight lines, more where lines lie side by side.
    """
    lit = np.pad(picture.max(axis=2) > _LIT, 1)
    outline = sum(np.count_nonzero(np.diff(lit, axis=axis)) for axis in (0, 1))
    return 2 * np.count_nonzero(lit) / outline if outline else 0.0


def iter_pose_pictures(
    sequence: PoseSequence, height: int, width: int, canvas: int, drawing: Drawing = ALL
) -> Iterator[Picture]:
    """`draw_poses` frame by frame, each uint8 [height,width,3], holding one canvas only."""
    _check_sizes(height, width, canvas)
    return _pictures(sequence, height, width, canvas, drawing)


def _check_sizes(height: int, width: int, canvas: int) -> None:
    for name, value in (("height", height), ("width", width), ("canvas", canvas)):
        if value < 1:
            raise MotionError(
                f"{name} of the pose picture is {value}.",
                remedy="Choose 1 or more.",
                field=f"settings.{name}",
            )
    longer = canvas * max(height, width) // min(height, width)
    if longer > _LONGEST:
        raise MotionError(
            f"A pose picture of {width}x{height} needs a canvas {longer} pixels long.",
            remedy=f"Choose a less narrow size, or a smaller canvas; {_LONGEST} pixels are possible.",
            field="settings.size",
        )


def _pictures(
    sequence: PoseSequence, height: int, width: int, canvas: int, drawing: Drawing
) -> Iterator[Picture]:
    import cv2

    scale = canvas / min(height, width)
    board = np.zeros((int(height * scale), int(width * scale), 3), np.uint8)
    for index in range(len(sequence)):
        board.fill(0)
        if "body" in drawing.parts:
            _draw_body(board, sequence.body[index], drawing.shares(sequence.body_score[index]))
        if "hands" in drawing.parts:
            for points, scores in zip(sequence.hands[index], sequence.hands_score[index], strict=True):
                _draw_hand(board, points, drawing.shares(scores))
        if "face" in drawing.parts:
            _draw_face(board, sequence.face[index], drawing.shares(sequence.face_score[index]))
        resized = cv2.resize(board, (width, height), interpolation=cv2.INTER_LINEAR)
        yield np.asarray(cv2.cvtColor(resized, cv2.COLOR_BGR2RGB), np.uint8)


def _draw_body(board: Picture, points: Floats, shares: list[float]) -> None:
    import cv2

    exact = _on_canvas(board, points)
    for index, (start, end) in enumerate(LIMBS):
        if min(shares[start], shares[end]) < BODY_THRESHOLD:
            continue
        (x0, y0), (x1, y1) = exact[start], exact[end]
        outline = cv2.ellipse2Poly(
            (int((x0 + x1) / 2), int((y0 + y1) / 2)),
            (int(math.hypot(x0 - x1, y0 - y1) / 2), _LIMB_HALF_WIDTH),
            int(math.degrees(math.atan2(y0 - y1, x0 - x1))),
            0,
            360,
            1,
        )
        # Filling replaces what is there, so dimming the colour equals dimming the canvas after all limbs.
        full = (int(value * shares[start] * shares[end]) for value in _rainbow(index))
        cv2.fillConvexPoly(board, np.asarray(outline), [int(value * _LIMB_DIMMING) for value in full])
    for index, (x, y) in enumerate(exact):
        if shares[index] > BODY_THRESHOLD:
            colour = [int(value * shares[index]) for value in _rainbow(index)]
            cv2.circle(board, (int(x), int(y)), _JOINT_RADIUS, colour, thickness=-1)


def _draw_hand(board: Picture, points: Floats, shares: list[float]) -> None:
    import cv2

    pixels = [(int(x), int(y)) for x, y in _on_canvas(board, points)]
    for index, (start, end) in enumerate(FINGERS):
        drawn = min(shares[start], shares[end]) >= 0
        if drawn and _inside(pixels[start]) and _inside(pixels[end]):
            brightness = int(shares[start] * shares[end] * 255)
            colour = [value * brightness for value in colorsys.hsv_to_rgb(index / len(FINGERS), 1.0, 1.0)]
            cv2.line(board, pixels[start], pixels[end], colour, _FINGER_WIDTH)
    for pixel, share in zip(pixels, shares, strict=True):
        if share >= 0 and _inside(pixel):
            cv2.circle(board, pixel, _FINGER_RADIUS, (0, 0, int(share * 255)), thickness=-1)


def _draw_face(board: Picture, points: Floats, shares: list[float]) -> None:
    import cv2

    for (x, y), share in zip(_on_canvas(board, points), shares, strict=True):
        pixel = int(x), int(y)
        if share >= 0 and _inside(pixel):
            cv2.circle(board, pixel, _FACE_RADIUS, [int(share * 255)] * 3, thickness=-1)


def _on_canvas(board: Picture, points: Floats) -> list[list[float]]:
    """Fractions to canvas pixels (x, y), in float64."""
    height, width = board.shape[:2]
    exact: list[list[float]] = (np.clip(points.astype(np.float64), -_FAR, _FAR) * (width, height)).tolist()
    return exact


def _inside(pixel: tuple[int, int]) -> bool:
    """Hand and face points at the upper or left edge, or beyond, are left out."""
    return min(pixel) > 0
