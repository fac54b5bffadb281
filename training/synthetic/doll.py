"""A paper doll as parts to paint: flat colours, and one dark line around each part."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .camera import View
from .character import Colour, Garment, shaded
from .figure import ARM_DEPTH, HEAD_DEPTH, LEG_DEPTH, Head, Trunk, dome
from .geometry import Array, between, disc, half_circle, ring, tube, unit
from .paint import Flags, Layer, Part
from .skeleton import ARMS, LEFT, LEGS, NECK, RIGHT, surface

_DARK: Colour = (34.0, 24.0, 28.0)
_WHITE: Colour = (250.0, 248.0, 244.0)
_INSIDE: Colour = (92.0, 14.0, 28.0)  # of the mouth
_LINE = 0.0085  # width of the dark line, in standing heights
_HAIRLINE = 0.37  # how far above the head's middle the face ends, in heights of a head
_FALLING = {"bob": 0.55, "long": 1.0, "ponytail": 0.85}
"""How far below the head's middle hair ends, in heights of a head."""


def doll_parts(view: View) -> list[Part]:
    """Every part of the doll, in no order: they are painted by depth, frame by frame."""
    parts = [*_trunk(view), *_head(view)]
    for side in (LEFT, RIGHT):
        parts += [_leg(view, side), _arm(view, side), *_hand(view, side)]
    return parts


def _lined(view: View, layers: list[Layer], width: float = 1.0) -> list[Layer]:
    """The layers over one dark line around all of them; `width` is a factor of the usual."""
    grown = max(1, round(width * _LINE * float(view.scale.mean())))
    return [*(replace(layer, colour=_DARK, grown=grown) for layer in layers), *layers]


def _rod(start: Array, end: Array, wide: Array, narrow: Array, colour: Colour) -> Layer:
    return Layer(tube(start, end, wide, narrow, half_circle(start, end, 10)), colour)


def _limb(
    view: View, joints: tuple[int, int, int], radii: tuple[float, float, float], garment: Garment, cover: float,
    upper: Colour,
) -> list[Layer]:  # fmt: skip
    """The two bones between three joints, bare, and what is in the garment, `cover` of them (0 to 2).

    The garment is `upper` on the first bone and of its own colour on the second.
    """
    points = view.body[:, joints]
    bare, worn = [], []
    for bone, (share, colour) in enumerate(
        ((min(cover, 1.0), upper), (max(cover - 1.0, 0.0), garment.colour))
    ):
        start, end = points[:, bone], points[:, bone + 1]
        wide, narrow = view.scale * radii[bone], view.scale * radii[bone + 1]
        if share < 1:
            bare.append(_rod(start, end, wide, narrow, view.character.skin))
        if share > 0:
            at_hem = (wide + (narrow - wide) * share) * garment.loose
            worn.append(_rod(start, between(start, end, share), wide * garment.loose, at_hem, colour))
    return _lined(view, bare) + _lined(view, worn)


def _arm(view: View, side: int) -> Part:
    size, top = view.character.body, view.character.top
    radii = (size.arm_radius, 0.85 * size.arm_radius, size.wrist_radius)
    sleeve = top.second if top.pattern == "two-tone" and top.cover > 1 else top.colour
    layers = _limb(view, ARMS[side], radii, top, top.cover, sleeve)
    return Part(view.body_depth[:, ARMS[side]].mean(axis=1) + ARM_DEPTH, layers)


def _leg(view: View, side: int) -> Part:
    person, bottom = view.character, view.character.bottom
    radii = (person.body.thigh_radius, person.body.knee_radius, person.body.ankle_radius)
    layers = _limb(view, LEGS[side], radii, bottom, 0.0 if bottom.skirt else bottom.cover, bottom.colour)
    _, knee, ankle = (view.body[:, joint] for joint in LEGS[side])
    narrow = view.scale * radii[2]
    if bottom.cover <= 1:
        sock = _rod(between(ankle, knee, 0.2), ankle, narrow * 1.15, narrow * 1.1, person.socks)
        layers += _lined(view, [sock])
    layers += _lined(view, [_rod(ankle, view.toes[:, side], narrow * 1.45, narrow * 1.2, person.shoes)])
    return Part(view.body_depth[:, LEGS[side]].mean(axis=1) + LEG_DEPTH, layers)


