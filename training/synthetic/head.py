"""The head: hair behind, skull, face with its features, hair or a cap in front."""

from __future__ import annotations

import numpy as np

from .camera import View
from .character import Colour, shaded
from .geometry import Array, disc, ellipse, tube, unit
from .paint import Flags, Kind, Layer, Part, round_tube
from .skeleton import RADII, surface

HEAD_DEPTH = 0.03
_WHITE: Colour = (246.0, 244.0, 240.0)
_DARK: Colour = (30.0, 22.0, 24.0)
_INSIDE: Colour = (70.0, 16.0, 24.0)  # of the mouth
_HAIRLINE = {"bald": 0.47, "short": 0.36, "afro": 0.3, "bun": 0.36, "ponytail": 0.36}
"""How far above the head's middle the face ends, in heights of a head; 0.33 for the other styles."""
_FALLING = {"bob": 0.62, "long": 1.25, "ponytail": 1.0}
"""How far below the head's middle hair ends, in heights of a head."""


class Head:
    """A person's head in the picture; points [P,3] of a head of height 1 are placed by `at`."""

    def __init__(self, view: View) -> None:
        self.person, self.view = view.character, view
        self.unit = view.scale * self.person.body.head
        self.turn = view.skeleton.head
        self.axes = self.turn * self.unit[:, None, None]

    def at(self, points: Array) -> Array:
        """[P,3] of the head to pixels [F,P,2]."""
        placed: Array = self.view.skull[:, None] + np.einsum("fij,pj->fpi", self.axes[:, :2], points)
        return placed

    def ball(self, middle: tuple[float, float, float], size: float, radii: Array | None = None) -> Array:
        """The outline [F,20,2] of an ellipsoid: the skull's own radii times `size` unless given."""
        half = np.asarray(RADII) if radii is None else radii
        return ellipse(self.at(np.asarray([middle]))[:, 0], self.axes * (half * size))

    def faces(self, normal: tuple[float, float, float], least: float = 0.12) -> Flags:
        """Whether the skin with that outward `normal` is turned to the viewer [F]."""
        return self.turn[:, 2] @ unit(np.asarray(normal)) > least


def head_parts(view: View) -> list[Part]:
    """The head, and hair that falls behind the trunk."""
    head, radii = Head(view), np.array([0.05, 0.1, 0.06])
    ears = [head.ball((side * 0.385, 0.04, -0.02), 1.0, radii) for side in (-1.0, 1.0)]
    layers = [Layer(ear, shaded(head.person.skin, 0.88)) for ear in ears]
    layers += [*_skull(head), *_skin(head), *_features(head), *_front_hair(head)]
    return [*_back_hair(head), Part(view.skull_depth + HEAD_DEPTH, layers)]


def _skin(head: Head) -> list[Layer]:
    """The front of the head, from the jaw to the hairline."""
    person, face, light = head.person, head.view.face, head.person.light
    rise = _HAIRLINE.get(person.hair.style, 0.33)
    turn = np.linspace(0, np.pi, 9)
    x, y = 0.36 * np.cos(turn), -0.06 - (rise - 0.06) * np.sin(turn)
    forehead = head.at(np.stack([x, y, surface(x, y)], axis=-1))
    outline = np.concatenate([face[:, :17], forehead], axis=1)
    front = head.faces((0, 0, 1), -0.1)
    middle = outline.mean(axis=1, keepdims=True)
    layers = []
    for size, tone in light.tones(person.skin)[:2]:
        size = 0.55 + 0.45 * size
        moved = middle + (outline - middle) * size + light.shift(head.unit * 0.6, size)[:, None]
        layers.append(Layer(moved, tone, front, "hull"))
    if person.face.beard:
        chin = np.concatenate([face[:, 2:15], face[:, [54, 51, 48]]], axis=1)
        layers.append(Layer(chin, shaded(person.hair.colour, 0.9), front, "any"))
    return layers


