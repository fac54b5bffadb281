"""Seeded noise from numpy's Philox: the same on every machine.

The 64-bit seed is the low half of Philox's key. The high half says what the noise is for, so that the noise of the
picture does not depend on the clip's length.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SettingsError
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


def check_array(values: Any, shape: tuple[int | None, ...], name: str) -> NDArray[np.float32]:
    """Finite float32 of a shape (None: any size of at least 1) that a caller gave; raises `SettingsError`."""
    try:
        given = np.asarray(values, np.float32)
    except (TypeError, ValueError):  # text, ragged lists
        given = np.empty(0, np.float32)
    fits = given.ndim == len(shape) and all(
        size == (wanted or max(size, 1)) for size, wanted in zip(given.shape, shape, strict=True)
    )
    if not fits or not np.isfinite(given).all():
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise SettingsError(
            f"{name} is {described(values)}{', and not finite' if fits else ''}.",
            remedy=f"Give finite float32 [{wanted}].",
            field=name,
        )
    return given


def described(value: object) -> str:
    """What a caller gave, for an error: `uint8[3, 4]`, `a list`."""
    array = isinstance(value, np.ndarray)
    return f"{value.dtype}{list(value.shape)}" if array else f"a {type(value).__name__}"  # type: ignore[attr-defined]
