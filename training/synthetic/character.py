"""One synthetic person: body, face, hair, clothes, the room around it and its light, all from one seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from . import palette
from .palette import Colour

Pattern = Literal["solid", "stripes", "two-tone", "logo"]
HairStyle = Literal["bald", "short", "fringe", "bob", "long", "bun", "ponytail", "afro", "cap"]
BackdropKind = Literal["gradient", "room", "stripes", "shapes", "blobs"]


@dataclass(frozen=True, slots=True)
class Body:
    """Lengths and radii in units of the standing height (of about 1), as seen by the bones."""

    head: float
    """Chin to crown."""
    neck: float
    """Shoulder line to chin."""
    torso: float
    """Middle of the hips to neck."""
    shoulder: float
    """Half of the distance of the shoulder joints."""
    hip: float
    """Half of the distance of the hip joints."""
    upper_arm: float
    forearm: float
    hand: float
    thigh: float
    shin: float
    foot: float
    arm_radius: float
    wrist_radius: float
    thigh_radius: float
    knee_radius: float
    ankle_radius: float
    neck_radius: float
    waist: float
    """Half width of the waist."""
    depth: float
    """Half of the chest from front to back."""


@dataclass(frozen=True, slots=True)
class Face:
    """Shape of the face, as factors of the usual, and its colours."""

    eye_size: float
    eye_distance: float
    mouth_width: float
    lip: float
    brow_height: float
    brow_thickness: float
    nose: float
    jaw: float
    iris: Colour
    lips: Colour
    beard: bool
    glasses: bool


@dataclass(frozen=True, slots=True)
class Hair:
    """Style, colour, and length as a factor."""

    style: HairStyle
    colour: Colour
    length: float
    cap: Colour


@dataclass(frozen=True, slots=True)
class Garment:
    """A piece of clothing: how far it covers the limb (0 none, 1 half of it, 2 all), pattern and colours."""

    cover: float
    """Share of the limb's two bones that is covered, 0 to 2: 0.6 is a short sleeve, 1.9 a long one."""
    pattern: Pattern
    colour: Colour
    second: Colour
    bands: int
    """Number of stripes on the torso."""
    loose: float
    """Radius as a factor of the limb's."""
    skirt: bool = False


@dataclass(frozen=True, slots=True)
class Backdrop:
    """What is behind the person; `seed` places its details."""

    kind: BackdropKind
    colours: tuple[Colour, Colour, Colour]
    seed: int


@dataclass(frozen=True, slots=True)
class Light:
    """Where light comes from and how much it falls off."""

    side: float
    """-1 from the left to 1 from the right."""
    contrast: float
    """Depth of the shading, 0.6 to 1.2."""
    falloff: float
    """Share of brightness that is lost on the picture's far side, 0 to 0.35."""


@dataclass(frozen=True, slots=True)
class Character:
    """A person. Two characters of different seeds differ in colours, clothes, body, face and room."""

    seed: int
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
    def from_seed(seed: int) -> Character:
        """The character of that number, 0 or more; always the same."""
        rng = np.random.default_rng((0x5EED, seed))
        skin = palette.skin(rng)
        top = _top(rng, skin)
        bottom = _bottom(rng, skin, top)
        hair = _hair(rng, skin)
        return Character(
            seed=seed,
            body=_body(rng),
            face=_face(rng, skin),
            hair=hair,
            skin=skin,
            top=top,
            bottom=bottom,
            shoes=palette.cloth(rng),
            socks=palette.cloth(rng),
            backdrop=_backdrop(rng, [skin, top.colour, bottom.colour, hair.colour]),
            light=Light(rng.uniform(-1, 1), rng.uniform(0.6, 1.2), rng.uniform(0, 0.35)),
        )


def _body(rng: np.random.Generator) -> Body:
    build = rng.uniform(0.82, 1.28)  # slim to stout
    leg = rng.uniform(0.235, 0.262)
    head = rng.uniform(0.142, 0.172)
    return Body(
        head=head,
        neck=rng.uniform(0.028, 0.042),
        torso=1 - 2 * leg - head - 0.075,
        shoulder=rng.uniform(0.098, 0.128),
        hip=rng.uniform(0.05, 0.066),
        upper_arm=rng.uniform(0.158, 0.182),
        forearm=rng.uniform(0.142, 0.164),
        hand=rng.uniform(0.112, 0.13),
        thigh=leg,
        shin=leg,
        foot=rng.uniform(0.1, 0.125),
        arm_radius=0.033 * build,
        wrist_radius=0.021 * build**0.5,
        thigh_radius=0.056 * build,
        knee_radius=0.039 * build,
        ankle_radius=0.026 * build**0.5,
        neck_radius=0.031 * build**0.5,
        waist=rng.uniform(0.078, 0.1) * build,
        depth=rng.uniform(0.062, 0.078) * build,
    )


