"""One synthetic person: body, face, hair, clothes, the room around it and its light, all from one seed."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeVar

import numpy as np

from .geometry import Array, Rng

Style = Literal["doll", "rich"]
"""Paper dolls with large heads, in flat colours with dark outlines, or people of natural build who look round."""
Pattern = Literal["solid", "stripes", "two-tone", "logo"]
HairStyle = Literal["bald", "short", "fringe", "bob", "long", "bun", "ponytail", "afro", "cap"]
BackdropKind = Literal["gradient", "room", "stripes", "shapes", "blobs"]
Colour = tuple[float, float, float]
"""RGB in [0,255]."""
T = TypeVar("T")

_SKIN = (
    (255, 219, 190), (246, 203, 168), (233, 184, 146), (219, 164, 122), (200, 143, 100),
    (172, 117, 78), (141, 91, 58), (110, 69, 44), (82, 51, 35), (236, 190, 170),
)  # fmt: skip
_HAIR = (
    (24, 20, 20), (52, 34, 24), (88, 56, 32), (128, 82, 44), (176, 126, 66), (222, 184, 110),
    (150, 62, 28), (196, 92, 44), (150, 148, 146), (226, 224, 218),
)  # fmt: skip
_NEUTRAL = ((28, 28, 32), (240, 240, 236), (130, 132, 138), (204, 186, 154), (70, 58, 52), (38, 50, 92))
_PLAIN = 105.0  # distance of two colours that nobody mixes up
# How often each is chosen.
_PATTERNS: Mapping[Pattern, float] = {"solid": 0.3, "stripes": 0.25, "two-tone": 0.2, "logo": 0.25}
_STYLES: Mapping[HairStyle, float] = {
    "bald": 0.05, "short": 0.17, "fringe": 0.15, "bob": 0.13, "long": 0.15, "bun": 0.09, "ponytail": 0.09,
    "afro": 0.09, "cap": 0.08,
}  # fmt: skip
_BACKDROPS: Mapping[BackdropKind, float] = {
    "gradient": 0.2, "room": 0.35, "stripes": 0.12, "shapes": 0.15, "blobs": 0.18,
}  # fmt: skip
_TONES = ((1.0, 0.74), (0.78, 1.0), (0.36, 1.1))
"""Size and brightness of the layers that make a thing look round."""


def _drawn(low: float, high: float) -> Any:
    """A field of a dataclass whose value `_draw` chooses from this range."""
    return field(metadata={"range": (low, high)})


def _draw(rng: Rng, cls: Any) -> dict[str, Any]:
    """The values of the fields of a dataclass that are `_drawn`, in their order."""
    return {one.name: rng.uniform(*one.metadata["range"]) for one in fields(cls) if one.metadata}


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """Lengths and radii in units of the standing height (of about 1), as seen by the bones."""

    head: float  # chin to crown
    neck: float = _drawn(0.028, 0.042)  # shoulder line to chin
    torso: float  # middle of the hips to neck
    shoulder: float = _drawn(0.098, 0.128)  # half of the distance of the shoulder joints
    hip: float = _drawn(0.05, 0.066)  # half of the distance of the hip joints
    upper_arm: float = _drawn(0.158, 0.182)
    forearm: float = _drawn(0.142, 0.164)
    hand: float = _drawn(0.112, 0.13)
    thigh: float
    shin: float
    foot: float = _drawn(0.1, 0.125)
    arm_radius: float
    wrist_radius: float
    thigh_radius: float
    knee_radius: float
    ankle_radius: float
    neck_radius: float
    waist: float  # half of its width
    depth: float  # half of the chest from front to back

    @staticmethod
    def draw(rng: Rng) -> Body:
        """A random body."""
        build = rng.uniform(0.82, 1.28)  # slim to stout
        leg = rng.uniform(0.235, 0.262)
        head = rng.uniform(0.142, 0.172)
        return Body(
            **_draw(rng, Body), head=head, torso=1 - 2 * leg - head - 0.075, thigh=leg, shin=leg,
            arm_radius=0.033 * build, wrist_radius=0.021 * build**0.5,
            thigh_radius=0.056 * build, knee_radius=0.039 * build, ankle_radius=0.026 * build**0.5,
            neck_radius=0.031 * build**0.5, waist=rng.uniform(0.078, 0.1) * build,
            depth=rng.uniform(0.062, 0.078) * build,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Face:
    """Shape of the face, as factors of the usual, and its colours."""

    eye_size: float = _drawn(0.85, 1.25)
    eye_distance: float = _drawn(0.9, 1.1)
    mouth_width: float = _drawn(0.8, 1.25)
    lip: float = _drawn(0.8, 1.4)
    brow_height: float = _drawn(0.8, 1.25)
    brow_thickness: float = _drawn(0.6, 1.5)
    nose: float = _drawn(0.8, 1.25)
    jaw: float = _drawn(0.86, 1.08)
    eye: tuple[float, float] = (0.085, 0.055)  # half axes, in heights of a head
    brow_lift: float = 0.0  # in heights of a head
    iris: Colour
    lips: Colour
    beard: bool
    glasses: bool

    @staticmethod
    def draw(rng: Rng, skin: Colour) -> Face:
        """A random face."""
        return Face(
            **_draw(rng, Face), iris=shaded(vivid(rng), 0.5),
            lips=_mixed(shaded(skin, 0.8), (190.0, 50.0, 60.0), rng.uniform(0.2, 0.8)),
            beard=bool(rng.random() < 0.15), glasses=bool(rng.random() < 0.15),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Hair:
    """Style, colour, and length as a factor."""

    style: HairStyle
    colour: Colour
    length: float
    cap: Colour


@dataclass(frozen=True, slots=True)
class Garment:
    """A piece of clothing."""

    cover: float  # how many of a limb's two bones, 0 to 2: 0.6 is a short sleeve, 1.9 a long one
    pattern: Pattern
    colour: Colour
    second: Colour
    bands: int  # stripes on the torso
    loose: float  # radius as a factor of the limb's
    skirt: bool = False


@dataclass(frozen=True, slots=True)
class Backdrop:
    """What is behind the person; `seed` places its details."""

    kind: BackdropKind
    colours: tuple[Colour, Colour, Colour]
    seed: int


@dataclass(frozen=True, slots=True)
class Light:
    """Where light comes from, how much it falls off, and so in which tones a colour is painted."""

    side: float = _drawn(-1, 1)  # from the left to from the right
    contrast: float = _drawn(0.6, 1.2)  # depth of the shading
    falloff: float = _drawn(0, 0.35)  # share of brightness that is lost on the picture's far side

    def tones(self, colour: Colour) -> list[tuple[float, Colour]]:
        """Size factor and colour of each layer, outermost first."""
        return [(size, shaded(colour, 1 + (tone - 1) * self.contrast)) for size, tone in _TONES]

    def rim(self, colour: Colour) -> Colour:
        """The dark edge of small things."""
        return shaded(colour, 1 - 0.34 * self.contrast)

    def shift(self, radius: Array, size: float) -> Array:
        """How far [F,2] a layer of that size factor moves to the light in a thing of `radius` [F]."""
        return np.asarray((0.55 * (1 - size) * radius)[:, None] * np.asarray((0.8 * self.side, -0.6)))


@dataclass(frozen=True, slots=True)
class Character:
    """A person. Two characters of different seeds differ in colours, clothes, body, face and room."""

    seed: int
    style: Style
    body: Body
    face: Face
    hair: Hair
    skin: Colour
    top: Garment
    bottom: Garment
    shoes: Colour
    socks: Colour
    backdrop: Backdrop
    light: Light

    @staticmethod
    def from_seed(seed: int, style: Style = "doll") -> Character:
        """The character of that number, 0 or more; always the same. Clothes and hair are the same in both styles."""
        rng = np.random.default_rng((0x5EED, seed))
        skin = _between(rng, _SKIN, spread=5)
        top = _top(rng, skin)
        bottom = _bottom(rng, skin, top)
        hair = _hair(rng, skin)
        person = Character(
            seed=seed, style="rich", body=Body.draw(rng), face=Face.draw(rng, skin), hair=hair, skin=skin, top=top,
            bottom=bottom, shoes=_cloth(rng), socks=_cloth(rng),
            backdrop=_backdrop(rng, [skin, top.colour, bottom.colour, hair.colour]),
            light=Light(**_draw(rng, Light)),
        )  # fmt: skip
        return person if style == "rich" else _as_doll(person)


def _as_doll(person: Character) -> Character:
    """The person with a doll's body and face, plain clothes and an even light, in a plain room."""
    rng = np.random.default_rng((0xD011, person.seed))
    size, skin, top = person.body, person.skin, person.top
    head, leg = rng.uniform(0.215, 0.25), 0.2
    body = replace(
        size, head=head, torso=1 - 2 * leg - head - 0.075, thigh=leg, shin=leg, hand=0.16,
        upper_arm=0.86 * size.upper_arm, forearm=0.86 * size.forearm, wrist_radius=1.15 * size.wrist_radius,
    )  # fmt: skip
    face = replace(
        person.face, eye=(0.12, 0.135), eye_size=rng.uniform(0.93, 1.07), eye_distance=rng.uniform(1.1, 1.2),
        brow_lift=0.05, mouth_width=rng.uniform(1.0, 1.35), brow_thickness=rng.uniform(1.0, 1.7),
        iris=shaded(vivid(rng), 0.75),
        lips=_mixed(shaded(skin, 0.7), (196.0, 36.0, 54.0), rng.uniform(0.5, 0.9)), beard=False, glasses=False,
    )  # fmt: skip
    top = replace(top, pattern="stripes", bands=int(rng.integers(2, 4))) if top.pattern == "logo" else top
    kind: BackdropKind = "room" if rng.random() < 0.6 else "gradient"
    light = Light(side=0.0, contrast=0.0, falloff=0.0)
    return replace(
        person, style="doll", body=body, face=face, top=top, light=light,
        backdrop=replace(person.backdrop, kind=kind),
    )  # fmt: skip