def _hand(view: View, side: int) -> list[Part]:
    """Palm and fingers of the left (0) or right (1) hand."""
    points, depth = view.hands[:, side], view.hands_depth[:, side]
    skin, length = view.character.skin, view.scale * view.character.body.hand
    knuckles = (17, 13, 9, 5)
    palm = [_rod(points[:, 0], points[:, at], length * 0.15, length * 0.1, skin) for at in knuckles]
    fingers = list[Layer]()
    for finger in (4, 3, 2, 1, 0):
        chain = [points[:, 4 * finger + joint] for joint in range(1, 5)]
        radii = [length * (0.088 if finger else 0.1) * share for share in (1.0, 0.96, 0.9, 0.8)]
        bones = [_rod(chain[j], chain[j + 1], radii[j], radii[j + 1], skin) for j in range(3)]
        fingers += _lined(view, bones, 0.7)
    for at in knuckles:  # no line where a finger begins
        middle = between(points[:, 0], points[:, at], 0.8)
        fingers.append(_rod(middle, points[:, at], length * 0.1, length * 0.07, skin))
    return [
        Part(depth[:, [0, 5, 17]].mean(axis=1) + ARM_DEPTH + 0.006, _lined(view, palm)),
        Part(depth[:, 5:].mean(axis=1) + ARM_DEPTH + 0.007, fingers),
    ]


def _trunk(view: View) -> list[Part]:
    """Hips, shirt, skirt if worn, and neck."""
    trunk, person = Trunk(view), view.character
    size, top, bottom, zero = person.body, person.top, person.bottom, np.zeros(len(view.scale))
    left, right = (view.body[:, leg[0]] for leg in LEGS)
    radius = view.scale * size.thigh_radius * 0.7
    hips = _lined(view, [_rod(left, right, radius, radius, bottom.colour)])
    shirt = _lined(view, [Layer(trunk.band(-0.07, 1.1), top.colour, None, "any")])
    if top.pattern == "two-tone":
        shirt.append(Layer(trunk.band(0.48, 1.1), top.second, None, "any"))
    if top.pattern == "stripes":
        edges = np.linspace(0.12, 1.1, 2 * top.bands + 1)
        for start, end in zip(edges[:-1:2], edges[1::2], strict=True):
            shirt.append(Layer(trunk.band(start, end), top.second, None, "any"))
    parts = [Part(zero - 0.12, hips), Part(zero, shirt)]
    if bottom.skirt:
        thighs = np.stack([view.body_depth[:, leg[:2]].mean(axis=1) for leg in LEGS])
        skirt = Layer(trunk.skirt(view), bottom.colour, None, "hull")
        parts.append(Part(np.maximum(thighs.max(axis=0) + LEG_DEPTH, 0) + 0.004, _lined(view, [skirt])))
    chin, thick = between(view.body[:, NECK], view.skull, 0.6), view.scale * size.neck_radius
    neck = _rod(view.body[:, NECK], chin, thick * 1.15, thick, person.skin)
    return [*parts, Part(zero + 0.006, _lined(view, [neck]))]


def _head(view: View) -> list[Part]:
    """The head, and hair that falls behind the trunk."""
    head, person = Head(view), view.character
    ears = [head.ball((side * 0.385, 0.04, -0.02), 1.0, np.array([0.06, 0.1, 0.06])) for side in (-1.0, 1.0)]
    skull = Layer(head.ball((0, 0, 0), 1.0, points=32), person.skin)
    layers = _lined(view, [*(Layer(ear, shaded(person.skin, 0.9)) for ear in ears), skull])
    if person.hair.style != "bald":
        layers += _lined(view, _hair(head))
    layers += [*_skin(head), *_features(head), *_front_hair(head)]
    return [*_back_hair(head), Part(view.skull_depth + HEAD_DEPTH, layers)]


