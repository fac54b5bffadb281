"""Where poses come from: smooth random dances, and the keypoints of a real motion put on another body."""

from __future__ import annotations

import numpy as np

from ...errors import MotionError
from ...pose.draw import FINGERS
from ...pose.sequence import PoseSequence
from .character import Character
from .geometry import Array, Rng, about, across, pitch, roll, turn, unit, yaw
from .skeleton import ARMS, LEGS, NECK, SIDES, Expression, Skeleton, complete, facing, hand_points

_SINES = 4
_GESTURES = (
    (0.05, 0.05, 0.05, 0.05, 0.05),  # open
    (0.35, 0.4, 0.45, 0.45, 0.45),  # at ease
    (0.6, 0.9, 0.95, 0.95, 0.95),  # fist
    (0.7, 0.02, 0.9, 0.95, 0.95),  # pointing
    (0.75, 0.02, 0.02, 0.95, 0.95),  # two fingers
    (0.0, 0.9, 0.95, 0.95, 0.95),  # thumb up
)
_SEEN = 0.3
_SEEN_HAND = 0.25
_HIPS = 18
_AT_REST = {
    3: (2, -0.1, 0.55), 4: (3, 0.0, 0.5), 6: (5, 0.1, 0.55), 7: (6, 0.0, 0.5),
    9: (8, 0.0, 0.8), 10: (9, 0.0, 0.8), 12: (11, 0.0, 0.8), 13: (12, 0.0, 0.8),
    16: (1, -0.2, -0.4), 17: (1, 0.2, -0.4), 14: (1, -0.1, -0.45), 15: (1, 0.1, -0.45), 0: (1, 0.0, -0.35),
}  # fmt: skip
"""Where a joint that is never seen is put: from which joint, right and down, in lengths of the trunk."""


class Waves:
    """Smooth random signals at the given times [F] in seconds: sines of the beat and of random frequencies.

    `tempo` is the beat in Hz, `energy` in (0, 1] how much of its range a signal fills.
    """

    def __init__(self, rng: Rng, times: Array, tempo: float, energy: float) -> None:
        self._rng, self._times, self._tempo, self._energy = rng, times, tempo, energy

    def __call__(self, low: float, high: float, speed: float = 1.0) -> Array:
        """One signal [F] between `low` and `high`; `speed` is a factor of the tempo."""
        rng = self._rng
        rates = self._tempo * speed * np.append(rng.choice([0.5, 1.0]), rng.uniform(0.2, 1.3, _SINES - 1))
        weights = rng.uniform(0.3, 1.0, _SINES)
        phases = rng.uniform(0, 2 * np.pi, _SINES)
        sines = np.sin(2 * np.pi * self._times[:, None] * rates + phases)
        reach = self._energy * (high - low) / 2
        middle = rng.uniform(low + reach, high - reach)
        return np.asarray(middle + reach * np.tanh(1.3 * (sines @ weights) / np.linalg.norm(weights)))

    def beat(self, speed: float = 1.0) -> Array:
        """A plain sine [F] on the beat, of random phase."""
        phase = self._rng.uniform(0, 2 * np.pi)
        return np.sin(2 * np.pi * self._tempo * speed * self._times + phase)


def dance(character: Character, times: Array, rng: Rng) -> Skeleton:
    """The poses of a random dance at `times` [F], in seconds, feet on y = 0, near x = 0.

    The dance comes from `rng`: a generator of the same state with other times gives other moments of the same dance.
    """
    waves = Waves(rng, times, tempo=rng.uniform(0.35, 0.95), energy=rng.uniform(0.55, 1.0))
    root, pelvis, chest, head = _trunk(waves, len(times), rng)
    size, body = character.body, np.zeros((len(times), 18, 3))
    body[:, NECK] = -size.torso * unit(0.4 * pelvis[..., 1] + 0.6 * chest[..., 1])
    for side, arm, leg in zip(SIDES, ARMS, LEGS, strict=True):
        body[:, arm[0]] = body[:, NECK] + side * size.shoulder * chest[..., 0]
        body[:, leg[0]] = side * size.hip * pelvis[..., 0]
    toes = _legs(character, waves, root, pelvis, body, rng)
    hands = np.stack([_arm(character, waves, chest, body, index, rng) for index in (0, 1)], axis=1)
    ankles = body[:, [leg[2] for leg in LEGS]]
    shift = np.zeros((len(times), 1, 3))
    shift[:, 0, 0] = waves(-0.08, 0.08, 0.5) - 0.6 * ankles[..., 0].mean(axis=1)
    shift[:, 0, 1] = -ankles[..., 1].max(axis=1) - 1.2 * size.ankle_radius
    shift[:, 0, 1] -= rng.choice([0.0, 0.05]) * np.clip(waves.beat(2.0), 0, 1)  # some dances hop
    axes, face = (chest, pelvis, head), expression(waves)
    return complete(character, body + shift, hands + shift[:, None], toes + shift, axes, face)


