"""Sigmas, the numbers that one Euler step of a v-predicting network needs, and what each step runs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..settings import REFERENCE, Settings

RHO = 7.0
ALIGNED = (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002)
"""Levels of Stable Video Diffusion's optimised schedule of 10 steps (Sabour et al. 2024, table 3)."""
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
"""Multiples of it, modulo 1, spread more evenly over [0, 1) than those of any other number, however many."""
VariantKey = tuple[float, bool]
"""(shift, guided) of a step: steps with the same key run the same rows."""
PLAIN: VariantKey = (0.0, True)
"""The key of every step where no option makes others."""


def karras_sigmas(steps: int, sigma_min: float, sigma_max: float) -> NDArray[np.float32]:
    """Sigmas [steps+1], falling from sigma_max to sigma_min and then 0 (Karras et al. 2022, eq. 5)."""
    ramp = np.linspace(0.0, 1.0, steps)
    low, high = sigma_min ** (1 / RHO), sigma_max ** (1 / RHO)
    return np.append((high + ramp * (low - high)) ** RHO, 0.0).astype(np.float32)


def aligned_sigmas(steps: int, sigma_min: float, sigma_max: float) -> NDArray[np.float32]:
    """Sigmas [steps+1] from sigma_max down to 0, spaced as in Align Your Steps (Sabour et al. 2024, table 3).

    The published levels are knots of a curve, straight in ln sigma between them. The part of the curve from
    sigma_max to sigma_min is cut into `steps` equal pieces, and the last level, which would be sigma_min,
    becomes 0, where every schedule here ends. With SVD's own range and 10 steps these are the published
    levels. A narrower range keeps the others where they were optimised, since noise of one sigma hides the
    same details whatever the range is; a wider one stretches the outermost piece.
    """
    levels = np.log(ALIGNED)
    top, bottom = math.log(sigma_max), math.log(sigma_min)
    levels[0], levels[-1] = max(levels[0], top), min(levels[-1], bottom)
    knots = np.arange(len(levels))
    first, last = np.interp([-top, -bottom], -levels, knots)
    sigmas = np.exp(np.interp(np.linspace(first, last, steps + 1), knots, levels))
    sigmas[0], sigmas[-1] = sigma_max, 0.0
    return sigmas.astype(np.float32)


@dataclass(frozen=True, slots=True)
class Step:
    """One Euler step from sigma to the next.

    With x0 = -v s/sqrt(s²+1) + x/(s²+1), d = (x-x0)/s and x <- x + d (s_next-s), the step is
    x <- keep·x + push·v.
    """

    timestep: float
    """0.25 ln sigma: what the network is told."""
    scale: float
    """1/sqrt(sigma²+1): latents times this are the network's input."""
    keep: float
    push: float
    sigma: float
    next: float
    shift: float = 0.0
    """How far the segments are moved, in overlaps; 0 <= shift < 1. Other than 0 only in the `shifted` layout."""
    guided: bool = True
    """Whether guidance is applied; otherwise only conditional rows run."""
    full: bool = True
    """Whether the full U-Net runs; otherwise only the shallow one, on cached features."""
    posed: bool = True
    """Whether conditional rows take the pose features; otherwise all rows have none."""

    @property
    def variant(self) -> VariantKey:
        """Which of a plan's variants this step runs."""
        return self.shift, self.guided


def euler_steps(sigmas: NDArray[np.float32]) -> list[Step]:
    """The steps of a schedule [steps+1]."""
    steps = []
    for sigma, following in zip(map(float, sigmas[:-1]), map(float, sigmas[1:]), strict=True):
        size, power = following - sigma, sigma * sigma + 1.0
        steps.append(
            Step(
                timestep=0.25 * math.log(sigma),
                scale=1.0 / math.sqrt(power),
                keep=1.0 + size * sigma / power,
                push=size / math.sqrt(power),
                sigma=sigma,
                next=following,
            )
        )
    return steps


def initial_scale(sigma: float) -> float:
    """What noise of unit variance is multiplied by to start at the largest sigma: sqrt(sigma²+1)."""
    return math.sqrt(sigma**2 + 1.0)


def sigmas_of(settings: Settings) -> NDArray[np.float32]:
    """The schedule [steps+1] that settings ask for; the reference's range of sigmas where they have none."""
    low, high = settings.sigma_min or REFERENCE["sigma_min"], settings.sigma_max or REFERENCE["sigma_max"]
    make = karras_sigmas if settings.schedule == "karras" else aligned_sigmas
    return make(settings.steps, low, high)


def steps_of(settings: Settings) -> list[Step]:
    """The steps that settings ask for, and what each runs.

    A step is guided if its sigma is in (low, high] of `guidance_interval` (Kynkäänniemi et al. 2024: guidance
    does harm at high noise and nothing at low noise). In the `shifted` layout step k moves the segments by
    frac(k (sqrt(5) - 1) / 2) overlaps, so that borders of neighbouring steps lie far apart. Step k of S takes the
    pose if round(S pose_start) <= k < round(S pose_end); halves are rounded to the even number. The full U-Net
    runs in the first step, in every step whose variant or pose differs from the step before (there are no cached
    features of its rows, or they hold what it must not), and `reuse_interval` steps after it last ran (DeepCache,
    Ma et al. 2024: uniform 1:N).
    """
    low, high = settings.guidance_interval or (-math.inf, math.inf)
    moved = GOLDEN_RATIO if settings.layout == "shifted" else 0.0
    posed = range(round(settings.steps * settings.pose_start), round(settings.steps * settings.pose_end))
    steps: list[Step] = []
    age = 0
    for k, step in enumerate(euler_steps(sigmas_of(settings))):
        step = replace(step, shift=k * moved % 1.0, guided=low < step.sigma <= high, posed=k in posed)
        like_before = steps and (steps[-1].variant, steps[-1].posed) == (step.variant, step.posed)
        age = (age + 1) % settings.reuse_interval if like_before else 0
        steps.append(replace(step, full=age == 0))
    return steps
