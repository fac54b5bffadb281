"""The head: hair behind, skull, face with its features, hair in front."""

from __future__ import annotations

import numpy as np

from .character import Character
from .hair import back_parts, front_layers, skull_layers
from .head import RADII, surface
from .palette import Colour, shaded
from .rotation import Array, unit
from .shapes import Flags, Layer, Part, Shade, disc, ellipse, tube
from .view import View

HEAD_DEPTH = 0.03
_WHITE: Colour = (246.0, 244.0, 240.0)
_DARK: Colour = (30.0, 22.0, 24.0)


class Head:
    """Places points of a head of height 1 in the picture."""

    def __init__(self, view: View, character: Character) -> None:
        self.unit = view.scale * character.body.head
        self.middle = view.skull
        self.turn = view.skeleton.head
        self.axes = self.turn * self.unit[:, None, None]

    def at(self, points: Array) -> Array:
        """[P,3] of the head to pixels [F,P,2]."""
        placed: Array = self.middle[:, None] + np.einsum("fij,pj->fpi", self.axes[:, :2], points)
        return placed

    def ball(self, middle: tuple[float, float, float], size: float, radii: Array | None = None) -> Array:
        """The outline [F,20,2] of an ellipsoid: the skull's own radii times `size` unless given."""
        half = np.asarray(RADII) if radii is None else radii
        return ellipse(self.at(np.asarray([middle]))[:, 0], self.axes * (half * size))

    def faces(self, normal: tuple[float, float, float], least: float = 0.12) -> Flags:
        """Whether the skin with that outward `normal` is turned to the viewer [F]."""
        flags: Flags = self.turn[:, 2] @ unit(np.asarray(normal)) > least
        return flags


def head_parts(view: View, character: Character, shade: Shade) -> list[Part]:
    """Hair that falls behind the trunk, and the head."""
    head = Head(view, character)
    depth = view.skull_depth + HEAD_DEPTH
    layers = [*_ears(head, character), *skull_layers(head, character, shade)]
    layers += _skin(head, view, character, shade)
    layers += _features(head, view, character)
    layers += front_layers(head, character, shade)
    return [*back_parts(head, view, character, shade), Part(depth, layers)]


def _ears(head: Head, character: Character) -> list[Layer]:
    radii = np.array([0.05, 0.1, 0.06])
    colour = shaded(character.skin, 0.88)
    return [Layer(head.ball((side * 0.385, 0.04, -0.02), 1.0, radii), colour) for side in (-1.0, 1.0)]


def _skin(head: Head, view: View, character: Character, shade: Shade) -> list[Layer]:
    """The front of the head, from the jaw to the hairline."""
    high = {"bald": 0.47, "short": 0.36, "afro": 0.3, "bun": 0.36, "ponytail": 0.36}
    rise = high.get(character.hair.style, 0.33)
    turn = np.linspace(0, np.pi, 9)
    x, y = 0.36 * np.cos(turn), -0.06 - (rise - 0.06) * np.sin(turn)
    forehead = head.at(np.stack([x, y, surface(x, y)], axis=-1))
    outline = np.concatenate([view.face[:, :17], forehead], axis=1)
    front = head.faces((0, 0, 1), -0.1)
    middle = outline.mean(axis=1, keepdims=True)
    layers = []
    for size, tone in shade.tones(character.skin)[:2]:
        size = 0.55 + 0.45 * size
        moved = middle + (outline - middle) * size + shade.shift(head.unit * 0.6, size)[:, None]
        layers.append(Layer(moved, tone, front, "hull"))
    if character.face.beard:
        chin = np.concatenate([view.face[:, 2:15], view.face[:, [54, 51, 48]]], axis=1)
        layers.append(Layer(chin, shaded(character.hair.colour, 0.9), front, "any"))
    return layers


def _features(head: Head, view: View, character: Character) -> list[Layer]:
    front = head.faces((0, 0, 1))
    face, skin = view.face, character.skin
    nose = np.stack([face[:, 27], face[:, 31], face[:, 33], face[:, 35]], axis=1)
    layers = [Layer(nose, shaded(skin, 0.84), front, "hull")]
    layers.append(
        Layer(tube(face[:, 28], face[:, 30], head.unit * 0.02, head.unit * 0.035), shaded(skin, 1.1), front)
    )
    for eye, brow, side in (((36, 42), (17, 22), -1.0), ((42, 48), (22, 27), 1.0)):
        shown = head.faces((side * 0.45, 0, 1))
        layers += _eye(head, face[:, slice(*eye)], character, shown)
        layers.append(_brow(head, face[:, slice(*brow)], character, shown))
    layers.append(Layer(face[:, 48:60], character.face.lips, front, "any"))
    layers.append(Layer(face[:, 60:68], (70.0, 16.0, 24.0), front, "any"))
    return layers


def _eye(head: Head, ring: Array, character: Character, shown: Flags) -> list[Layer]:
    middle = ring.mean(axis=1)
    layers = []
    if character.face.glasses:
        rim = head.unit * 0.125
        layers = [Layer(disc(middle, rim), _DARK, shown)]
        layers.append(Layer(disc(middle, rim * 0.76), shaded(character.skin, 1.12), shown))
    open_ = np.linalg.norm(ring[:, 1:3].mean(axis=1) - ring[:, 4:].mean(axis=1), axis=-1)
    radius = np.minimum(head.unit * 0.048 * character.face.eye_size, open_ * 0.62)
    lid = head.unit[:, None, None] * 0.016 * np.array([0.0, -1.0])
    lashes = np.concatenate([ring[:, :4] + lid, ring[:, 3::-1] - 0.3 * lid], axis=1)
    layers.append(Layer(ring, _WHITE, shown))
    layers.append(Layer(disc(middle, radius), character.face.iris, shown))
    layers.append(Layer(disc(middle, radius * 0.55), _DARK, shown))
    layers.append(Layer(lashes, _DARK, shown, "any"))
    return layers


def _brow(head: Head, points: Array, character: Character, shown: Flags) -> Layer:
    up = head.axes[:, None, :2, 1] * -0.022 * character.face.brow_thickness
    style = character.hair.style
    colour = (
        shaded(character.hair.colour, 0.7) if style not in ("bald", "cap") else shaded(character.skin, 0.4)
    )
    return Layer(np.concatenate([points + up, points[:, ::-1] - 0.5 * up], axis=1), colour, shown, "any")
