"""Seeded noise from numpy's Philox: the same on every machine.

The 64-bit seed is the low half of Philox's key. The high half says what the noise is for, so that the noise of the
picture does not depend on the clip's length.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..settings import Noise

_LATENTS, _PICTURE = 0, 1


def latent_noise(
    seed: int, frames: int, segment: int, latent_size: tuple[int, int], mode: Noise = "repeat"
) -> NDArray[np.float32]:
    """Unit noise [frames,4,h,w]; `repeat` repeats the first `segment` frames along time."""
    count = min(frames, segment) if mode == "repeat" else frames
    noise = _normal(seed, _LATENTS, (count, 4, *latent_size))
    return spread(noise, frames)


def picture_noise(seed: int, height: int, width: int) -> NDArray[np.float32]:
    """Unit noise [3,H,W] for the reference picture."""
    return _normal(seed, _PICTURE, (3, height, width))


def spread(noise: NDArray[np.float32], frames: int) -> NDArray[np.float32]:
    """Repeat noise [n,...] along its first axis up to `frames`."""
    return noise[np.arange(frames) % len(noise)]


def _normal(seed: int, purpose: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    generator = np.random.Generator(np.random.Philox(key=seed | purpose << 64))
    return generator.standard_normal(shape, dtype=np.float32)
