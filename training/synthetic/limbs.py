"""Arms and legs, bare and clothed."""

from __future__ import annotations

from .character import Character, Garment
from .palette import Colour, shaded
from .rotation import Array
from .shapes import Layer, Part, Shade, between, round_tube, tube
from .skeleton import ARMS, LEGS, SIDES
from .view import View

ARM_DEPTH, LEG_DEPTH = 0.02, -0.06
"""Arms that hang beside the trunk lie over it, legs under it."""
_FIRST, _SECOND = (1.0, 0.8), (0.78, 1.0)
"""How wide the dark rims are at the ends of a limb's first and second bone, which meet in the joint."""


def arm_parts(view: View, character: Character, shade: Shade, side: int) -> list[Part]:
    """Upper arm and forearm of the left (0) or right (1) side."""
    size, top = character.body, character.top
    shoulder, elbow, wrist = (view.body[:, joint] for joint in ARMS[side])
    depths = [view.body_depth[:, joint] for joint in ARMS[side]]
    radii = [view.scale * r for r in (size.arm_radius, 0.8 * size.arm_radius, size.wrist_radius)]
    upper = _limb(shoulder, elbow, radii[0], radii[1], character.skin, top, min(top.cover, 1), shade, _FIRST)
    lower = _limb(
        elbow, wrist, radii[1], radii[2], character.skin, top, max(top.cover - 1, 0), shade, _SECOND
    )
    if top.pattern == "two-tone" and top.cover > 1:
        upper = _limb(shoulder, elbow, radii[0], radii[1], character.skin, top, 1, shade, _FIRST, top.second)
    return [
        Part((depths[0] + depths[1]) / 2 + ARM_DEPTH, upper),
        Part((depths[1] + depths[2]) / 2 + ARM_DEPTH + 0.001, lower),
    ]


def leg_parts(view: View, character: Character, shade: Shade, side: int) -> list[Part]:
    """Thigh, and shin with its shoe, of the left (0) or right (1) side."""
    size, bottom = character.body, character.bottom
    hip, knee, ankle = (view.body[:, joint] for joint in LEGS[side])
    depths = [view.body_depth[:, joint] for joint in LEGS[side]]
    radii = [view.scale * r for r in (size.thigh_radius, size.knee_radius, size.ankle_radius)]
    covered = 0.0 if bottom.skirt else min(bottom.cover, 1)
    thigh = _limb(hip, knee, radii[0], radii[1], character.skin, bottom, covered, shade, _FIRST)
    shin = _limb(
        knee, ankle, radii[1], radii[2], character.skin, bottom, max(bottom.cover - 1, 0), shade, _SECOND
    )
    if bottom.cover <= 1:
        sock = between(ankle, knee, 0.16)
        shin += round_tube(sock, ankle, radii[2] * 1.15, radii[2] * 1.1, character.socks, shade)
    if bottom.pattern == "stripes" and not bottom.skirt:
        thigh.append(_seam(hip, knee, radii[0], radii[1], bottom, SIDES[side]))
        if bottom.cover > 1:
            shin.append(_seam(knee, between(knee, ankle, 0.9), radii[1], radii[2], bottom, SIDES[side]))
    toe, sole = view.toes[:, side], shaded(character.shoes, 0.45)
    heel, front = radii[2] * 1.3, radii[2] * 1.1
    drop = (0.45 * radii[2])[:, None] * [0.0, 1.0]
    shin.append(Layer(tube(ankle + drop, toe + drop, heel, front), sole))
    shin += round_tube(ankle, toe, heel, front, character.shoes, shade)
    return [
        Part((depths[0] + depths[1]) / 2 + LEG_DEPTH, thigh),
        Part((depths[1] + depths[2]) / 2 + LEG_DEPTH - 0.005, shin),
    ]


def _limb(
    start: Array, end: Array, wide: Array, narrow: Array, skin: Colour, garment: Garment, cover: float,
    shade: Shade, joints: tuple[float, float], colour: Colour | None = None,
) -> list[Layer]:  # fmt: skip
    layers = [] if cover >= 1 else round_tube(start, end, wide, narrow, skin, shade, joints)
    if cover > 0:
        hem = between(start, end, cover)
        at_hem = (wide + (narrow - wide) * cover) * garment.loose
        ends = (joints[0], joints[1] if cover >= 1 else 1.0)
        layers += round_tube(start, hem, wide * garment.loose, at_hem, colour or garment.colour, shade, ends)
    return layers


def _seam(start: Array, end: Array, wide: Array, narrow: Array, garment: Garment, side: float) -> Layer:
    """A stripe down the outer side."""
    shift = 0.55 * side * garment.loose
    sideways = [1.0, 0.0]
    first, last = start + shift * wide[:, None] * sideways, end + shift * narrow[:, None] * sideways
    return Layer(tube(first, last, wide * 0.22, narrow * 0.22), garment.second)
