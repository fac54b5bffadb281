"""A whole person as parts to paint: trunk, arms, legs, hands; the head is in `head`."""

from __future__ import annotations

import numpy as np

from .camera import View
from .character import Colour, Garment, shaded
from .geometry import Array, between, tube, unit
from .head import head_parts
from .paint import Layer, Part, round_tube
from .skeleton import ARMS, LEFT, LEGS, NECK, RIGHT, SIDES

ARM_DEPTH, LEG_DEPTH = 0.02, -0.06  # arms that hang beside the trunk lie over it, legs under it
_ROWS = np.array([-0.07, 0.03, 0.2, 0.45, 0.72, 0.92, 1.1])
"""Levels of the trunk's outline, from 0 at the shoulders to 1 at the hips."""
_FINE = 4  # points between two levels


def figure_parts(view: View) -> list[Part]:
    """Every part of the person, in no order: they are painted by depth, frame by frame."""
    parts = [*trunk_parts(view), *head_parts(view)]
    for side in (LEFT, RIGHT):
        parts += [*leg_parts(view, side), *arm_parts(view, side), *hand_parts(view, side)]
    return parts


def arm_parts(view: View, side: int) -> list[Part]:
    """Upper arm and forearm of the left (0) or right (1) side."""
    size, top = view.character.body, view.character.top
    radii = (size.arm_radius, 0.8 * size.arm_radius, size.wrist_radius)
    sleeve = top.second if top.pattern == "two-tone" and top.cover > 1 else top.colour
    return _limb(view, ARMS[side], radii, top, top.cover, sleeve, ARM_DEPTH, 0.001)


def leg_parts(view: View, side: int) -> list[Part]:
    """Thigh, and shin with its shoe, of the left (0) or right (1) side."""
    person, bottom, light = view.character, view.character.bottom, view.character.light
    radii = (person.body.thigh_radius, person.body.knee_radius, person.body.ankle_radius)
    cover = 0.0 if bottom.skirt else bottom.cover
    thigh, shin = _limb(view, LEGS[side], radii, bottom, cover, bottom.colour, LEG_DEPTH, -0.005)
    hip, knee, ankle = (view.body[:, joint] for joint in LEGS[side])
    wide, middle, narrow = (view.scale * radius for radius in radii)
    if bottom.cover <= 1:
        sock = between(ankle, knee, 0.16)
        shin.layers.extend(round_tube(sock, ankle, narrow * 1.15, narrow * 1.1, person.socks, light))
    if bottom.pattern == "stripes" and not bottom.skirt:
        thigh.layers.append(_seam(hip, knee, wide, middle, bottom, SIDES[side]))
        if bottom.cover > 1:
            end = between(knee, ankle, 0.9)
            shin.layers.append(_seam(knee, end, middle, narrow, bottom, SIDES[side]))
    toe, heel, front = view.toes[:, side], narrow * 1.3, narrow * 1.1
    drop = (0.45 * narrow)[:, None] * [0.0, 1.0]
    sole = Layer(tube(ankle + drop, toe + drop, heel, front), shaded(person.shoes, 0.45))
    shin.layers.extend([sole, *round_tube(ankle, toe, heel, front, person.shoes, light)])
    return [thigh, shin]


def _limb(
    view: View, joints: tuple[int, int, int], radii: tuple[float, float, float], garment: Garment, cover: float,
    upper: Colour, depth: float, step: float,
) -> list[Part]:  # fmt: skip
    """The two bones between three joints, bare and clothed; `cover` of them (0 to 2) is in the garment.

    The garment is `upper` on the first bone and of its own colour on the second, which is `step` nearer.
    """
    points, depths = view.body[:, joints], view.body_depth[:, joints]
    skin, light, parts = view.character.skin, view.character.light, []
    bones = ((min(cover, 1), upper, (1.0, 0.8)), (max(cover - 1, 0), garment.colour, (0.78, 1.0)))
    for bone, (share, colour, rims) in enumerate(bones):  # the dark rims are narrow where the bones meet
        start, end = points[:, bone], points[:, bone + 1]
        wide, narrow = view.scale * radii[bone], view.scale * radii[bone + 1]
        layers = [] if share >= 1 else round_tube(start, end, wide, narrow, skin, light, rims)
        if share > 0:
            hem = between(start, end, share)
            at_hem = (wide + (narrow - wide) * share) * garment.loose
            ends = (rims[0], rims[1] if share >= 1 else 1.0)
            layers += round_tube(start, hem, wide * garment.loose, at_hem, colour, light, ends)
        parts.append(Part((depths[:, bone] + depths[:, bone + 1]) / 2 + depth + bone * step, layers))
    return parts


