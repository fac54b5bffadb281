"""A whole person as parts to paint: trunk, arms, legs, hands and head."""

from __future__ import annotations

import numpy as np

from .camera import View
from .character import Colour, Garment, shaded
from .geometry import Array, between, disc, ellipse, tube, unit
from .paint import Flags, Kind, Layer, Part, round_tube
from .skeleton import ARMS, LEFT, LEGS, NECK, RADII, RIGHT, SIDES, surface

ARM_DEPTH, LEG_DEPTH, HEAD_DEPTH = (
    0.02,
    -0.06,
    0.03,
)  # arms that hang beside the trunk lie over it, legs under it
_ROWS = np.array([-0.07, 0.03, 0.2, 0.45, 0.72, 0.92, 1.1])
"""Levels of the trunk's outline, from 0 at the shoulders to 1 at the hips."""
_FINE = 4  # points between two levels
_WHITE: Colour = (246.0, 244.0, 240.0)
_DARK: Colour = (30.0, 22.0, 24.0)
_INSIDE: Colour = (70.0, 16.0, 24.0)  # of the mouth
_HAIRLINE = {"bald": 0.47, "short": 0.36, "afro": 0.3, "bun": 0.36, "ponytail": 0.36}
"""How far above the head's middle the face ends, in heights of a head; 0.33 for the other styles."""
_FALLING = {"bob": 0.62, "long": 1.25, "ponytail": 1.0}
"""How far below the head's middle hair ends, in heights of a head."""


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
    palms = (((5, 17), 0.17, 0.12, rim), ((17, 13, 9, 5), 0.14, 0.1, person.skin))
    for knuckles, wide, narrow, colour in palms:
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
    first, last = start + shift * wide[:, None] * [1.0, 0.0], end + shift * narrow[:, None] * [1.0, 0.0]
    return Layer(tube(first, last, wide * 0.22, narrow * 0.22), garment.second)


class Trunk:
    """The trunk as a stack of ellipses, whose left and right ends make its outline."""

    def __init__(self, view: View) -> None:
        size, loose = view.character.body, 0.5 + 0.5 * view.character.top.loose
        neck, hips = view.body[:, NECK], view.hips
        self.levels = levels = np.linspace(_ROWS[0], _ROWS[-1], _FINE * (len(_ROWS) - 1) + 1)
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
        down = unit(hips - neck)
        normal = np.stack([down[:, 1], -down[:, 0]], axis=-1)[:, None]
        normal = normal * np.where(self._sideways.mean(axis=1)[:, None, :1] < 0, -1.0, 1.0)
        wide, thick = self._width[:, None] * self._sideways, self._thick[:, None] * self._forward
        across = np.sum(wide * normal, axis=-1, keepdims=True)
        towards = np.sum(thick * normal, axis=-1, keepdims=True)
        reach = (across * wide + towards * thick) / np.maximum(np.hypot(across, towards), 1e-6)
        self.left, self.right = self._centre + reach, self._centre - reach

    def band(self, top: float, bottom: float, size: float = 1.0) -> Array:
        """The outline [F,P,2] between two levels, `size` times as wide."""
        rows = (self.levels >= top - 1e-6) & (self.levels <= bottom + 1e-6)
        left, right = self.left[:, rows], self.right[:, rows]
        middle = (left + right) / 2
        outline = np.concatenate([left, right[:, ::-1]], axis=1)
        centre = np.concatenate([middle, middle[:, ::-1]], axis=1)
        return np.asarray(centre + (outline - centre) * size)

    def patch(self, top: float, bottom: float, angle: float, half: float) -> Array:
        """A patch [F,4,2] on the front, `angle` radians to the left, `half` radians to each side."""
        corners = []
        for level, turn in ((top, -half), (top, half), (bottom, half), (bottom, -half)):
            row = int(np.argmin(np.abs(self.levels - level)))
            around = np.sin(angle + turn) * self._width[row] * self._sideways[:, row]
            ahead = np.cos(angle + turn) * self._thick[row] * self._forward[:, row]
            corners.append(self._centre[:, row] + around + ahead)
        return np.stack(corners, axis=1)

    def skirt(self, view: View) -> Array:
        """The corners [F,4,2] of a skirt: waist, hems, waist."""
        bottom, size = view.character.bottom, view.character.body
        waist = self.band(0.86, 0.93)
        ends = waist.reshape(len(waist), -1, 2)[:, [0, -1]]
        hems = [between(view.body[:, leg[0]], view.body[:, leg[1]], bottom.cover) for leg in LEGS]
        flare = (view.scale * size.thigh_radius * 1.5)[:, None] * [1.0, 0.0]
        out = np.where(ends[:, 0, :1] >= ends[:, 1, :1], 1.0, -1.0)
        left, right = hems[0] + out * flare, hems[1] - out * flare
        return np.stack([ends[:, 0], left, right, ends[:, 1]], axis=1)


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
    corners = trunk.skirt(view)
    middle = corners.mean(axis=1, keepdims=True)
    layers = []
    for part, tone in view.character.light.tones(view.character.bottom.colour):
        narrowed = middle + (corners - middle) * np.array([0.3 + 0.7 * part, 1.0])
        layers.append(Layer(narrowed, tone, None, "hull"))
    return layers


