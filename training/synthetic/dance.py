"""Smooth random dances: joint angles over time, and the skeleton that they make."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .character import Character
from .hand import facing, gesture, hand_points
from .head import Expression
from .rotation import Array, about, across, pitch, roll, turn, unit, yaw
from .skeleton import ARMS, LEGS, NECK, SIDES, Skeleton, complete
from .waves import Waves


@dataclass(frozen=True, slots=True, eq=False)
class _Trunk:
    root: Array
    pelvis: Array
    chest: Array
    head: Array


def dance(character: Character, times: Array, rng: np.random.Generator) -> Skeleton:
    """The poses of a random dance at `times` [F], in seconds, feet on y = 0, near x = 0.

    The dance itself comes from `rng`: another time asked of an equal generator gives another moment of it.
    """
    waves = Waves(rng, times, tempo=rng.uniform(0.35, 0.95), energy=rng.uniform(0.55, 1.0))
    trunk = _trunk(waves, rng)
    body = np.zeros((len(times), 18, 3))
    _place_trunk(character, trunk, body)
    toes = _legs(character, waves, trunk, body, rng)
    hands = np.stack([_arm(character, waves, trunk, body, side, rng) for side in (0, 1)], axis=1)
    ankles = body[:, [leg[2] for leg in LEGS]]
    shift = np.zeros((len(times), 1, 3))
    shift[:, 0, 0] = waves(-0.08, 0.08, 0.5) - 0.6 * ankles[..., 0].mean(axis=1)
    shift[:, 0, 1] = -ankles[..., 1].max(axis=1) - 1.2 * character.body.ankle_radius
    shift[:, 0, 1] -= rng.choice([0.0, 0.05]) * np.clip(waves.beat(2.0), 0, 1)  # some dances hop
    frames = (trunk.chest, trunk.pelvis, trunk.head)
    return complete(character, body + shift, hands + shift[:, None], toes + shift, frames, expression(waves))


def expression(waves: Waves) -> Expression:
    """A face that talks, smiles and blinks."""
    blink = np.clip(6 * waves(-1, 1, 1.7) - 4, 0, 1)
    mouth = np.clip(waves(-0.7, 1.2, 1.6), 0, 1)
    return Expression(mouth, np.clip(waves(-0.3, 1.2, 0.7), 0, 1), 1 - blink, np.clip(waves(-0.5, 1.0), 0, 1))


def _trunk(waves: Waves, rng: np.random.Generator) -> _Trunk:
    wide = rng.choice([0.35, 0.7, 1.1], p=[0.5, 0.35, 0.15])
    root = pitch(np.full(len(waves), rng.uniform(0.05, 0.2))) @ yaw(waves(-wide, wide, 0.5))
    bow = np.maximum(waves(-0.5, 0.75, 0.6), -0.12)
    lean = waves(-0.32, 0.32, 0.8)
    pelvis = root @ pitch(0.35 * bow) @ roll(0.45 * lean - 0.1 * waves.beat()) @ yaw(waves(-0.25, 0.25))
    chest = root @ pitch(bow) @ roll(lean) @ yaw(waves(-0.35, 0.35))
    nod = pitch(waves(-0.3, 0.35) - 0.5 * bow)
    head = chest @ yaw(waves(-0.75, 0.75, 0.8)) @ nod @ roll(waves(-0.3, 0.3) - 0.5 * lean)
    return _Trunk(root, pelvis, chest, head)


def _place_trunk(character: Character, trunk: _Trunk, body: Array) -> None:
    size = character.body
    spine = 0.4 * trunk.pelvis[..., 1] + 0.6 * trunk.chest[..., 1]
    body[:, NECK] = -size.torso * unit(spine)
    for side, arm, leg in zip(SIDES, ARMS, LEGS, strict=True):
        body[:, arm[0]] = body[:, NECK] + side * size.shoulder * trunk.chest[..., 0]
        body[:, leg[0]] = side * size.hip * trunk.pelvis[..., 0]


def _legs(character: Character, waves: Waves, trunk: _Trunk, body: Array, rng: np.random.Generator) -> Array:
    """Places knees and ankles; returns the toes [F,2,3]."""
    size = character.body
    toes = np.empty((len(body), 2, 3))
    step, crouch = waves.beat(), np.maximum(waves(-0.5, 0.55, 0.8), 0)
    lift = rng.uniform(0.15, 0.9)
    frame = 0.5 * (trunk.root + trunk.pelvis)
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
        toes[:, index] = body[:, ankle] + size.foot * unit(turn(trunk.root, local))
    return toes


def _arm(
    character: Character, waves: Waves, trunk: _Trunk, body: Array, index: int, rng: np.random.Generator
) -> Array:
    """Places elbow and wrist of one arm; returns the hand [F,21,3]."""
    size, side = character.body, SIDES[index]
    shoulder, elbow, wrist = ARMS[index]
    raised, forward = waves(0.12, 2.75, 0.8), waves(-0.45, 1.25, 0.7)
    flat = np.sin(raised)
    upper = np.stack([side * flat * np.cos(forward), np.cos(raised), flat * np.sin(forward)], axis=-1)
    hinge = across(np.broadcast_to(np.array([-side * 0.35, -0.45, 0.8]), upper.shape), upper)
    hinge = about(hinge, upper, waves(-1.0, 1.0, 0.7))
    bend = waves(0.1, 2.35)[:, None]
    lower = np.cos(bend) * upper + np.sin(bend) * hinge
    body[:, elbow] = body[:, shoulder] + size.upper_arm * turn(trunk.chest, upper)
    body[:, wrist] = body[:, elbow] + size.forearm * turn(trunk.chest, lower)
    palm = about(facing(lower, side), lower, waves(-1.1, 1.1, 0.8))
    thumb = np.cross(lower, palm)
    flick = waves(-0.5, 0.5, 1.2)[:, None]
    along = unit(lower + flick * palm + waves(-0.25, 0.25)[:, None] * thumb)
    return hand_points(
        body[:, wrist],
        turn(trunk.chest, along),
        turn(trunk.chest, across(palm, along)),
        gesture(waves, rng),
        size.hand,
        side,
    )