def hand_parts(view: View, side: int) -> list[Part]:
    """Palm and five tapered fingers of the left (0) or right (1) hand."""
    points, depth = view.hands[:, side], view.hands_depth[:, side]
    person = view.character
    unit_length = view.scale * person.body.hand
    rim = person.light.rim(person.skin)
    palm, fingers = list[Layer](), list[Layer]()
    for knuckles, wide, narrow, colour in (
        ((5, 17), 0.17, 0.12, rim),
        ((17, 13, 9, 5), 0.14, 0.1, person.skin),
    ):
        for knuckle in knuckles:
            outline = tube(points[:, 0], points[:, knuckle], unit_length * wide, unit_length * narrow)
            palm.append(Layer(outline, colour))
    for finger in (4, 3, 2, 1, 0):
        chain = [points[:, 4 * finger + joint] for joint in range(1, 5)]
        thick = 0.085 if finger else 0.1
        for grow, colour in ((1.45, rim), (1.0, person.skin)):
            radii = [unit_length * thick * grow * share for share in (1.0, 0.92, 0.84, 0.7)]
            fingers += [Layer(tube(chain[j], chain[j + 1], radii[j], radii[j + 1]), colour) for j in range(3)]
    return [
        Part(depth[:, [0, 5, 17]].mean(axis=1) + ARM_DEPTH + 0.006, palm),
        Part(depth[:, 5:].mean(axis=1) + ARM_DEPTH + 0.007, fingers),
    ]


def _seam(start: Array, end: Array, wide: Array, narrow: Array, garment: Garment, side: float) -> Layer:
    """A stripe down the outer side."""
    shift = 0.55 * side * garment.loose
    sideways = [1.0, 0.0]
    first, last = start + shift * wide[:, None] * sideways, end + shift * narrow[:, None] * sideways
    return Layer(tube(first, last, wide * 0.22, narrow * 0.22), garment.second)


class Trunk:
    """The trunk as a stack of ellipses, whose left and right ends make its outline."""

    def __init__(self, view: View) -> None:
        size, loose = view.character.body, 0.5 + 0.5 * view.character.top.loose
        neck, hips = view.body[:, NECK], view.hips
        levels = np.linspace(_ROWS[0], _ROWS[-1], _FINE * (len(_ROWS) - 1) + 1)
        self.levels = levels
        arm, hip = size.shoulder + 0.75 * size.arm_radius, size.hip + size.thigh_radius * 1.02
        ribs = 0.55 * size.shoulder + 0.5 * max(size.waist, 0.08)
        widths = (0.42 * arm, arm, ribs * 1.08, ribs, size.waist * loose, hip * 0.97, hip * loose)
        depths = np.array([0.5, 0.75, 1.0, 1.0, 0.92, 1.02, 1.05]) * size.depth
        self._width = np.interp(levels, _ROWS, widths)
        self._thick = np.interp(levels, _ROWS, depths)
        share = np.clip(levels, 0, 1)[None, :, None, None]
        axes = view.skeleton.chest[:, None] * (1 - share) + view.skeleton.pelvis[:, None] * share
        axes = axes * view.scale[:, None, None, None]
        self._sideways, self._forward = axes[..., :2, 0], axes[..., :2, 2]
        self._centre = neck[:, None] + (hips - neck)[:, None] * levels[:, None]
        self.left, self.right = self._edges(unit(hips - neck))

    def _edges(self, down: Array) -> tuple[Array, Array]:
        normal = np.stack([down[:, 1], -down[:, 0]], axis=-1)[:, None]
        normal = normal * np.where(self._sideways.mean(axis=1)[:, None, :1] < 0, -1.0, 1.0)
        wide, thick = self._width[:, None] * self._sideways, self._thick[:, None] * self._forward
        across = np.sum(wide * normal, axis=-1, keepdims=True)
        towards = np.sum(thick * normal, axis=-1, keepdims=True)
        reach = (across * wide + towards * thick) / np.maximum(np.hypot(across, towards), 1e-6)
        return self._centre + reach, self._centre - reach

    def band(self, top: float, bottom: float, size: float = 1.0) -> Array:
        """The outline [F,P,2] between two levels, `size` times as wide."""
        rows = (self.levels >= top - 1e-6) & (self.levels <= bottom + 1e-6)
        left, right = self.left[:, rows], self.right[:, rows]
        middle = (left + right) / 2
        outline = np.concatenate([left, right[:, ::-1]], axis=1)
        centre = np.concatenate([middle, middle[:, ::-1]], axis=1)
        shrunk: Array = centre + (outline - centre) * size
        return shrunk

    def patch(self, top: float, bottom: float, angle: float, half: float) -> Array:
        """A patch [F,4,2] on the front, `angle` radians to the left, `half` radians to each side."""
        corners = []
        for level, turn in ((top, -half), (top, half), (bottom, half), (bottom, -half)):
            row = int(np.argmin(np.abs(self.levels - level)))
            around = np.sin(angle + turn) * self._width[row] * self._sideways[:, row]
            ahead = np.cos(angle + turn) * self._thick[row] * self._forward[:, row]
            corners.append(self._centre[:, row] + around + ahead)
        return np.stack(corners, axis=1)