def _hair(head: Head) -> list[Layer]:
    """Hair that lies on the head, under the face."""
    hair = head.person.hair
    if hair.style in ("bob", "long", "afro"):
        size = 1.1 if hair.style != "afro" else 1.2
        return [Layer(head.ball((0, -0.04, -0.03), size, points=32), hair.colour), *_locks(head)]
    cover = [Layer(head.at(dome()), hair.colour, None, "hull")]
    if hair.style == "bun":
        half = np.array([0.2, 0.2, 0.2]) * hair.length
        cover.insert(0, Layer(head.ball((0, -0.56, -0.12), 1.0, half), hair.colour))
    return cover


def _skin(head: Head) -> list[Layer]:
    """The front of the head, from the jaw to the hairline, and the nose."""
    face, skin = head.view.face, head.person.skin
    turn = np.linspace(0, np.pi, 11)
    x, y = 0.355 * np.cos(turn), -0.06 - (_HAIRLINE - 0.06) * np.sin(turn)
    forehead = head.at(np.stack([x, y, surface(x, y)], axis=-1))
    outline = np.concatenate([face[:, :17], forehead], axis=1)
    front = Layer(outline, skin, head.faces((0, 0, 1), -0.1), "hull")
    layers = [front] if head.person.hair.style == "bald" else _lined(head.view, [front], 0.7)
    nose = _rod(face[:, 29], face[:, 30], head.unit * 0.03, head.unit * 0.045, shaded(skin, 0.8))
    return [*layers, replace(nose, shown=head.faces((0, 0, 1)))]


def _features(head: Head) -> list[Layer]:
    """Eyes, brows and mouth."""
    face, layers = head.view.face, list[Layer]()
    for eye, brow, side in (((36, 42), (17, 22), -1.0), ((42, 48), (22, 27), 1.0)):
        shown = head.faces((side * 0.75, 0, 1), 0.2)
        layers += [*_eye(head, face[:, slice(*eye)], shown), _brow(head, face[:, slice(*brow)], shown)]
    front = head.faces((0, 0, 1))
    lips = Layer(face[:, 48:60], head.person.face.lips, front, "any")
    return [*layers, lips, Layer(face[:, 60:68], _INSIDE, front, "any")]


def _eye(head: Head, lids: Array, shown: Flags) -> list[Layer]:
    """White, iris, pupil and a highlight under a lid with a dark edge; `lids` [F,6,2] go round the eye."""
    middle = lids.mean(axis=1)
    wide, high = (lids[:, 3] - lids[:, 0]) / 2, (lids[:, 4:].mean(axis=1) - lids[:, 1:3].mean(axis=1)) / 1.732

    def oval(turn: Array, size: float = 1.0) -> Array:
        around = np.cos(turn)[:, None] * wide[:, None] + np.sin(turn)[:, None] * high[:, None]
        return np.asarray(middle[:, None] + size * around)

    whole = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    upper = np.linspace(1.14 * np.pi, 1.86 * np.pi, 9)
    edge = between(oval(upper[[0, -1]]).mean(axis=1), middle, 0.35)  # the lid's lower edge, a little bent
    lid = np.concatenate([oval(upper, 1.04), edge[:, None]], axis=1)
    lash = np.concatenate([oval(upper, 1.02), oval(upper[::-1], 1.24)], axis=1)
    radius = np.minimum(np.linalg.norm(high, axis=-1) * 0.86, head.unit * 0.095)
    light = middle - unit(head.axes[:, :2, 0] + head.axes[:, :2, 1]) * (radius * 0.42)[:, None]
    person = head.person
    return [
        Layer(oval(whole, 1.12), _DARK, shown),
        Layer(oval(whole), _WHITE, shown),
        Layer(disc(middle, radius, 16), person.face.iris, shown),
        Layer(disc(middle, radius * 0.56, 16), _DARK, shown),
        Layer(disc(light, radius * 0.3), _WHITE, shown),
        Layer(lid, shaded(person.skin, 0.8), shown, "any"),
        Layer(lash, _DARK, shown, "any"),
    ]


