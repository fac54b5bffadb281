"""The arithmetic around the engines, on numpy arrays: what runs on the CPU and what the GPU's kernels must equal."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]


def gather(latents: Float, frames: NDArray[np.intp], scale: float, out: NDArray[Any]) -> None:
    """out [N,4,h,w] <- latents [F,4,h,w] of `frames`, times `scale`, cast to out's dtype."""
    np.multiply(latents[0], np.float32(scale), out=out[0], casting="same_kind")
    first = frames[1] if len(frames) > 1 else 0
    window = latents[first : first + len(frames) - 1]
    np.multiply(window, np.float32(scale), out=out[1:], casting="same_kind")


def blend(
    prediction: NDArray[Any], share: Float, frames: NDArray[np.intp], latents: Float, scratch: Float
) -> None:
    """latents [F,4,h,w] of `frames` += share [N] * prediction [N,4,h,w]; scratch [N,4,h,w]."""
    np.multiply(prediction, share[:, None, None, None], out=scratch)
    latents[0] += scratch[0]
    first = frames[1] if len(frames) > 1 else 0
    latents[first : first + len(frames) - 1] += scratch[1:]


def to_pictures(planes: NDArray[Any], out: NDArray[np.uint8]) -> None:
    """out uint8 [n,H,W,3] <- planes [n,3,H,W] in [-1, 1], scaled to 255 and truncated, in float32.

    Planes of float32 are overwritten.
    """
    planes = planes.astype(np.float32, copy=False)
    planes *= 0.5
    planes += 0.5
    np.clip(planes, 0.0, 1.0, out=planes)
    planes *= 255.0
    out[...] = planes.transpose(0, 2, 3, 1)