def expression(waves: Waves) -> Expression:
    """A face that talks, smiles and blinks."""
    blink = np.clip(6 * waves(-1, 1, 1.7) - 4, 0, 1)
    mouth = np.clip(waves(-0.7, 1.2, 1.6), 0, 1)
    return Expression(mouth, np.clip(waves(-0.3, 1.2, 0.7), 0, 1), 1 - blink, np.clip(waves(-0.5, 1.0), 0, 1))


def gesture(waves: Waves, rng: Rng) -> Array:
    """Curl [F,5] of a hand that goes to and fro between two gestures."""
    first, second = (np.asarray(_GESTURES[index]) for index in rng.integers(len(_GESTURES), size=2))
    share = np.clip(waves(-0.6, 1.6, 1.2), 0, 1)[:, None]
    trembling = np.stack([waves(-0.12, 0.12, 1.5) for _ in range(5)], axis=-1)
    return np.asarray(np.clip(first + (second - first) * share + trembling, 0, 1))


def _trunk(waves: Waves, frames: int, rng: Rng) -> tuple[Array, Array, Array, Array]:
    """The rotations [F,3,3] of the whole person, the pelvis, the chest and the head."""
    wide = rng.choice([0.35, 0.7, 1.1], p=[0.5, 0.35, 0.15])
    root = pitch(np.full(frames, rng.uniform(0.05, 0.2))) @ yaw(waves(-wide, wide, 0.5))
    bow = np.maximum(waves(-0.5, 0.75, 0.6), -0.12)
    lean = waves(-0.32, 0.32, 0.8)
    pelvis = root @ pitch(0.35 * bow) @ roll(0.45 * lean - 0.1 * waves.beat()) @ yaw(waves(-0.25, 0.25))
    chest = root @ pitch(bow) @ roll(lean) @ yaw(waves(-0.35, 0.35))
    nod = pitch(waves(-0.3, 0.35) - 0.5 * bow)
    head = chest @ yaw(waves(-0.75, 0.75, 0.8)) @ nod @ roll(waves(-0.3, 0.3) - 0.5 * lean)
    return root, pelvis, chest, head


def _legs(character: Character, waves: Waves, root: Array, pelvis: Array, body: Array, rng: Rng) -> Array:
    """Places knees and ankles; returns the toes [F,2,3]."""
    size = character.body
    toes = np.empty((len(body), 2, 3))
    step, crouch = waves.beat(), np.maximum(waves(-0.5, 0.55, 0.8), 0)
    lift = rng.uniform(0.15, 0.9)
    frame = 0.5 * (root + pelvis)
    for index, (side, (hip, knee, ankle)) in enumerate(zip(SIDES, LEGS, strict=True)):
        raised = np.clip(side * step, 0, 1) ** 1.5 * lift
        thigh = crouch + raised * rng.uniform(0.5, 1.2) + waves(-0.15, 0.2)
        bend = np.maximum(2 * crouch + 1.5 * raised + waves(-0.15, 0.25), 0.03)
        spread = waves(-0.02, 0.42, 0.8)
        outward = side * np.sin(spread)
        for angle, joint, before, length, share in (
            (thigh, knee, hip, size.thigh, 1.0),
            (thigh - bend, ankle, knee, size.shin, 0.75),
        ):
            down = np.sqrt(1 - (share * outward) ** 2)
            local = np.stack([share * outward, down * np.cos(angle), down * np.sin(angle)], axis=-1)
            body[:, joint] = body[:, before] + length * unit(turn(frame, local))
        out = side * (0.35 + 0.3 * spread)
        local = np.stack([np.sin(out), 0.15 + 0.5 * raised, np.cos(out)], axis=-1)
        toes[:, index] = body[:, ankle] + size.foot * unit(turn(root, local))
    return toes


