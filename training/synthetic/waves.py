"""Smooth random motion: sums of a few sines, known at any time, so that a frame far from a clip is its kin."""

from __future__ import annotations

import numpy as np

from .rotation import Array

_SINES = 4


class Waves:
    """A source of smooth signals at the given times [F], in seconds.

    Each signal mixes sines of the beat and of random frequencies; `tempo` in Hz is the beat, `energy` in
    (0, 1] how much of its range a signal fills.
    """

    def __init__(self, rng: np.random.Generator, times: Array, tempo: float, energy: float) -> None:
        self._rng, self._times, self._tempo, self._energy = rng, times, tempo, energy

    def __len__(self) -> int:
        return len(self._times)

    def __call__(self, low: float, high: float, speed: float = 1.0) -> Array:
        """One signal [F] between `low` and `high`; `speed` is a factor of the tempo."""
        rng = self._rng
        rates = self._tempo * speed * np.append(rng.choice([0.5, 1.0]), rng.uniform(0.2, 1.3, _SINES - 1))
        weights = rng.uniform(0.3, 1.0, _SINES)
        phases = rng.uniform(0, 2 * np.pi, _SINES)
        sines = np.sin(2 * np.pi * self._times[:, None] * rates + phases)
        wave: Array = np.tanh(1.3 * (sines @ weights) / np.linalg.norm(weights))
        reach = self._energy * (high - low) / 2
        middle = rng.uniform(low + reach, high - reach)
        return middle + reach * wave

    def beat(self, speed: float = 1.0) -> Array:
        """A plain sine [F] on the beat, of random phase."""
        phase = self._rng.uniform(0, 2 * np.pi)
        sine: Array = np.sin(2 * np.pi * self._tempo * speed * self._times + phase)
        return sine
