"""Keypoints of a figure: the exact ones, and what an estimator would report of them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ...pose.sequence import PoseSequence
from .character import Character
from .rotation import Array
from .shapes import Flags, Layer
from .skeleton import ARMS, LEFT, LEGS, NECK, RIGHT
from .view import View

HIDDEN, BURIED, OUTSIDE = 0.2, 0.5, 0.05
"""True scores of a point that something covers: at the ends of limbs, hands and face; at the trunk, where
its place is plain all the same; and of a point outside the picture."""
_TRUNK = (1, 2, 5, 8, 11)
_HEAD = (0, 14, 15, 16, 17, *range(60, 128))
_ERROR = (0.002, 0.04)
"""Standard error of a coordinate at confidence 1 and 0, in standing heights."""


def true_keypoints(
    view: View, character: Character, passing: list[Layer], size: tuple[int, int], fps: float
) -> PoseSequence:
    """Exact keypoints of `view`, which is in pixels of a picture of `size` (width, height)."""
    frames = len(view.scale)
    pixels = np.concatenate([view.body, view.hands.reshape(frames, 42, 2), view.face], axis=1)
    hidden = _covered(view, character, pixels) | _averted(view, character)
    for layer in passing:
        hidden |= _inside(pixels, layer)
    score = np.where(hidden, HIDDEN, 1.0)
    trunk = list(_TRUNK)
    score[:, trunk] = np.where(hidden[:, trunk], BURIED, 1.0)
    inside = ((pixels >= 0) & (pixels <= size)).all(axis=-1)
    return _sequence(pixels / size, np.where(inside, score, OUTSIDE), size, fps)


def observed_keypoints(truth: PoseSequence, scale: Array, rng: np.random.Generator) -> PoseSequence:
    """What an estimator would say: a confidence that wavers, and errors that grow as it falls.

    `scale` [F] is the standing height in pixels. Whole hands drop out at times.
    """
    frames = len(truth)
    points = np.concatenate([truth.body, truth.hands.reshape(frames, 42, 2), truth.face], axis=1)
    score = np.concatenate(
        [truth.body_score, truth.hands_score.reshape(frames, 42), truth.face_score], axis=1
    )
    quality = score * np.clip(1.02 - np.abs(_drift(rng, frames, 128, 0.08)), 0, 1)
    speed = np.abs(np.diff(points * truth.size, axis=0, append=points[-1:] * truth.size)).sum(axis=-1)
    quality *= np.clip(1.05 - 0.9 * speed / scale[:, None], 0.35, 1)
    for hand in range(2):
        own = slice(18 + 21 * hand, 39 + 21 * hand)
        lost = np.clip(2.0 + 1.6 * _drift(rng, frames, 1, 1.0), 0.03, 1)
        quality[:, own] *= lost
    confidence = np.clip(quality + rng.normal(0, 0.02, quality.shape), 0, 1)
    least, most = _ERROR
    spread = (least + (most - least) * (1 - confidence) ** 2) * scale[:, None]
    spread[:, 18:] *= np.where(
        np.arange(110) < 42, 0.6, 0.4
    )  # hands and faces are found in crops of their own
    error = np.stack([_drift(rng, frames, 128, 1.0) for _ in range(2)], axis=-1) * spread[..., None]
    return _sequence(points + error / truth.size, confidence, truth.size, truth.fps)


def _drift(rng: np.random.Generator, frames: int, points: int, size: float) -> Array:
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
    radius: float
    """In standing heights."""
    margin: float
    """A point must lie this much behind it."""
    own: tuple[int, ...] = ()
    """Points that belong to it, which it does not hide."""


def _covered(view: View, character: Character, pixels: Array) -> Flags:
    """Which points [F,128] lie behind a limb, the trunk or the head."""
    frames = len(pixels)
    face = np.broadcast_to((view.skull_depth + 0.1)[:, None], (frames, 68))
    levels = np.concatenate([view.body_depth, view.hands_depth.reshape(frames, 42), face], axis=1)
    covered = np.zeros((frames, pixels.shape[1]), bool)
    for rod in _rods(view, character):
        along, away = (rod.end - rod.start)[:, None], pixels - rod.start[:, None]
        share = np.clip((away * along).sum(-1) / np.maximum((along**2).sum(-1), 1e-9), 0, 1)
        gap = ((away - share[..., None] * along) ** 2).sum(-1)
        level = rod.near[:, None] + (rod.far - rod.near)[:, None] * share
        hides = (gap < (rod.radius * view.scale[:, None]) ** 2) & (level > levels + rod.margin)
        hides[:, list(rod.own)] = False
        covered |= hides
    return covered


def _rods(view: View, character: Character) -> Iterator[_Rod]:
    body, depth, size = view.body, view.body_depth, character.body
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


def _averted(view: View, character: Character) -> Flags:
    """Which points of the head [F,128] are on its far side."""
    skeleton, head = view.skeleton, character.body.head
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
    frames = len(points)
    at: npt.NDArray[np.float32] = points.astype(np.float32)
    sure: npt.NDArray[np.float32] = score.astype(np.float32)
    return PoseSequence(
        body=at[:, :18],
        body_score=sure[:, :18],
        hands=at[:, 18:60].reshape(frames, 2, 21, 2),
        hands_score=sure[:, 18:60].reshape(frames, 2, 21),
        face=at[:, 60:],
        face_score=sure[:, 60:],
        fps=fps,
        size=size,
    )
