"""Keypoints of a figure: the exact ones, and what an estimator would report of them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...pose.sequence import PoseSequence
from .camera import View
from .geometry import Array, Rng
from .paint import Flags, Layer
from .skeleton import ARMS, LEFT, LEGS, NECK, RIGHT

HIDDEN, BURIED, OUTSIDE = 0.2, 0.5, 0.05
"""True scores of a covered point, of a covered one of the trunk (easy to guess), and of one outside the picture."""
_TRUNK = (1, 2, 5, 8, 11)
Values = npt.NDArray[Any]
_HEAD = (0, 14, 15, 16, 17, *range(60, 128))
_ERROR = (0.002, 0.04)  # standard error of a coordinate at confidence 1 and 0, in standing heights


def true_keypoints(view: View, passing: list[Layer], size: tuple[int, int], fps: float) -> PoseSequence:
    """Exact keypoints of `view`, which is in pixels of a picture of `size` (width, height)."""
    pixels = _joined(view.body, view.hands, view.face)
    hidden = _covered(view, pixels) | _averted(view)
    for layer in passing:
        hidden |= _inside(pixels, layer)
    score = np.where(hidden, np.where(np.isin(np.arange(128), _TRUNK), BURIED, HIDDEN), 1.0)
    inside = ((pixels >= 0) & (pixels <= size)).all(axis=-1)
    return _sequence(pixels / size, np.where(inside, score, OUTSIDE), size, fps)


def observed_keypoints(truth: PoseSequence, scale: Array, rng: Rng) -> PoseSequence:
    """What an estimator would say: a confidence that wavers, and errors that grow as it falls.

    `scale` [F] is the standing height in pixels. Whole hands drop out at times.
    """
    frames = len(truth)
    points = _joined(truth.body, truth.hands, truth.face)
    score = _joined(truth.body_score, truth.hands_score, truth.face_score)
    quality = score * np.clip(1.02 - np.abs(_drift(rng, frames, 128, 0.08)), 0, 1)
    speed = np.abs(np.diff(points * truth.size, axis=0, append=points[-1:] * truth.size)).sum(axis=-1)
    quality *= np.clip(1.05 - 0.9 * speed / scale[:, None], 0.35, 1)
    for hand in range(2):
        seen = np.clip(2.0 + 1.6 * _drift(rng, frames, 1, 1.0), 0.03, 1)
        quality[:, 18 + 21 * hand : 39 + 21 * hand] *= seen
    confidence = np.clip(quality + rng.normal(0, 0.02, quality.shape), 0, 1)
    least, most = _ERROR
    spread = (least + (most - least) * (1 - confidence) ** 2) * scale[:, None]
    spread[:, 18:60] *= 0.6  # hands and faces are found in crops of their own
    spread[:, 60:] *= 0.4
    error = np.stack([_drift(rng, frames, 128, 1.0) for _ in range(2)], axis=-1) * spread[..., None]
    return _sequence(points + error / truth.size, confidence, truth.size, truth.fps)


def _drift(rng: Rng, frames: int, points: int, size: float) -> Array:
    """Noise [F,P] of that standard deviation, half of which stays from frame to frame."""
    noise = rng.normal(0, size, (frames, points))
    for frame in range(1, frames):
        noise[frame] = 0.7 * noise[frame - 1] + 0.714 * noise[frame]
    return noise


class _Rod(NamedTuple):
    """Something round that may hide points, between two points [F,2] at two depths [F]."""

    start: Array
    end: Array
    near: Array
    far: Array
    radius: float  # in standing heights
    margin: float  # how far a point must lie behind it
    own: tuple[int, ...] = ()  # points that belong to it, which it does not hide


def _covered(view: View, pixels: Array) -> Flags:
    """Which points [F,128] lie behind a limb, the trunk or the head."""
    face = np.broadcast_to((view.skull_depth + 0.1)[:, None], (len(pixels), 68))
    levels = _joined(view.body_depth, view.hands_depth, face)
    covered = np.zeros(levels.shape, bool)
    for rod in _rods(view):
        along, away = (rod.end - rod.start)[:, None], pixels - rod.start[:, None]
        share = np.clip((away * along).sum(-1) / np.maximum((along**2).sum(-1), 1e-9), 0, 1)
        gap = ((away - share[..., None] * along) ** 2).sum(-1)
        level = rod.near[:, None] + (rod.far - rod.near)[:, None] * share
        hides = (gap < (rod.radius * view.scale[:, None]) ** 2) & (level > levels + rod.margin)
        hides[:, list(rod.own)] = False
        covered |= hides
    return covered


def _rods(view: View) -> Iterator[_Rod]:
    body, depth, size = view.body, view.body_depth, view.character.body
    for side in (LEFT, RIGHT):
        arm, leg, palm = ARMS[side], LEGS[side], [0, 9]
        for chain, radius, margin in ((arm, 0.8 * size.arm_radius, 0.05), (leg, size.knee_radius, 0.08)):
            for one, two in pairwise(chain):
                yield _Rod(body[:, one], body[:, two], depth[:, one], depth[:, two], radius, margin)
        ends, levels = view.hands[:, side, palm], view.hands_depth[:, side, palm]
        yield _Rod(ends[:, 0], ends[:, 1], levels[:, 0], levels[:, 1], 0.2 * size.hand, 0.05)
        top = 0.7 * body[:, arm[0]] + 0.3 * body[:, NECK]
        low = 0.7 * body[:, leg[0]] + 0.3 * view.hips
        level = np.zeros(len(body))  # depths are measured from the trunk
        yield _Rod(top, low, level, level, 0.6 * size.waist, 0.025, _TRUNK)
    head = view.skull_depth + 0.03
    yield _Rod(view.skull, view.skull, head, head, 0.38 * size.head, 0.03, _HEAD)


def _averted(view: View) -> Flags:
    """Which points of the head [F,128] are on its far side."""
    skeleton, head = view.skeleton, view.character.body.head
    flags = np.zeros((len(view.scale), 128), bool)
    flags[:, 60:] = skeleton.face[..., 2] < skeleton.skull[:, 2:] - 0.03 * head
    features = [0, 14, 15, 16, 17]
    ahead = skeleton.body[:, features, 2] - skeleton.skull[:, 2:]
    flags[:, features] = ahead < np.array([0, 0, 0, -0.15, -0.15]) * head
    return flags


def _inside(pixels: Array, layer: Layer) -> Flags:
    """Which points [F,P,2] the convex outline of `layer` covers."""
    start = layer.outline
    edge = np.roll(start, -1, axis=1) - start
    away = pixels[:, :, None] - start[:, None]
    side = edge[:, None, :, 0] * away[..., 1] - edge[:, None, :, 1] * away[..., 0]
    within: Flags = np.logical_or((side >= 0).all(axis=-1), (side <= 0).all(axis=-1))
    return within if layer.shown is None else within & layer.shown[:, None]


def _sequence(points: Array, score: Array, size: tuple[int, int], fps: float) -> PoseSequence:
    """Of points [F,128,2] and scores [F,128]: 18 of the body, 2 x 21 of the hands, 68 of the face."""
    frames, at, sure = len(points), points.astype(np.float32), score.astype(np.float32)
    body, face = (at[:, :18], sure[:, :18]), (at[:, 60:], sure[:, 60:])
    hands = at[:, 18:60].reshape(frames, 2, 21, 2), sure[:, 18:60].reshape(frames, 2, 21)
    return PoseSequence(*body, *hands, *face, fps=fps, size=size)


def _joined(body: Values, hands: Values, face: Values) -> Values:
    """[F,18,...], [F,2,21,...] and [F,68,...] as [F,128,...]."""
    return np.concatenate([body, hands.reshape(len(body), 42, *body.shape[2:]), face], axis=1)