def _hair(rng: Rng, skin: Colour) -> Hair:
    style = _one_of(rng, _STYLES)
    colours = [vivid(rng) if rng.random() < 1 / 7 else _between(rng, _HAIR, spread=6) for _ in range(4)]
    colour = next((one for one in colours if _distance(one, skin) > 90), colours[0])
    return Hair(style, colour, rng.uniform(0.75, 1.3), vivid(rng))


def _top(rng: Rng, skin: Colour) -> Garment:
    cover = float(rng.choice([0.0, rng.uniform(0.45, 0.75), rng.uniform(1.75, 1.95)], p=[0.15, 0.45, 0.4]))
    colour = _apart(rng, [skin], 3)
    pattern, second = _one_of(rng, _PATTERNS), _apart(rng, [colour], 4)
    return Garment(cover, pattern, colour, second, int(rng.integers(2, 6)), rng.uniform(1.08, 1.35))


def _bottom(rng: Rng, skin: Colour, top: Garment) -> Garment:
    skirt = bool(rng.random() < 0.22)
    cover = rng.uniform(0.6, 0.95) if skirt else (rng.uniform(0.55, 0.9), 1.9)[int(rng.random() < 0.65)]
    dress = skirt and rng.random() < 0.3
    colour = top.colour if dress else _apart(rng, [skin, top.colour], 4)
    pattern: Pattern = "stripes" if rng.random() < 0.2 else "solid"
    second = _apart(rng, [colour], 4)
    return Garment(float(cover), pattern, colour, second, 1, rng.uniform(1.05, 1.28), skirt)