def _arm(character: Character, waves: Waves, chest: Array, body: Array, index: int, rng: Rng) -> Array:
    """Places elbow and wrist of one arm; returns the hand [F,21,3]."""
    size, side = character.body, SIDES[index]
    shoulder, elbow, wrist = ARMS[index]
    raised, forward = waves(0.12, 2.75, 0.8), waves(-0.45, 1.25, 0.7)
    flat = np.sin(raised)
    upper = np.stack([side * flat * np.cos(forward), np.cos(raised), flat * np.sin(forward)], axis=-1)
    hinge = across(np.broadcast_to(np.array([-side * 0.35, -0.45, 0.8]), upper.shape), upper)
    hinge = about(hinge, upper, waves(-1.0, 1.0, 0.7))
    bend = waves(0.1, 2.35)[:, None]
    if character.style == "doll":  # a raised arm is bent less, so that few hands are before the large face
        bend = bend * (1 - 0.65 * np.clip((raised - 0.2) / 0.8, 0, 1))[:, None]
    lower = np.cos(bend) * upper + np.sin(bend) * hinge
    body[:, elbow] = body[:, shoulder] + size.upper_arm * turn(chest, upper)
    body[:, wrist] = body[:, elbow] + size.forearm * turn(chest, lower)
    palm = about(facing(lower, side), lower, waves(-1.1, 1.1, 0.8))
    thumb = np.cross(lower, palm)
    flick = waves(-0.5, 0.5, 1.2)[:, None]
    along = unit(lower + flick * palm + waves(-0.25, 0.25)[:, None] * thumb)
    along, palm = turn(chest, along), turn(chest, across(palm, along))
    return hand_points(body[:, wrist], along, palm, gesture(waves, rng), size.hand, side)


class _Source:
    """The motion's body points in pixels: all its frames, and those at the wanted times."""

    def __init__(self, motion: PoseSequence, times: Array) -> None:
        last = max(len(motion) - 1, 1)
        there_and_back = last - np.abs((times * motion.fps) % (2 * last) - last)
        self.motion, self.place = motion, np.clip(there_and_back, 0, len(motion) - 1)
        """Fractional frames [F] of the motion."""
        self._whole = _filled(motion)
        self.points = _at(self._whole, self.place)
        """[F,19,2]; the last is the middle of the hips."""

    def length(self, first: int, last: int) -> float:
        """How long a bone looks when it lies in the plane, in pixels."""
        lengths = np.linalg.norm(self._whole[:, last] - self._whole[:, first], axis=-1)
        return max(float(np.percentile(lengths, 95)), 1e-3)

    def vector(self, first: int, last: int) -> Array:
        """[F,2], pixels."""
        return self.points[:, last] - self.points[:, first]


def retarget(character: Character, motion: PoseSequence, times: Array, rng: Rng) -> Skeleton:
    """The character in the poses of `motion` at `times` [F], in seconds from its start; at its end it turns back.

    Limbs keep their directions in the picture; a bone that looks shorter than it is points to the viewer or away.
    Faces, and hands that the motion does not show, move on their own. Raises `MotionError` if the motion never
    shows the shoulders and hips.
    """
    size, source = character.body, _Source(motion, times)
    waves = Waves(rng, times, 0.6, 0.8)
    unit_length = source.length(_HIPS, NECK) / size.torso  # source pixels of the character's height
    ears = source.vector(16, 17)
    nose = source.points[:, 0] - source.points[:, 16:18].mean(axis=1)
    # -1 to 1: how surely the person looks to the picture's left or right
    turned: Array = np.tanh(6 * np.sum(unit(ears) * nose, axis=-1) / (unit_length * size.head))

    def bone(first: int, last: int, length: float, towards: Array | float) -> Array:
        """[F,3]; the share of its length that the picture does not show points to the viewer or away."""
        share = source.vector(first, last) / max(source.length(first, last), 0.75 * length * unit_length)
        shown = np.clip(np.linalg.norm(share, axis=-1), 0, 1)
        flat = unit(share) * (length * shown)[:, None]
        depth = length * np.sqrt(1 - shown**2) * towards
        return np.concatenate([flat, depth[:, None]], axis=1)

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
    down = middle - body[:, NECK]
    chest, hips = _axes(shoulders, down), _axes(pelvis, down)
    head = _head(ears, nose, source.length(16, 17), turned, chest)
    toes = np.empty((len(times), 2, 3))
    for index, (side, (_, knee, ankle)) in enumerate(zip(SIDES, LEGS, strict=True)):
        ahead = turn(hips, np.array([side * 0.55, 0.35, 0.7])) + 0.35 * unit(body[:, ankle] - body[:, knee])
        toes[:, index] = body[:, ankle] + size.foot * unit(ahead)
    hands = np.stack([_hand(character, body, source, index, waves, rng) for index in (0, 1)], axis=1)
    return complete(character, body, hands, toes, (chest, hips, head), expression(waves))