def _features(head: Head) -> list[Layer]:
    """Nose, eyes, brows and mouth."""
    front, face, skin = head.faces((0, 0, 1)), head.view.face, head.person.skin
    nose = np.stack([face[:, 27], face[:, 31], face[:, 33], face[:, 35]], axis=1)
    ridge = tube(face[:, 28], face[:, 30], head.unit * 0.02, head.unit * 0.035)
    layers = [Layer(nose, shaded(skin, 0.84), front, "hull"), Layer(ridge, shaded(skin, 1.1), front)]
    for eye, brow, side in (((36, 42), (17, 22), -1.0), ((42, 48), (22, 27), 1.0)):
        shown = head.faces((side * 0.45, 0, 1))
        layers += [*_eye(head, face[:, slice(*eye)], shown), _brow(head, face[:, slice(*brow)], shown)]
    layers.append(Layer(face[:, 48:60], head.person.face.lips, front, "any"))
    layers.append(Layer(face[:, 60:68], _INSIDE, front, "any"))
    return layers


def _eye(head: Head, ring: Array, shown: Flags) -> list[Layer]:
    """Glasses if worn, white, iris, pupil and lashes; `ring` [F,6,2] goes round the eye."""
    person, middle, layers = head.person, ring.mean(axis=1), []
    if person.face.glasses:
        rim = head.unit * 0.125
        layers = [Layer(disc(middle, rim), _DARK, shown)]
        layers.append(Layer(disc(middle, rim * 0.76), shaded(person.skin, 1.12), shown))
    open_ = np.linalg.norm(ring[:, 1:3].mean(axis=1) - ring[:, 4:].mean(axis=1), axis=-1)
    radius = np.minimum(head.unit * 0.048 * person.face.eye_size, open_ * 0.62)
    lid = head.unit[:, None, None] * 0.016 * np.array([0.0, -1.0])
    lashes = np.concatenate([ring[:, :4] + lid, ring[:, 3::-1] - 0.3 * lid], axis=1)
    return [
        *layers,
        Layer(ring, _WHITE, shown),
        Layer(disc(middle, radius), person.face.iris, shown),
        Layer(disc(middle, radius * 0.55), _DARK, shown),
        Layer(lashes, _DARK, shown, "any"),
    ]


def _brow(head: Head, points: Array, shown: Flags) -> Layer:
    person = head.person
    up = head.axes[:, None, :2, 1] * -0.022 * person.face.brow_thickness
    hairless = person.hair.style in ("bald", "cap")
    colour = shaded(person.skin, 0.4) if hairless else shaded(person.hair.colour, 0.7)
    return Layer(np.concatenate([points + up, points[:, ::-1] - 0.5 * up], axis=1), colour, shown, "any")


def _back_hair(head: Head) -> list[Part]:
    """Hair that hangs or stands behind the head."""
    hair, light = head.person.hair, head.person.light
    ahead = head.turn[:, 2, 2]
    behind = head.view.skull_depth + 0.02 - 0.11 * ahead
    behind = np.where(ahead > 0, np.minimum(behind, -0.004), behind)
    if hair.style == "afro":
        size = 1.35 + 0.25 * (hair.length - 0.75)
        ball = head.ball((0, -0.12, -0.12), size, np.array([0.45, 0.48, 0.45]))
        return [Part(behind, _hair(head, ball))]
    if hair.style not in _FALLING:
        return []
    top = head.at(np.array([[0.0, -0.1, -0.25]]))[:, 0]
    end = top + (head.unit * _FALLING[hair.style] * hair.length)[:, None] * [0.0, 1.0]  # hangs straight down
    wide, narrow = (0.16, 0.06) if hair.style == "ponytail" else (0.42, 0.34)
    return [Part(behind, round_tube(top, end, head.unit * wide, head.unit * narrow, hair.colour, light))]