def _backdrop(rng: Rng, worn: list[Colour]) -> Backdrop:
    first = _apart(rng, worn, 8)
    near = _mixed(first, _apart(rng, worn, 4), rng.uniform(0.15, 0.6))
    third = _apart(rng, [*worn, first], 5)
    kind = _one_of(rng, _BACKDROPS)
    return Backdrop(kind, (first, near, third), int(rng.integers(2**31)))


def _one_of(rng: Rng, shares: Mapping[T, float]) -> T:
    return list(shares)[int(rng.choice(len(shares), p=list(shares.values())))]


def vivid(rng: Rng) -> Colour:
    """A saturated colour of any hue."""
    red, green, blue = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.55, 0.95), rng.uniform(0.5, 0.97))
    return 255 * red, 255 * green, 255 * blue


def _cloth(rng: Rng) -> Colour:
    """A colour of clothes: one in five neutral."""
    if rng.random() < 0.2:
        return _between(rng, _NEUTRAL, spread=8, mixed=False)
    return vivid(rng)


def _apart(rng: Rng, others: list[Colour], tries: int) -> Colour:
    """A colour of clothes: of `tries` the first that nobody mixes up with `others`, or the one farthest from them."""
    candidates = [_cloth(rng) for _ in range(tries)]
    gaps = [min(_distance(colour, other) for other in others) for colour in candidates]
    plain = [colour for colour, gap in zip(candidates, gaps, strict=True) if gap > _PLAIN]
    return plain[0] if plain else candidates[int(np.argmax(gaps))]


def _distance(one: Colour, other: Colour) -> float:
    return float(np.linalg.norm(np.subtract(one, other)))


def shaded(colour: Colour, factor: float) -> Colour:
    """The colour darker (a factor below 1) or lighter: as far towards black or white as the factor is from 1."""
    target, share = (0.0, 1 - factor) if factor < 1 else (255.0, factor - 1)
    return _mixed(colour, (target, target, target), share)


def _mixed(one: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (a + (b - a) * share for a, b in zip(one, other, strict=True))
    return red, green, blue


def _between(rng: Rng, table: tuple[tuple[int, int, int], ...], spread: float, mixed: bool = True) -> Colour:
    """A colour of the table, or between it and the next one (others would mix to no hue), with noise of `spread`."""
    first = int(rng.integers(len(table), size=2)[0])
    second = min(first + 1, len(table) - 1)
    share = rng.random() if mixed else 0.0
    colour = np.asarray(table[first]) * (1 - share) + np.asarray(table[second]) * share
    red, green, blue = np.clip(colour + rng.normal(0, spread, 3), 4, 252).tolist()
    return red, green, blue