class Head:
    """A person's head in the picture; points [P,3] of a head of height 1 are placed by `at`."""

    def __init__(self, view: View) -> None:
        self.person, self.view = view.character, view
        self.unit = view.scale * self.person.body.head
        self.turn = view.skeleton.head
        self.axes = self.turn * self.unit[:, None, None]

    def at(self, points: Array) -> Array:
        """[P,3] of the head to pixels [F,P,2]."""
        return np.asarray(self.view.skull[:, None] + np.einsum("fij,pj->fpi", self.axes[:, :2], points))

    def ball(
        self, middle: tuple[float, float, float], size: float, radii: Array | None = None, points: int = 20
    ) -> Array:
        """The outline [F,points,2] of an ellipsoid: the skull's own radii times `size` unless given."""
        half = np.asarray(RADII) if radii is None else radii
        return ellipse(self.at(np.asarray([middle]))[:, 0], self.axes * (half * size), points)

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
        rim, glass = head.unit * 0.125, shaded(person.skin, 1.12)
        layers = [Layer(disc(middle, rim), _DARK, shown), Layer(disc(middle, rim * 0.76), glass, shown)]
    open_ = np.linalg.norm(ring[:, 1:3].mean(axis=1) - ring[:, 4:].mean(axis=1), axis=-1)
    radius = np.minimum(head.unit * 0.048 * person.face.eye_size, open_ * 0.62)
    lid = head.unit[:, None, None] * 0.016 * np.array([0.0, -1.0])
    lashes = np.concatenate([ring[:, :4] + lid, ring[:, 3::-1] - 0.3 * lid], axis=1)
    white, iris = Layer(ring, _WHITE, shown), Layer(disc(middle, radius), person.face.iris, shown)
    pupil = Layer(disc(middle, radius * 0.55), _DARK, shown)
    return [*layers, white, iris, pupil, Layer(lashes, _DARK, shown, "any")]


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
    return layers + _hair(head, head.at(dome()), "hull")


def dome() -> Array:
    """Points [48,3] of the skull's upper part, down to the brow in front, the ears, and the nape behind."""
    around = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    rim = 0.07 - 0.22 * np.cos(around)
    y = np.concatenate([rim + (-0.5 - rim) * share for share in (0.0, 0.4, 0.7, 0.93)])
    wide = 1.07 * np.sqrt(1 - (y / 0.5) ** 2)
    x, z = np.tile(np.sin(around), 4), np.tile(np.cos(around), 4)
    return np.stack([RADII[0] * wide * x, 1.07 * y, RADII[2] * wide * z], axis=-1)


def _front_hair(head: Head) -> list[Layer]:
    """Fringe, locks beside the face, or a cap."""
    hair, layers = head.person.hair, []
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
            wide, narrow = head.unit * 0.1, head.unit * 0.08
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
    middle, light, layers = outline.mean(axis=1, keepdims=True), head.person.light, []
    for size, tone in light.tones(head.person.hair.colour):
        moved = middle + (outline - middle) * size + light.shift(head.unit * 0.45, size)[:, None]
        layers.append(Layer(moved, tone, None, kind))
    return layers