def _brow(head: Head, points: Array, shown: Flags) -> Layer:
    person = head.person
    up = head.axes[:, None, :2, 1] * -0.026 * person.face.brow_thickness
    hairless = person.hair.style in ("bald", "cap")
    colour = shaded(person.skin, 0.35) if hairless else shaded(person.hair.colour, 0.6)
    return Layer(np.concatenate([points + up, points[:, ::-1] - up], axis=1), colour, shown, "any")


def _back_hair(head: Head) -> list[Part]:
    """Hair that hangs or stands behind the head."""
    hair, ahead = head.person.hair, head.turn[:, 2, 2]
    behind = head.view.skull_depth + 0.02 - 0.11 * ahead
    behind = np.where(ahead > 0, np.minimum(behind, -0.004), behind)
    if hair.style == "afro":
        size = 1.2 + 0.25 * (hair.length - 0.75)
        ball = head.ball((0, -0.1, -0.12), size, np.array([0.45, 0.48, 0.45]), points=32)
        return [Part(behind, _lined(head.view, [Layer(ball, hair.colour)]))]
    if hair.style not in _FALLING:
        return []
    top = head.at(np.array([[0.0, -0.1, -0.25]]))[:, 0]
    end = top + (head.unit * _FALLING[hair.style] * hair.length)[:, None] * [0.0, 1.0]  # hangs straight down
    wide, narrow = (0.16, 0.06) if hair.style == "ponytail" else (0.42, 0.36)
    return [
        Part(
            behind,
            _lined(head.view, [_rod(top, end, head.unit * wide, head.unit * narrow, hair.colour)]),
        )
    ]


def _front_hair(head: Head) -> list[Layer]:
    """Fringe or cap."""
    hair = head.person.hair
    if hair.style == "cap":
        return _cap(head)
    if hair.style not in ("fringe", "bob"):
        return []
    turn = np.linspace(-1.3, 1.3, 13)
    x = 0.4 * np.sin(turn)
    low, high = -0.25 + 0.2 * (1 - np.cos(turn)) + 0.1 * x, -0.1 - 0.43 * np.cos(turn)
    lower, upper = (np.stack([x, y, surface(x, y) + 0.02], axis=-1) for y in (low, high))
    outline = head.at(np.concatenate([lower, upper[::-1]]))
    return _lined(head.view, [Layer(outline, hair.colour, head.faces((0, 0, 1), -0.05), "any")], 0.7)


def _locks(head: Head) -> list[Layer]:
    """Hair that falls beside the face."""
    hair, locks = head.person.hair, list[Layer]()
    if hair.style == "afro":
        return locks
    drop = 0.35 if hair.style == "bob" else 0.55 * hair.length
    for side in (-1.0, 1.0):
        ends = head.at(np.array([[side * 0.32, -0.2, 0.0], [side * 0.4, drop, 0.0]]))
        locks.append(_rod(ends[:, 0], ends[:, 1], head.unit * 0.1, head.unit * 0.08, hair.colour))
    return locks


def _cap(head: Head) -> list[Layer]:
    colour, shown = head.person.hair.cap, head.faces((0, 0, 1), -0.2)
    cosine, sine = ring(24)
    band = np.stack([0.42 * cosine, np.full(24, -0.2), 0.46 * sine], axis=-1)
    crown = np.stack([0.36 * cosine, np.full(24, -0.46), 0.4 * sine], axis=-1)
    peak = np.stack([0.18 * cosine, np.full(24, -0.58), 0.2 * sine], axis=-1)
    half = np.linspace(0, np.pi, 11)
    brim = np.stack([0.36 * np.cos(half), -0.24 + 0.04 * np.sin(half), 0.2 + 0.42 * np.sin(half)], axis=-1)
    top = Layer(head.at(np.concatenate([band, crown, peak])), colour, None, "hull")
    return _lined(head.view, [top]) + _lined(
        head.view, [Layer(head.at(brim), shaded(colour, 0.75), shown, "hull")]
    )
