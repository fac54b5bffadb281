"""Real keypoints as the motion of another body: the directions of its bones, at the character's lengths."""

from __future__ import annotations

import numpy as np

from ...pose.draw import FINGERS
from ...pose.sequence import PoseSequence
from .character import Character
from .dance import expression
from .hand import facing, gesture, hand_points
from .head import Expression
from .rotation import Array, across, pitch, turn, unit
from .skeleton import ARMS, LEGS, NECK, SIDES, Skeleton, complete
from .waves import Waves

_SEEN = 0.3
_SEEN_HAND = 0.25


def retarget(character: Character, motion: PoseSequence, times: Array, rng: np.random.Generator) -> Skeleton:
    """The character in the poses of `motion` at `times` [F], in seconds from its start, to and fro.

    Directions of limbs in the picture are the motion's own; a bone that looks shorter than it is points to
    the viewer or away. Hands that the motion does not show, and faces, move on their own.
    """
    size, source = character.body, _sampled(motion, times)
    waves = Waves(rng, times, 0.6, 0.8)
    body = np.zeros((len(times), 18, 3))
    hips = source[:, [8, 11]].mean(axis=1)
    neck = source[:, [2, 5]].mean(axis=1)
    trunk = np.linalg.norm(hips - neck, axis=-1)
    unit_length = float(np.percentile(trunk, 95)) / size.torso  # source pixels of the character's height
    ears = source[:, 17] - source[:, 16]
    turned = _turned(ears, source[:, 0] - (source[:, 16] + source[:, 17]) / 2, unit_length * size.head)

    def bone(vector: Array, length: float, towards: Array | float) -> Array:
        return _bone(vector, length, unit_length, towards)

    root = (hips - np.median(hips, axis=0)) / unit_length
    middle = np.concatenate([root, np.zeros((len(times), 1))], axis=1)
    body[:, NECK] = middle + bone(neck - hips, size.torso, 1.0)
    shoulders = bone((source[:, 5] - source[:, 2]) / 2, size.shoulder, -turned)
    pelvis = bone((source[:, 11] - source[:, 8]) / 2, size.hip, -turned)
    for side, arm, leg in zip(SIDES, ARMS, LEGS, strict=True):
        body[:, arm[0]] = body[:, NECK] + side * shoulders
        body[:, leg[0]] = middle + side * pelvis
        for (first, last), length, towards in (
            (arm[:2], size.upper_arm, 0.7), (arm[1:], size.forearm, 1.0),
            (leg[:2], size.thigh, 1.0), (leg[1:], size.shin, -1.0),
        ):  # fmt: skip
            body[:, last] = body[:, first] + bone(source[:, last] - source[:, first], length, towards)
    frames = (_frame(shoulders, middle - body[:, NECK]), _frame(pelvis, middle - body[:, NECK]))
    head = _head(ears, source[:, 0] - (source[:, 16] + source[:, 17]) / 2, turned, frames[0])
    toes = np.stack([_toes(character, body, frames[1], index) for index in (0, 1)], axis=1)
    hands = np.stack(
        [_hand(character, body, motion, times, index, waves, rng) for index in (0, 1)], axis=1
    )
    return complete(character, body, hands, toes, (*frames, head), _mood(waves))


def _mood(waves: Waves) -> Expression:
    return expression(waves)


def _index(motion: PoseSequence, times: Array) -> Array:
    """Fractional frames of the motion at `times`, to and fro."""
    last = max(len(motion) - 1, 1)
    place: Array = last - np.abs((times * motion.fps) % (2 * last) - last)
    return np.clip(place, 0, len(motion) - 1)


def _at(values: Array, index: Array) -> Array:
    """Linear interpolation of [N,...] at fractional frames [F]."""
    low = np.floor(index).astype(int)
    high = np.minimum(low + 1, len(values) - 1)
    share = (index - low).reshape(-1, *(1,) * (values.ndim - 1))
    mixed: Array = values[low] * (1 - share) + values[high] * share
    return mixed


def _sampled(motion: PoseSequence, times: Array) -> Array:
    """Body points in pixels [F,18,2]; what was not seen is taken from the frames around."""
    points = motion.body.astype(np.float64) * motion.size
    frames = np.arange(len(motion))
    for joint in range(18):
        seen = motion.body_score[:, joint] >= _SEEN
        if seen.any():
            for axis in range(2):
                points[:, joint, axis] = np.interp(frames, frames[seen], points[seen, joint, axis])
    return _at(points, _index(motion, times))


