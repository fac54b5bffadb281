"""The stage: where the camera stands, what passes in front, and the filming of a clip."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .character import Character
from .figure import figure_parts
from .paint import light_up, paint
from .palette import vivid
from .rotation import Array
from .scenery import Picture, paint_backdrop
from .shapes import Layer
from .skeleton import Skeleton
from .view import Camera, View, handheld
from .waves import Waves

_HEAD_ROOM = 0.1


def framed(skeleton: Skeleton, times: Array, height: int, width: int, rng: np.random.Generator) -> Camera:
    """The camera for a dance on the floor y = 0: mostly the whole person, at times without the feet."""
    whole = min(height, 1.75 * width)
    scale, ground = rng.uniform(0.7, 0.84) * whole, rng.uniform(0.93, 0.98) * height
    if rng.random() < 0.15:
        scale *= rng.uniform(1.2, 1.5)
        ground = 0.14 * height + scale
    waves = Waves(rng, times, 0.5, 1.0)
    at = np.array([width * rng.uniform(0.46, 0.54), ground])
    return handheld(waves, rng, height, width, scale, np.zeros(2), at)


def fitted(skeleton: Skeleton, times: Array, height: int, width: int, rng: np.random.Generator) -> Camera:
    """The camera that holds all of a motion, wherever it goes."""
    points = skeleton.body[..., :2].reshape(-1, 2)
    low, high = points.min(axis=0) - _HEAD_ROOM, points.max(axis=0) + 0.6 * _HEAD_ROOM
    scale = min(0.95 * height / (high[1] - low[1]), 0.95 * width / (high[0] - low[0]))
    scale = max(min(scale, 0.85 * height), 0.45 * height)
    waves = Waves(rng, times, 0.5, 1.0)
    at = np.array([0.5 * width, 0.5 * height])
    return handheld(waves, rng, height, width, scale, (low + high) / 2, at)


def passing_thing(times: Array, exposures: int, height: int, width: int, rng: np.random.Generator) -> Layer:
    """Something that crosses the picture in front of the person, not in the first frame, in pixels."""
    clip = times[exposures:]
    begin, end = clip[0], clip[-1] + 1e-6
    share = (times - rng.uniform(begin, (begin + end) / 2)) / max((end - begin) * rng.uniform(0.5, 1.0), 0.3)
    middle = np.stack([share * width, np.full(len(times), rng.uniform(0.25, 0.8) * height)], axis=-1)
    if rng.random() < 0.5:
        middle[:, 0] = width - middle[:, 0]
    turn = np.linspace(0, 2 * np.pi, 16 if rng.random() < 0.5 else 4, endpoint=False) + rng.uniform(0, np.pi)
    wide, high = rng.uniform(0.08, 0.2, 2) * min(height, width)
    ring = np.stack([wide * np.cos(turn), high * np.sin(turn)], axis=-1)
    shown = np.arange(len(times)) >= exposures
    return Layer(middle[:, None] + ring, vivid(rng), shown)


def film(
    character: Character, skeleton: Skeleton, camera: Camera, passing: list[Layer], height: int, width: int,
    exposures: int,
) -> tuple[Picture, npt.NDArray[np.uint8]]:  # fmt: skip
    """Pictures uint8 [F,height,width,3] and masks uint8 [F,height,width] of F * `exposures` poses."""
    times = int(np.clip(np.ceil(192 / min(height, width)), 2, 4))
    large = camera.larger(times)
    floor = float(np.clip(camera.offset[:, 1].mean() / height - 0.1, 0.55, 0.95))
    room = paint_backdrop(character.backdrop, height * times, width * times, floor)
    view = View.of(skeleton, large)
    things = [layer.larger(times) for layer in passing]
    painted = paint(room, large, view, figure_parts(view, character), things, times)
    if exposures > 1:
        painted = painted.reshape(-1, exposures, height, width, 4).mean(axis=1)
    return light_up(painted, character.light), np.rint(painted[..., 3]).astype(np.uint8)
