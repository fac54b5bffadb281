"""Clips of synthetic people with exact truth, from a seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np

from ...errors import SettingsError
from ...pose.rescale import fit, moved
from ...pose.sequence import PoseSequence
from .camera import Camera, View, fitted, framed, portrait
from .character import Character, Style, vivid
from .doll import doll_parts
from .figure import figure_parts
from .geometry import Array, Rng
from .keypoints import observed_keypoints, true_keypoints
from .motion import dance, retarget
from .paint import Layer, Picture, light_up, paint, paint_backdrop
from .skeleton import Skeleton

TRAIN_SEEDS = range(1_000_000)
"""Seeds of clips and characters to train on."""
VALIDATION_SEEDS = range(1_090_000, 1_100_000)
"""Seeds to look at while training."""
TEST_SEEDS = range(1_000_000, 2**62)
"""Seeds to test on, those of validation among them: no character, room or dance of training is there."""
_EXPOSURES = 5
_RANGES = {
    "seed": (0, 2**63), "character_seed": (0, 2**63), "frames": (1, 100_000), "height": (16, 4096),
    "width": (16, 4096), "fps": (1e-3, 1e6), "blur": (0, 1),
}  # fmt: skip
T = TypeVar("T", Skeleton, Camera, Layer)


@dataclass(frozen=True, slots=True, eq=False)
class SyntheticClip:
    """A clip of F frames of one synthetic person."""

    frames: Picture  # uint8 [F,H,W,3] RGB
    truth: PoseSequence
    """Exact keypoints of F frames; the score is 1, or low where a point is covered or outside the picture."""
    observed: PoseSequence
    """What an estimator would give, with errors that grow as the confidence falls: of this person, or of somebody of
    another build who moves the same, fitted to the reference as the runtime does it."""
    reference: Picture
    """uint8 [H,W,3] RGB: the same person and room at another moment of the motion, nothing in front."""
    reference_pose: PoseSequence  # the exact keypoints of the reference
    masks: Picture  # uint8 [F,H,W]: how much of each pixel is person, 255 all of it
    character: Character


def make_clip(
    seed: int, frames: int, height: int, width: int, *, fps: float = 15.0, motion: PoseSequence | None = None,
    character_seed: int | None = None, blur: float | None = None, occlusion: bool | None = None,
    style: Style = "doll", driven: bool | None = None,
) -> SyntheticClip:  # fmt: skip
    """The clip of that seed and `style`: always the same bytes.

    `motion`: real keypoints to follow instead of a random dance. `character_seed`: the person, `seed` if not
    given. `blur`: the share in [0,1] of the time between frames that the shutter is open; `occlusion`:
    whether something passes in front; `driven`: whether the observed keypoints of a dance are those of somebody of
    another build. Where these three are None the seed decides: of dolls, four clips in ten are driven; in the style
    `rich`, one in six is blurred and one in twelve has something passing. Raises `SettingsError` for arguments out of
    range.
    """
    _check_ranges(
        seed=seed, character_seed=character_seed, frames=frames, height=height, width=width, fps=fps, blur=blur
    )  # fmt: skip
    character = Character.from_seed(seed if character_seed is None else character_seed, style)

    def stream(purpose: int) -> Rng:
        return np.random.default_rng((seed, purpose))

    rng = stream(1)
    chance_blur, chance_passing, amount = rng.random(3)
    rich = style == "rich"
    shutter = (0.4 + 0.5 * amount if rich and chance_blur < 1 / 6 else 0.0) if blur is None else blur
    crossing = bool(rich and chance_passing < 1 / 12) if occlusion is None else occlusion
    exposures = _EXPOSURES if shutter > 0 else 1
    times = _times(rng, frames, fps, motion, shutter, exposures)
    sharp = slice(exposures // 2, None, exposures)  # the middle of each frame's exposures
    if motion is not None:
        skeleton = retarget(character, motion, times, stream(2))
        camera = fitted(skeleton, times, height, width, stream(4))
    else:
        skeleton = dance(character, times, stream(2))
        room = stream(4)
        middle = _take(skeleton, sharp)
        camera = (
            framed(times, height, width, room) if rich else portrait(middle, len(times), height, width, room)
        )
    passing = [passing_thing(times, exposures, height, width, stream(5))] if crossing else []
    pictures, masks = film(skeleton, camera, passing, height, width, exposures)
    view = View(_take(skeleton, sharp), _take(camera, sharp))
    truth = true_keypoints(view, [_take(thing, sharp) for thing in passing], (width, height), fps)
    observed = observed_keypoints(truth[1:], view.scale[1:], stream(3))
    rng = stream(6)
    chance_driven = rng.random()
    if motion is None and (not rich and chance_driven < 0.4 if driven is None else driven):
        other = Character.from_seed(int(rng.integers(TRAIN_SEEDS.stop)), "rich")
        driver = dance(replace(character, body=other.body, face=other.face), times[sharp], stream(2))
        observed = driver_keypoints(driver, truth[0], fps, rng)
    return SyntheticClip(pictures[1:], truth[1:], observed, pictures[0], truth[0], masks[1:], character)


def iter_clips(
    seed: int, count: int, frames: int, height: int, width: int, **kwargs: Any
) -> Iterator[SyntheticClip]:
    """The clips of the seeds `seed` to `seed + count - 1`, one after another; arguments of `make_clip`."""
    for index in range(count):
        yield make_clip(seed + index, frames, height, width, **kwargs)


def driver_keypoints(driver: Skeleton, reference: PoseSequence, fps: float, rng: Rng) -> PoseSequence:
    """What is found of a `driver` after the first frame, all moved as the runtime fits that one to `reference`."""
    width, height = reference.size
    frames = len(driver.body)
    view = View(driver, portrait(driver, frames, height, width, rng, near=bool(rng.random() < 0.3)))
    poses = true_keypoints(view, [], (width, height), fps)
    observed = observed_keypoints(poses[1:], view.scale[1:], rng)
    return moved(observed, *fit(poses[0], reference, height / width), (width, height))


def _times(
    rng: Rng, frames: int, fps: float, motion: PoseSequence | None, shutter: float, exposures: int
) -> Array:
    """Seconds [(1+F)*exposures]: the reference, then the clip, each frame as its exposures."""
    long = (frames - 1) / fps
    if motion is None:
        start, reference = 0.0, rng.uniform(1.5, 5.0) * rng.choice([-1, 1])
        reference += long if reference > 0 else 0
    else:
        whole = (len(motion) - 1) / motion.fps
        start = rng.uniform(0, max(whole - long, 0))
        before, after = start, max(whole - start - long, 0)
        outside = rng.uniform(0, before + after)
        reference = outside if outside <= before else outside + long
    offsets = (np.arange(exposures) - exposures // 2) / exposures * shutter / fps
    clip = start + np.arange(frames)[:, None] / fps + offsets
    return np.concatenate([np.full(exposures, reference), clip.ravel()])


def _check_ranges(**values: float | None) -> None:
    for name, value in values.items():
        low, high = _RANGES[name]
        if value is not None and not low <= value <= high:
            raise SettingsError(
                f"{name} of a synthetic clip is {value}.",
                remedy=f"Choose {low:g} to {high:g}.",
                field=f"synthetic.{name}",
            )


def _take(thing: T, frames: slice) -> T:
    """Some frames of something whose arrays all have frames first."""
    values = {field.name: getattr(thing, field.name) for field in fields(thing)}
    taken: dict[str, Any] = {n: value[frames] for n, value in values.items() if isinstance(value, np.ndarray)}
    return replace(thing, **taken)


def passing_thing(times: Array, exposures: int, height: int, width: int, rng: Rng) -> Layer:
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
    skeleton: Skeleton, camera: Camera, passing: list[Layer], height: int, width: int, exposures: int
) -> tuple[Picture, Picture]:
    """Pictures uint8 [F,height,width,3] and masks uint8 [F,height,width] of F * `exposures` poses."""
    times = int(np.clip(np.ceil(192 / min(height, width)), 2, 4))
    large = camera.larger(times)
    floor = float(np.clip(camera.offset[:, 1].mean() / height - 0.1, 0.55, 0.95))
    room = paint_backdrop(skeleton.character.backdrop, height * times, width * times, floor)
    view = View(skeleton, large)
    things = [replace(layer, outline=layer.outline * times) for layer in passing]
    parts = doll_parts(view) if skeleton.character.style == "doll" else figure_parts(view)
    painted = paint(room, large, view, parts, things, times)
    if exposures > 1:
        painted = painted.reshape(-1, exposures, height, width, 4).mean(axis=1)
    return light_up(painted, skeleton.character.light), np.rint(painted[..., 3]).astype(np.uint8)