def _bone(vector: Array, length: float, unit_length: float, towards: Array | float) -> Array:
    """A bone [F,3] of `length` in the direction of `vector` [F,2] source pixels, longer ones in the plane."""
    seen = np.linalg.norm(vector, axis=-1)
    full = max(float(np.percentile(seen, 95)), 0.75 * length * unit_length, 1e-6)
    share = np.clip(seen / full, 0, 1)
    flat = unit(vector) * (length * share)[:, None]
    depth = length * np.sqrt(1 - share**2) * towards
    return np.concatenate([flat, depth[:, None]], axis=1)


def _turned(ears: Array, nose: Array, head: float) -> Array:
    """-1 to 1 [F]: how surely the person looks to the picture's left or right."""
    along = np.sum(unit(ears) * nose, axis=-1)
    sure: Array = np.tanh(6 * along / head)
    return sure


def _frame(right: Array, down: Array) -> Array:
    """A rotation [F,3,3] from the directions of its right and, about, its down."""
    first = unit(right)
    second = across(down, first)
    return np.stack([first, second, np.cross(first, second)], axis=-1)


def _head(ears: Array, nose: Array, turned: Array, chest: Array) -> Array:
    wide = max(float(np.percentile(np.linalg.norm(ears, axis=-1), 95)), 1e-6)
    share = np.clip(np.linalg.norm(ears, axis=-1) / wide, 0.25, 1)
    flat = unit(ears) * share[:, None]
    right = np.concatenate([flat, (-turned * np.sqrt(1 - share**2))[:, None]], axis=1)
    upright = 0.5 * chest[..., 1] + np.array([0.0, 0.5, 0.0])
    down = np.stack([-ears[:, 1], ears[:, 0]], axis=-1)
    nod = np.sum(unit(down) * nose, axis=-1) / wide - 0.15
    return _frame(right, upright) @ pitch(np.clip(nod, -0.5, 0.6))


def _toes(character: Character, body: Array, pelvis: Array, index: int) -> Array:
    ankle, knee = body[:, LEGS[index][2]], body[:, LEGS[index][1]]
    ahead = turn(pelvis, np.array([SIDES[index] * 0.55, 0.35, 0.7]))
    return ankle + character.body.foot * unit(ahead + 0.35 * unit(ankle - knee))


def _hand(
    character: Character, body: Array, motion: PoseSequence, times: Array, index: int, waves: Waves,
    rng: np.random.Generator,
) -> Array:  # fmt: skip
    """The motion's fingers where it shows them, and a hand that moves on its own where not [F,21,3]."""
    _, elbow, wrist = (body[:, joint] for joint in ARMS[index])
    side, length = SIDES[index], character.body.hand
    along = unit(wrist - elbow)
    rest = hand_points(wrist, along, facing(along, side), gesture(waves, rng), length, side)
    score = motion.hands_score[:, index].mean(axis=1).astype(np.float64)
    if score.max() < _SEEN_HAND:
        return rest
    place = _index(motion, times)
    shown = _at(np.clip(2 * score / _SEEN_HAND - 1.5, 0, 1), place)[:, None]
    points = motion.hands[:, index].astype(np.float64) * motion.size
    seen = score >= _SEEN_HAND
    palm = np.linalg.norm(points[seen, 9] - points[seen, 0], axis=-1)
    pixels = max(float(np.percentile(palm, 90)), 1e-6) / (0.49 * length)
    source = _at(points, place)
    made = rest.copy()
    for first, last in FINGERS:
        own = rest[:, last] - rest[:, first]
        bone = np.linalg.norm(own, axis=-1, keepdims=True)
        flat = (source[:, last] - source[:, first]) / pixels
        flat /= np.maximum(np.linalg.norm(flat, axis=-1, keepdims=True) / bone, 1)
        depth = np.sqrt(np.maximum(bone**2 - (flat**2).sum(-1, keepdims=True), 0))
        given = np.concatenate([flat, 0.6 * depth], axis=1)
        made[:, last] = made[:, first] + bone * unit(shown * given + (1 - shown) * own)
    return made
