"""Sigmas, and the numbers that one Euler step of a v-predicting network needs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RHO = 7.0


def karras_sigmas(steps: int, sigma_min: float, sigma_max: float) -> NDArray[np.float32]:
    """Sigmas [steps+1], falling from sigma_max to sigma_min and then 0 (Karras et al. 2022, eq. 5)."""
    ramp = np.linspace(0.0, 1.0, steps)
    low, high = sigma_min ** (1 / RHO), sigma_max ** (1 / RHO)
    return np.append((high + ramp * (low - high)) ** RHO, 0.0).astype(np.float32)


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


def initial_scale(sigmas: NDArray[np.float32]) -> float:
    """What noise of unit variance is multiplied by to start: sqrt(sigma_max²+1)."""
    return math.sqrt(float(sigmas[0]) ** 2 + 1.0)