def trunk_parts(view: View) -> list[Part]:
    """Hips, shirt, skirt if worn, and neck."""
    trunk, person = Trunk(view), view.character
    size, zero = person.body, np.zeros(len(view.scale))
    left, right = (view.body[:, leg[0]] for leg in LEGS)
    radius = view.scale * size.thigh_radius * person.bottom.loose
    hips = round_tube(left, right, radius, radius, person.bottom.colour, person.light)
    parts = [Part(zero - 0.01, hips), Part(zero, _shirt(trunk, view))]
    if person.bottom.skirt:
        thighs = np.stack([view.body_depth[:, leg[:2]].mean(axis=1) for leg in LEGS])
        over = np.maximum(thighs.max(axis=0) + LEG_DEPTH, 0) + 0.004
        parts.append(Part(over, _skirt(trunk, view)))
    chin = between(view.body[:, NECK], view.skull, 0.6)
    thick = view.scale * size.neck_radius
    neck = round_tube(view.body[:, NECK], chin, thick * 1.15, thick, person.skin, person.light)
    return [*parts, Part(zero + 0.006, neck)]


def _shirt(trunk: Trunk, view: View) -> list[Layer]:
    top = view.character.top
    layers = _cloth(trunk, view, -0.07, 1.1, top.colour)
    if top.pattern == "two-tone":
        layers += _cloth(trunk, view, 0.48, 1.1, top.second)
    if top.pattern == "stripes":
        edges = np.linspace(0.1, 1.1, 2 * top.bands + 1)
        for start, end in zip(edges[:-1:2], edges[1::2], strict=True):
            layers += _cloth(trunk, view, start, end, top.second)
    if top.pattern == "logo":
        front = view.skeleton.chest[:, 2, 2] > 0.15
        layers.append(Layer(trunk.patch(0.24, 0.6, 0.0, 0.52), top.second, front, "any"))
        layers.append(Layer(trunk.patch(0.35, 0.5, 0.05, 0.2), top.colour, front, "any"))
    return layers


def _cloth(trunk: Trunk, view: View, top: float, bottom: float, colour: Colour) -> list[Layer]:
    """The shirt between two levels of the trunk."""
    light, layers = view.character.light, []
    for size, tone in light.tones(colour):
        shift = light.shift(view.scale * view.character.body.shoulder, size) * [1, 0]
        layers.append(Layer(trunk.band(top, bottom, 0.35 + 0.65 * size) + shift[:, None], tone, None, "any"))
    return layers


def _skirt(trunk: Trunk, view: View) -> list[Layer]:
    bottom, size = view.character.bottom, view.character.body
    waist = trunk.band(0.86, 0.93)
    ends = waist.reshape(len(waist), -1, 2)[:, [0, -1]]
    hems = [between(view.body[:, leg[0]], view.body[:, leg[1]], bottom.cover) for leg in LEGS]
    flare = (view.scale * size.thigh_radius * 1.5)[:, None] * [1.0, 0.0]
    out = np.where(ends[:, 0, :1] >= ends[:, 1, :1], 1.0, -1.0)
    left, right = hems[0] + out * flare, hems[1] - out * flare
    corners = np.stack([ends[:, 0], left, right, ends[:, 1]], axis=1)
    middle = ((ends[:, 0] + ends[:, 1] + left + right) / 4)[:, None]
    layers = []
    for part, tone in view.character.light.tones(bottom.colour):
        narrowed = middle + (corners - middle) * np.array([0.3 + 0.7 * part, 1.0])
        layers.append(Layer(narrowed, tone, None, "hull"))
    return layers
