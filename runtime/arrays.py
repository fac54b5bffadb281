"""What callers give as arrays, checked; and the overlap against the bundle's segment."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .errors import MotionError, SettingsError
from .settings import SIZE_MULTIPLE, Settings

Float = NDArray[np.float32]


def check_overlap(settings: Settings, segment: int) -> None:
    """The overlap against a segment that the bundle, not the caller, chose."""
    if settings.overlap >= segment:
        raise SettingsError(
            f"overlap {settings.overlap} is not smaller than the bundle's segment {segment}.",
            remedy="Choose a smaller overlap.",
            field="settings.overlap",
        )


def check_pose_frames(pose_frames: NDArray[np.uint8], settings: Settings) -> NDArray[np.uint8]:
    """uint8 [F,H,W,3] of a size that the networks take, or a `MotionError`."""
    poses = pose_frames
    if (
        not isinstance(poses, np.ndarray)
        or poses.dtype != np.uint8
        or poses.ndim != 4
        or poses.shape[-1] != 3
        or not poses.size
    ):
        raise MotionError(
            f"pose_frames are {_described(poses)}.",
            remedy="Give uint8 [F,H,W,3], the reference's own pose first.",
            field="pose_frames",
        )
    size = (poses.shape[2], poses.shape[1])
    if size[0] % SIZE_MULTIPLE or size[1] % SIZE_MULTIPLE or settings.size not in (None, size):
        raise MotionError(
            f"pose_frames are {size[0]}x{size[1]}.",
            remedy=f"Both sides must be multiples of {SIZE_MULTIPLE}, and settings.size the same or None.",
            field="pose_frames",
        )
    return poses


def check_latents(latents: Float) -> Float:
    """Finite float32 [F,4,h,w], or a `SettingsError`."""
    return check_noise(latents, (None, 4, None, None), "latents")


def check_noise(noise: Float, shape: tuple[int | None, ...], name: str) -> Float:
    """Finite float32 of a shape (None: any size of at least 1), or a `SettingsError`."""
    try:
        given = np.asarray(noise, np.float32)
    except (TypeError, ValueError):  # text, ragged lists
        given = np.empty(0, np.float32)
    fits = given.ndim == len(shape) and all(
        size == (wanted or max(size, 1)) for size, wanted in zip(given.shape, shape, strict=True)
    )
    if not fits or not np.isfinite(given).all():
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise SettingsError(
            f"{name} is {_described(noise)}{', and not finite' if fits else ''}.",
            remedy=f"Give finite float32 [{wanted}].",
            field=name,
        )
    return given


def _described(value: object) -> str:
    return (
        f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
    )
