"""Colours of people, clothes and rooms: float64 RGB in [0,255]."""

from __future__ import annotations

import colorsys

import numpy as np
import numpy.typing as npt

Colour = tuple[float, float, float]

_SKIN = (
    (255, 219, 190), (246, 203, 168), (233, 184, 146), (219, 164, 122), (200, 143, 100),
    (172, 117, 78), (141, 91, 58), (110, 69, 44), (82, 51, 35), (236, 190, 170),
)  # fmt: skip
_HAIR = (
    (24, 20, 20), (52, 34, 24), (88, 56, 32), (128, 82, 44), (176, 126, 66), (222, 184, 110),
    (150, 62, 28), (196, 92, 44), (150, 148, 146), (226, 224, 218),
)  # fmt: skip
_PLAIN = 105.0  # distance of two colours that nobody mixes up
_NEUTRAL = ((28, 28, 32), (240, 240, 236), (130, 132, 138), (204, 186, 154), (70, 58, 52), (38, 50, 92))


def skin(rng: np.random.Generator) -> Colour:
    """A skin tone between two of ten, a little warmer or cooler."""
    return _between(rng, _SKIN, spread=5)


def hair(rng: np.random.Generator) -> Colour:
    """A hair colour: mostly natural, one in seven dyed."""
    return vivid(rng) if rng.random() < 1 / 7 else _between(rng, _HAIR, spread=6)


def vivid(rng: np.random.Generator) -> Colour:
    """A saturated colour of any hue."""
    red, green, blue = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.55, 0.95), rng.uniform(0.5, 0.97))
    return 255 * red, 255 * green, 255 * blue


def cloth(rng: np.random.Generator) -> Colour:
    """A colour of clothes: one in five neutral."""
    if rng.random() < 0.2:
        return _between(rng, _NEUTRAL, spread=8, mixed=False)
    return vivid(rng)


def apart(rng: np.random.Generator, others: list[Colour], tries: int = 6) -> Colour:
    """A colour of cloth, of `tries` the first that is plainly another than all `others`, or the farthest."""
    candidates = [cloth(rng) for _ in range(tries)]
    gaps = [min(distance(colour, other) for other in others) for colour in candidates]
    for colour, gap in zip(candidates, gaps, strict=True):
        if gap > _PLAIN:
            return colour
    return candidates[int(np.argmax(gaps))]


def distance(one: Colour, other: Colour) -> float:
    """Euclidean distance of two colours."""
    return float(np.linalg.norm(np.subtract(one, other)))


def shaded(colour: Colour, factor: float) -> Colour:
    """The colour darker (factor below 1) or lighter, by as much towards black or white."""
    target, share = (0.0, 1 - factor) if factor < 1 else (255.0, factor - 1)
    red, green, blue = (value + (target - value) * share for value in colour)
    return red, green, blue


def _between(
    rng: np.random.Generator, table: tuple[tuple[int, int, int], ...], spread: float, mixed: bool = True
) -> Colour:
    first, second = rng.integers(len(table), size=2)
    if mixed:  # neighbours only, or a mix would lose its hue
        second = min(first + 1, len(table) - 1)
    share = rng.random() if mixed else 0.0
    colour: npt.NDArray[np.float64] = np.asarray(table[first]) * (1 - share)
    colour = np.clip(colour + np.asarray(table[second]) * share + rng.normal(0, spread, 3), 4, 252)
    return float(colour[0]), float(colour[1]), float(colour[2])
