"""Real keypoints as the motion of another body: the directions of its bones, at the character's lengths."""

from __future__ import annotations

import numpy as np

from ...errors import MotionError
from ...pose.draw import FINGERS
from ...pose.sequence import PoseSequence
from .character import Character
from .dance import expression
from .hand import facing, gesture, hand_points
from .rotation import Array, across, pitch, turn, unit
from .skeleton import ARMS, LEGS, NECK, SIDES, Skeleton, complete
from .waves import Waves

_SEEN = 0.3
_SEEN_HAND = 0.25
_HIPS = 18
_AT_REST = {
    3: (2, -0.1, 0.55), 4: (3, 0.0, 0.5), 6: (5, 0.1, 0.55), 7: (6, 0.0, 0.5),
    9: (8, 0.0, 0.8), 10: (9, 0.0, 0.8), 12: (11, 0.0, 0.8), 13: (12, 0.0, 0.8),
    16: (1, -0.2, -0.4), 17: (1, 0.2, -0.4), 14: (1, -0.1, -0.45), 15: (1, 0.1, -0.45), 0: (1, 0.0, -0.35),
}  # fmt: skip
"""Where a joint that is never seen is put: from which joint, right and down, in lengths of the trunk."""


class _Source:
    """The motion's body points in pixels: all its frames, and those at the wanted times."""

    def __init__(self, motion: PoseSequence, times: Array) -> None:
        self._whole = _filled(motion)
        self.points = _at(self._whole, _index(motion, times))
        """[F,19,2]; the last is the middle of the hips."""

    def length(self, first: int, last: int) -> float:
        """How long a bone looks when it lies in the plane, in pixels."""
        lengths = np.linalg.norm(self._whole[:, last] - self._whole[:, first], axis=-1)
        return max(float(np.percentile(lengths, 95)), 1e-3)

    def vector(self, first: int, last: int) -> Array:
        """[F,2], pixels."""
        along: Array = self.points[:, last] - self.points[:, first]
        return along


def retarget(character: Character, motion: PoseSequence, times: Array, rng: np.random.Generator) -> Skeleton:
    """The character in the poses of `motion` at `times` [F], in seconds from its start, to and fro.

    Directions of limbs in the picture are the motion's own; a bone that looks shorter than it is points to
    the viewer or away. Hands that the motion does not show, and faces, move on their own. Raises
    `MotionError` if the motion never shows the shoulders and hips.
    """
    size, source = character.body, _Source(motion, times)
    waves = Waves(rng, times, 0.6, 0.8)
    unit_length = source.length(_HIPS, NECK) / size.torso  # source pixels of the character's height
    ears = source.vector(16, 17)
    nose = source.points[:, 0] - source.points[:, 16:18].mean(axis=1)
    turned = _turned(ears, nose, unit_length * size.head)

    def bone(first: int, last: int, length: float, towards: Array | float) -> Array:
        full = max(source.length(first, last), 0.75 * length * unit_length)
        return _bone(source.vector(first, last) / full, length, towards)

    body = np.zeros((len(times), 18, 3))
    middle = np.zeros((len(times), 3))
    middle[:, :2] = (source.points[:, _HIPS] - np.median(source.points[:, _HIPS], axis=0)) / unit_length
    body[:, NECK] = middle + bone(_HIPS, NECK, size.torso, 0.5)
    shoulders = bone(2, 5, 2 * size.shoulder, -turned) / 2
    pelvis = bone(8, 11, 2 * size.hip, -turned) / 2
    for side, arm, leg in zip(SIDES, ARMS, LEGS, strict=True):
        body[:, arm[0]] = body[:, NECK] + side * shoulders
        body[:, leg[0]] = middle + side * pelvis
        for (first, last), length, towards in (
            (arm[:2], size.upper_arm, 0.7), (arm[1:], size.forearm, 1.0),
            (leg[:2], size.thigh, 0.5), (leg[1:], size.shin, -0.5),
        ):  # fmt: skip
            body[:, last] = body[:, first] + bone(first, last, length, towards)
    frames = (_frame(shoulders, middle - body[:, NECK]), _frame(pelvis, middle - body[:, NECK]))
    head = _head(ears, nose, source.length(16, 17), turned, frames[0])
    toes = np.stack([_toes(character, body, frames[1], index) for index in (0, 1)], axis=1)
    hands = np.stack([_hand(character, body, motion, times, index, waves, rng) for index in (0, 1)], axis=1)
    return complete(character, body, hands, toes, (*frames, head), expression(waves))


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


def _filled(motion: PoseSequence) -> Array:
    """Body points in pixels [N,19,2], the middle of the hips last.

    What a frame does not show is taken from those around it, what none shows from a person at rest.
    """
    seen = motion.body_score >= _SEEN
    if not seen[:, [2, 5, 8, 11]].any(axis=0).all():
        raise MotionError(
            "The motion never shows both shoulders and both hips.",
            remedy="Choose keypoints of a person whose trunk is in the picture.",
            field="motion.body_score",
        )
    points = np.zeros((len(motion), 19, 2))
    frames = np.arange(len(motion))

    def fill(joint: int) -> None:
        own = seen[:, joint]
        if own.any():
            given = motion.body[own, joint].astype(np.float64) * motion.size
            points[:, joint] = np.stack(
                [np.interp(frames, frames[own], given[:, i]) for i in (0, 1)], axis=-1
            )
        else:
            parent, x, y = _AT_REST[joint]
            points[:, joint] = points[:, parent] + trunk[:, None] * (x, y)

    for joint in (2, 5, 8, 11):
        fill(joint)
    points[:, NECK], points[:, _HIPS] = points[:, [2, 5]].mean(axis=1), points[:, [8, 11]].mean(axis=1)
    trunk = np.linalg.norm(points[:, NECK] - points[:, _HIPS], axis=-1)
    for joint in _AT_REST:
        fill(joint)
    return points


def _bone(share: Array, length: float, towards: Array | float) -> Array:
    """A bone [F,3] of `length`, of which `share` [F,2] is seen; what is not points to the viewer or away."""
    seen = np.clip(np.linalg.norm(share, axis=-1), 0, 1)
    flat = unit(share) * (length * seen)[:, None]
    depth = length * np.sqrt(1 - seen**2) * towards
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


def _head(ears: Array, nose: Array, wide: float, turned: Array, chest: Array) -> Array:
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