def _face(rng: np.random.Generator, skin: Colour) -> Face:
    return Face(
        eye_size=rng.uniform(0.85, 1.25),
        eye_distance=rng.uniform(0.9, 1.1),
        mouth_width=rng.uniform(0.8, 1.25),
        lip=rng.uniform(0.8, 1.4),
        brow_height=rng.uniform(0.8, 1.25),
        brow_thickness=rng.uniform(0.6, 1.5),
        nose=rng.uniform(0.8, 1.25),
        jaw=rng.uniform(0.86, 1.08),
        iris=palette.shaded(palette.vivid(rng), 0.5),
        lips=_mixed(palette.shaded(skin, 0.8), (190.0, 50.0, 60.0), rng.uniform(0.2, 0.8)),
        beard=bool(rng.random() < 0.15),
        glasses=bool(rng.random() < 0.15),
    )


def _hair(rng: np.random.Generator, skin: Colour) -> Hair:
    styles: tuple[HairStyle, ...] = (
        "bald", "short", "fringe", "bob", "long", "bun", "ponytail", "afro", "cap",
    )  # fmt: skip
    shares = (0.05, 0.17, 0.15, 0.13, 0.15, 0.09, 0.09, 0.09, 0.08)
    style = styles[int(rng.choice(len(styles), p=shares))]
    colours = [palette.hair(rng) for _ in range(4)]
    colour = next((one for one in colours if palette.distance(one, skin) > 90), colours[0])
    return Hair(style, colour, rng.uniform(0.75, 1.3), palette.vivid(rng))


def _top(rng: np.random.Generator, skin: Colour) -> Garment:
    cover = float(rng.choice([0.0, rng.uniform(0.45, 0.75), rng.uniform(1.75, 1.95)], p=[0.15, 0.45, 0.4]))
    colour = palette.apart(rng, [skin], 3)
    return Garment(
        cover, _pattern(rng), colour, palette.apart(rng, [colour], 4), int(rng.integers(2, 6)),
        rng.uniform(1.08, 1.35),
    )  # fmt: skip


def _bottom(rng: np.random.Generator, skin: Colour, top: Garment) -> Garment:
    skirt = bool(rng.random() < 0.22)
    cover = rng.uniform(0.6, 0.95) if skirt else (rng.uniform(0.55, 0.9), 1.9)[int(rng.random() < 0.65)]
    dress = skirt and rng.random() < 0.3
    colour = top.colour if dress else palette.apart(rng, [skin, top.colour], 4)
    pattern: Pattern = "stripes" if rng.random() < 0.2 else "solid"
    second = palette.apart(rng, [colour], 4)
    return Garment(float(cover), pattern, colour, second, 1, rng.uniform(1.05, 1.28), skirt)


def _pattern(rng: np.random.Generator) -> Pattern:
    patterns: tuple[Pattern, ...] = ("solid", "stripes", "two-tone", "logo")
    return patterns[int(rng.choice(4, p=[0.3, 0.25, 0.2, 0.25]))]


def _backdrop(rng: np.random.Generator, worn: list[Colour]) -> Backdrop:
    kinds: tuple[BackdropKind, ...] = ("gradient", "room", "stripes", "shapes", "blobs")
    first = palette.apart(rng, worn, 8)
    near = _mixed(first, palette.apart(rng, worn, 4), rng.uniform(0.15, 0.6))
    third = palette.apart(rng, [*worn, first], 5)
    kind = kinds[int(rng.choice(5, p=[0.2, 0.35, 0.12, 0.15, 0.18]))]
    return Backdrop(kind, (first, near, third), int(rng.integers(2**31)))


def _mixed(one: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (a + (b - a) * share for a, b in zip(one, other, strict=True))
    return red, green, blue
