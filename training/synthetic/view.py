"""What the camera sees of a skeleton: pixels and depths."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .rotation import Array
from .skeleton import LEGS, NECK, Skeleton
from .waves import Waves


@dataclass(frozen=True, slots=True, eq=False)
class Camera:
    """Per frame: pixel = scale * (x, y) + offset, for the person; zoom and pan [pixels] for what is behind."""

    scale: Array
    """[F], pixels of a standing height."""
    offset: Array
    """[F,2], pixels."""
    zoom: Array
    """[F], about the picture's middle."""
    pan: Array
    """[F,2], pixels."""

    def take(self, frames: slice) -> Camera:
        """The camera of some of the frames."""
        return Camera(self.scale[frames], self.offset[frames], self.zoom[frames], self.pan[frames])

    def larger(self, factor: float) -> Camera:
        """The same camera on a picture of `factor` times the size."""
        return Camera(self.scale * factor, self.offset * factor, self.zoom, self.pan * factor)


def handheld(
    waves: Waves, rng: np.random.Generator, height: int, width: int, scale: float, anchor: Array, at: Array
) -> Camera:
    """A camera that sways and zooms a little, and shows the point `anchor` [2] of the room at pixel `at`."""
    still = rng.random() < 0.3
    reach = 0.0 if still else rng.uniform(0.3, 1.0)
    short, middle = min(height, width), np.array([width, height]) / 2
    zoom = 1 + reach * waves(-0.05, 0.05, 0.4)
    pan = reach * short * np.stack([waves(-0.03, 0.03, 0.5), waves(-0.015, 0.015, 0.5)], axis=-1)
    steady = at - scale * anchor
    return Camera(scale * zoom, middle + zoom[:, None] * (steady - middle) + pan, zoom, pan)


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A skeleton in the picture. Points are float64 pixels from the picture's corner; depths are standing
    heights towards the viewer, measured from the trunk at the same level: above 0 is in front of it."""

    skeleton: Skeleton
    scale: Array
    """[F], pixels of a standing height."""
    body: Array
    """[F,18,2]"""
    body_depth: Array
    """[F,18]"""
    hands: Array
    """[F,2,21,2]"""
    hands_depth: Array
    """[F,2,21]"""
    face: Array
    """[F,68,2]"""
    toes: Array
    """[F,2,2]"""
    toes_depth: Array
    """[F,2]"""
    skull: Array
    """[F,2]"""
    skull_depth: Array
    """[F]"""
    hips: Array
    """[F,2], their middle."""

    @staticmethod
    def of(skeleton: Skeleton, camera: Camera) -> View:
        """The skeleton as `camera`, of as many frames, sees it."""

        def pixels(points: Array) -> Array:
            shape = (len(points), *(1,) * (points.ndim - 2))
            offset = camera.offset.reshape(*shape, 2)
            placed: Array = camera.scale.reshape(*shape, 1) * points[..., :2] + offset
            return placed

        def depth(points: Array) -> Array:
            return _depth(points, skeleton)

        hips = skeleton.body[:, [leg[0] for leg in LEGS]].mean(axis=1)
        return View(
            skeleton, camera.scale,
            pixels(skeleton.body), depth(skeleton.body), pixels(skeleton.hands), depth(skeleton.hands),
            pixels(skeleton.face), pixels(skeleton.toes), depth(skeleton.toes),
            pixels(skeleton.skull), depth(skeleton.skull), pixels(hips),
        )  # fmt: skip


def _depth(points: Array, skeleton: Skeleton) -> Array:
    shape = (len(points), *(1,) * (points.ndim - 2))
    neck = skeleton.body[:, NECK]
    hips = skeleton.body[:, [leg[0] for leg in LEGS]].mean(axis=1)
    rise = hips[:, 1] - neck[:, 1]
    rise = np.where(np.abs(rise) < 0.05, 0.05, rise).reshape(shape)
    share = np.clip((points[..., 1] - neck[:, 1].reshape(shape)) / rise, 0, 1)
    level = neck[:, 2].reshape(shape) * (1 - share) + hips[:, 2].reshape(shape) * share
    relative: Array = points[..., 2] - level
    return relative
