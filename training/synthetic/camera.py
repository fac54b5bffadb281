"""The camera, and what it sees of a skeleton: pixels and depths."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .geometry import Array, Rng
from .motion import Waves
from .skeleton import LEGS, NECK, Skeleton

_HEAD_ROOM = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class Camera:
    """Per frame: pixel = scale * (x, y) + offset for the person; zoom, then pan for what is behind."""

    scale: Array  # [F], pixels of a standing height
    offset: Array  # [F,2], pixels
    zoom: Array  # [F], about the picture's middle
    pan: Array  # [F,2], pixels

    def larger(self, factor: float) -> Camera:
        """The same camera on a picture of `factor` times the size."""
        return Camera(self.scale * factor, self.offset * factor, self.zoom, self.pan * factor)


def framed(times: Array, height: int, width: int, rng: Rng) -> Camera:
    """The camera for a dance on the floor y = 0: mostly the whole person, at times without the feet."""
    whole = min(height, 1.75 * width)
    scale, ground = rng.uniform(0.7, 0.84) * whole, rng.uniform(0.93, 0.98) * height
    if rng.random() < 0.15:
        scale *= rng.uniform(1.2, 1.5)
        ground = 0.14 * height + scale
    at = np.array([width * rng.uniform(0.46, 0.54), ground])
    return _handheld(times, rng, height, width, scale, np.zeros(2), at)


def portrait(
    skeleton: Skeleton, frames: int, height: int, width: int, rng: Rng, *, near: bool | None = None
) -> Camera:
    """The camera for `frames` frames of a doll's dance, for instance of `skeleton`.

    It stands still and shows the whole doll, or is `near`: knee-up or waist-up.

    Half of the seeds are near if `near` is None.
    """
    whole = min(height, 1.75 * width)
    scale, ground = rng.uniform(0.7, 0.84) * whole, rng.uniform(0.93, 0.98) * height
    middle, closer = skeleton.body[:, NECK].mean(axis=0), rng.uniform(1.35, 1.95)
    at = np.array([width * rng.uniform(0.46, 0.54), ground + scale * middle[1]])
    if rng.random() < 0.5 if near is None else near:
        middle, scale = skeleton.skull.mean(axis=0), scale * closer
        at[1] = rng.uniform(0.08, 0.15) * height + 0.5 * scale * skeleton.character.body.head
    return _still(frames, scale, at - scale * middle[:2])


def fitted(skeleton: Skeleton, times: Array, height: int, width: int, rng: Rng) -> Camera:
    """The camera that holds all of a motion, wherever it goes."""
    points = skeleton.body[..., :2].reshape(-1, 2)
    low, high = points.min(axis=0) - _HEAD_ROOM, points.max(axis=0) + 0.6 * _HEAD_ROOM
    scale = min(0.95 * height / (high[1] - low[1]), 0.95 * width / (high[0] - low[0]))
    scale = max(min(scale, 0.85 * height), 0.45 * height)
    middle = np.array([0.5 * width, 0.5 * height])
    if skeleton.character.style == "doll":
        return _still(len(times), scale, middle - scale * (low + high) / 2)
    return _handheld(times, rng, height, width, scale, (low + high) / 2, middle)


def _still(frames: int, scale: float, offset: Array) -> Camera:
    return Camera(
        np.full(frames, scale), np.tile(offset, (frames, 1)), np.ones(frames), np.zeros((frames, 2))
    )


def _handheld(
    times: Array, rng: Rng, height: int, width: int, scale: float, anchor: Array, at: Array
) -> Camera:
    """A camera that sways and zooms a little, and shows the point `anchor` [2] of the room at pixel `at`."""
    waves = Waves(rng, times, 0.5, 1.0)
    reach = 0.0 if rng.random() < 0.3 else rng.uniform(0.3, 1.0)  # some stand still
    short, middle = min(height, width), np.array([width, height]) / 2
    zoom = 1 + reach * waves(-0.05, 0.05, 0.4)
    pan = reach * short * np.stack([waves(-0.03, 0.03, 0.5), waves(-0.015, 0.015, 0.5)], axis=-1)
    offset = middle + zoom[:, None] * (at - scale * anchor - middle) + pan
    return Camera(scale * zoom, offset, zoom, pan)


class View:
    """A skeleton as a camera of as many frames sees it. Points are pixels from the picture's corner; depths are
    standing heights to the viewer from the trunk at the same level: what lies before the trunk is above 0."""

    def __init__(self, skeleton: Skeleton, camera: Camera) -> None:
        self.skeleton, self.character = skeleton, skeleton.character
        self.scale = camera.scale  # [F], pixels of a standing height
        neck, hips = skeleton.body[:, NECK], skeleton.body[:, [leg[0] for leg in LEGS]].mean(axis=1)
        rise = hips[:, 1] - neck[:, 1]
        rise = np.where(np.abs(rise) < 0.05, 0.05, rise)

        def per_frame(values: Array, points: Array) -> Array:
            return values.reshape(len(points), *(1,) * (points.ndim - 2), *values.shape[1:])

        def pixels(points: Array) -> Array:
            scale, offset = per_frame(camera.scale, points), per_frame(camera.offset, points)
            return scale[..., None] * points[..., :2] + offset

        def depth(points: Array) -> Array:
            share = (points[..., 1] - per_frame(neck[:, 1], points)) / per_frame(rise, points)
            share = np.clip(share, 0, 1)
            level = per_frame(neck[:, 2], points) * (1 - share) + per_frame(hips[:, 2], points) * share
            return points[..., 2] - level

        self.body, self.body_depth = pixels(skeleton.body), depth(skeleton.body)  # [F,18,2], [F,18]
        self.hands, self.hands_depth = pixels(skeleton.hands), depth(skeleton.hands)  # [F,2,21,2], [F,2,21]
        self.face, self.toes = pixels(skeleton.face), pixels(skeleton.toes)  # [F,68,2], [F,2,2]
        self.skull, self.skull_depth = pixels(skeleton.skull), depth(skeleton.skull)  # [F,2], [F]
        self.hips = pixels(hips)  # [F,2], their middle