def _at(values: Array, index: Array) -> Array:
    """Linear interpolation of [N,...] at fractional frames [F]."""
    low = np.floor(index).astype(int)
    high = np.minimum(low + 1, len(values) - 1)
    share = (index - low).reshape(-1, *(1,) * (values.ndim - 1))
    return np.asarray(values[low] * (1 - share) + values[high] * share)


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
            for axis in (0, 1):
                points[:, joint, axis] = np.interp(frames, frames[own], given[:, axis])
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


def _axes(right: Array, down: Array) -> Array:
    """The rotation [F,3,3] with that right; its down is as near to `down` as can be."""
    right = unit(right)
    down = across(down, right)
    return np.stack([right, down, np.cross(right, down)], axis=-1)


def _head(ears: Array, nose: Array, wide: float, turned: Array, chest: Array) -> Array:
    share = np.clip(np.linalg.norm(ears, axis=-1) / wide, 0.25, 1)
    flat = unit(ears) * share[:, None]
    right = np.concatenate([flat, (-turned * np.sqrt(1 - share**2))[:, None]], axis=1)
    upright = 0.5 * chest[..., 1] + np.array([0.0, 0.5, 0.0])
    down = np.stack([-ears[:, 1], ears[:, 0]], axis=-1)
    nod = np.sum(unit(down) * nose, axis=-1) / wide - 0.15
    return _axes(right, upright) @ pitch(np.clip(nod, -0.5, 0.6))


def _hand(character: Character, body: Array, given: _Source, index: int, waves: Waves, rng: Rng) -> Array:
    """A hand [F,21,3]: the motion's fingers where it shows them, else one that moves on its own."""
    motion = given.motion
    _, elbow, wrist = (body[:, joint] for joint in ARMS[index])
    side, length = SIDES[index], character.body.hand
    along = unit(wrist - elbow)
    rest = hand_points(wrist, along, facing(along, side), gesture(waves, rng), length, side)
    score = motion.hands_score[:, index].mean(axis=1).astype(np.float64)
    if score.max() < _SEEN_HAND:
        return rest
    shown = _at(np.clip(2 * score / _SEEN_HAND - 1.5, 0, 1), given.place)[:, None]
    points = motion.hands[:, index].astype(np.float64) * motion.size
    seen = score >= _SEEN_HAND
    palm = np.linalg.norm(points[seen, 9] - points[seen, 0], axis=-1)
    pixels = max(float(np.percentile(palm, 90)), 1e-6) / (0.49 * length)
    source = _at(points, given.place)
    made = rest.copy()
    for first, last in FINGERS:
        own = rest[:, last] - rest[:, first]
        bone = np.linalg.norm(own, axis=-1, keepdims=True)
        flat = (source[:, last] - source[:, first]) / pixels
        flat /= np.maximum(np.linalg.norm(flat, axis=-1, keepdims=True) / bone, 1)
        depth = np.sqrt(np.maximum(bone**2 - (flat**2).sum(-1, keepdims=True), 0))
        wanted = np.concatenate([flat, 0.6 * depth], axis=1)
        made[:, last] = made[:, first] + bone * unit(shown * wanted + (1 - shown) * own)
    return made
