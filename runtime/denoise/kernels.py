"""The arithmetic around the engines, on numpy arrays: what runs on the CPU and what the GPU's kernels must equal."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines import ImageStatistics
from ..errors import EngineError

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


def check_finite(values: NDArray[Any], network: str, when: str) -> None:
    """Raise `EngineError` if a network's answer has a value that is NaN or infinite."""
    if not np.isfinite(values).all():
        raise not_finite(network, when, values.dtype)


def not_finite(network: str, when: str, dtype: np.dtype[Any]) -> EngineError:
    """The error of a network whose answer, of this dtype, is not finite; `when` is for instance "in step 3 of 25"."""
    built = network.partition("_")[0] if network.startswith("unet") else network
    return EngineError(
        f"the network {network} answered with NaN or infinite numbers {when}.",
        remedy=f"Keep it in float32: build the bundle again with --keep-fp32 {built}."
        if dtype == np.float16
        else "Check the weights that the bundle was built from: it computes in float32 already.",
    )


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


def to_signed(picture: NDArray[np.uint8]) -> Float:
    """uint8 [...,H,W,3] -> float32 [...,3,H,W] in [-1, 1]."""
    planes = np.moveaxis(picture, -1, -3).astype(np.float32, order="C")
    planes /= np.float32(127.5)
    planes -= np.float32(1.0)
    return planes


def clip_pixels(image: Float, statistics: ImageStatistics) -> Float:
    """The input of CLIP [1,3,S,S] from an image [3,H,W] in [-1, 1].

    Blurred against aliasing, resized bicubically (a = -0.75, corners aligned), then normalised
    (Stable Video Diffusion's image conditioning).
    """
    _, height, width = image.shape
    down, across = (_resize_matrix(size, statistics.size) for size in (height, width))
    small = (down @ image) @ across.T
    small = small * np.float32(0.5) + np.float32(0.5)
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (statistics.mean, statistics.std))
    return np.ascontiguousarray(((small - mean) / std)[None], dtype=np.float32)


@lru_cache(maxsize=16)
def _resize_matrix(size: int, target: int) -> Float:
    """[target,size]: Gaussian blur with reflected borders, then bicubic resampling, along one axis."""
    return (_bicubic(size, target) @ _blur(size, target)).astype(np.float32)


def _blur(size: int, target: int) -> NDArray[np.float64]:
    sigma = max((size / target - 1.0) / 2.0, 0.001)
    taps = int(max(4.0 * sigma, 3))
    taps += 1 - taps % 2
    offsets = np.arange(taps) - taps // 2
    kernel = np.exp(-(offsets**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    columns = np.arange(size)[:, None] + offsets
    columns = np.abs(columns)  # reflected without repeating the border
    columns = np.where(columns >= size, 2 * (size - 1) - columns, columns)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size)[:, None], columns), kernel)
    return matrix


def _bicubic(size: int, target: int, a: float = -0.75) -> NDArray[np.float64]:
    position = np.arange(target) * ((size - 1) / (target - 1))
    base = np.floor(position).astype(int)
    matrix = np.zeros((target, size))
    for tap in range(-1, 3):
        distance = np.abs(position - (base + tap))
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = a * (((distance - 5) * distance + 8) * distance - 4)
        column = np.clip(base + tap, 0, size - 1)
        np.add.at(matrix, (np.arange(target), column), np.where(distance <= 1, near, far))
    return matrix