def _skull(head: Head) -> list[Layer]:
    """The round of the head with its hair, below the face."""
    person, style = head.person, head.person.hair.style
    layers = [Layer(head.ball((0, 0, 0), 1.0), shaded(person.skin, 1 - 0.2 * person.light.contrast))]
    if style == "bald":
        return layers
    if style == "bun":
        bun = head.ball((0, -0.52, -0.2), 1.0, np.array([0.2, 0.2, 0.2]) * person.hair.length)
        layers += _hair(head, bun)
    if style in ("bob", "long", "afro"):
        return layers + _hair(head, head.ball((0, -0.03, -0.03), 1.07))
    return layers + _hair(head, head.at(_dome()), "hull")


def _dome() -> Array:
    """Points [48,3] of the skull's upper part, down to the brow in front, the ears, and the nape behind."""
    around = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    rim = 0.07 - 0.22 * np.cos(around)
    y = np.concatenate([rim + (-0.5 - rim) * share for share in (0.0, 0.4, 0.7, 0.93)])
    wide = 1.07 * np.sqrt(1 - (y / 0.5) ** 2)
    x, z = np.tile(np.sin(around), 4), np.tile(np.cos(around), 4)
    return np.stack([RADII[0] * wide * x, 1.07 * y, RADII[2] * wide * z], axis=-1)


def _front_hair(head: Head) -> list[Layer]:
    """Fringe, locks beside the face, or a cap."""
    hair, unit_length, layers = head.person.hair, head.unit, []
    if hair.style == "cap":
        return _cap(head)
    if hair.style in ("fringe", "bob"):
        turn = np.linspace(-1.25, 1.25, 9)
        x = 0.39 * np.sin(turn)
        low = np.where(np.arange(9) % 2 == 0, -0.17, -0.22)
        low[[0, -1]] = -0.02
        high = -0.1 - 0.42 * np.cos(turn)
        lower, upper = (np.stack([x, y, surface(x, y) + 0.02], axis=-1) for y in (low, high))
        outline = head.at(np.concatenate([lower, upper[::-1]]))
        layers.append(Layer(outline, shaded(hair.colour, 0.94), head.faces((0, 0, 1), -0.05), "any"))
    if hair.style in ("bob", "long"):
        drop = 0.35 if hair.style == "bob" else 0.6 * hair.length
        for side in (-1.0, 1.0):
            ends = head.at(np.array([[side * 0.37, -0.2, 0.05], [side * 0.4, drop, 0.05]]))
            wide, narrow = unit_length * 0.1, unit_length * 0.08
            layers += round_tube(ends[:, 0], ends[:, 1], wide, narrow, hair.colour, head.person.light)[:2]
    return layers


def _cap(head: Head) -> list[Layer]:
    colour, front = head.person.hair.cap, head.faces((0, 0, 1), -0.2)
    turn = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    ring = np.stack([0.42 * np.cos(turn), np.full(20, -0.17), 0.46 * np.sin(turn)], axis=-1)
    dome = np.stack([0.36 * np.cos(turn), np.full(20, -0.42), 0.4 * np.sin(turn)], axis=-1)
    crown = np.array([[0.0, -0.58, 0.0], [0.16, -0.54, 0.0], [-0.16, -0.54, 0.0]])
    half = np.linspace(0, np.pi, 9)
    brim = np.stack([0.36 * np.cos(half), np.full(9, -0.17), 0.2 + 0.5 * np.sin(half)], axis=-1)
    brim[:, 1] += 0.1 * np.sin(half)
    under = shaded(colour, 1 - 0.4 * head.person.light.contrast)
    return [
        Layer(head.at(np.concatenate([ring, dome, crown])), colour, None, "hull"),
        Layer(head.at(np.concatenate([dome * [0.75, 1, 0.75], crown])), shaded(colour, 1.1), None, "hull"),
        Layer(head.at(brim), under, front, "hull"),
    ]


def _hair(head: Head, outline: Array, kind: Kind = "convex") -> list[Layer]:
    """A tuft of that outline that looks round."""
    middle, light = outline.mean(axis=1, keepdims=True), head.person.light
    return [
        Layer(
            middle + (outline - middle) * size + light.shift(head.unit * 0.45, size)[:, None],
            tone,
            None,
            kind,
        )
        for size, tone in light.tones(head.person.hair.colour)
    ]
