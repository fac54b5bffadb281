"""The shapes that plans are compiled for, from what a bundle is for."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

from ..cuda.batch_sizes import too_wide
from ..engines import EngineSpec, Manifest, Profile
from ..errors import SettingsError
from ..networks import POSE_CHUNK
from ..settings import Settings
from .options import Options


def make_profiles(network: str, spec: EngineSpec, options: Options) -> tuple[Profile, ...]:
    """One profile for each size; of the U-Net, for each size, length of segment and usable number of rows.

    The U-Net's shapes are fixed in each profile: its kernels are the fastest that way, and TensorRT-RTX 1.7
    does not compile its token matrices with free sizes. What comes in chunks (PoseNet, VAE decoder) takes any
    number of frames up to the chunk.
    """
    if network == "image_encoder":
        return (Profile({"batch": (1, 1, 1)}),)
    if network.startswith("unet"):
        frames = sorted({options.model_defaults["segment"], *options.plan.frames}, reverse=True)
        return tuple(
            Profile({"rows": _just(rows), "frames": _just(length), **_cells(size)})
            for size, length in product(options.sizes, frames)
            for rows in usable_rows(spec, options.rows, length, size)
        )
    chunk = options.model_defaults.get("decode_chunk", Settings().decode_chunk)
    by_network = {
        "pose_net": {"frames": (1, POSE_CHUNK, POSE_CHUNK)},
        "vae_encoder": {"batch": (1, 1, 1)},
        "vae_decoder": {"frames": (1, chunk, chunk)},
    }
    free = {dim for tensor in spec.inputs for dim in tensor.shape if isinstance(dim, str)}
    return tuple(
        Profile(
            {
                name: dims
                for name, dims in {**by_network[network], **_cells(size), **_pixels(size)}.items()
                if name in free
            }
        )
        for size in options.sizes
    )


def usable_rows(spec: EngineSpec, rows: Iterable[int], frames: int, size: tuple[int, int]) -> tuple[int, ...]:
    """Those of `rows`, ascending, whose elements the runtime's kernels count; raises `SettingsError` if none."""
    width = next(tensor.shape[2] for tensor in spec.inputs if tensor.name == "pose")
    assert isinstance(width, int)
    cells = size[0] // 8 * (size[1] // 8)
    usable = tuple(count for count in sorted(set(rows)) if not too_wide(width, count, frames, cells))
    if not usable:
        raise SettingsError(
            f"{min(rows)} rows of {frames} frames of {size[0]}x{size[1]} have a tensor of over 2^31 elements.",
            remedy="Build for --batch 1, a shorter --segment or a smaller --size.",
            field="batch",
        )
    return usable


def left_out(manifest: Manifest) -> list[str]:
    """What a bundle of plans was asked for and not compiled for, since the runtime would never use it."""
    unet = manifest.networks["unet"]
    if unet.plan is None:
        return []
    lines = []
    made = {tuple(high for _, _, high in profile.dims.values()) for profile in unet.plan.profiles}
    for frames, high, wide in dict.fromkeys(shape[1:] for shape in made):
        rows = [count for count in manifest.rows if (count, frames, high, wide) not in made]
        if rows:
            lines.append(
                f"not compiled for {' or '.join(map(str, rows))} rows of {frames} frames of {wide * 8}x{high * 8}: "
                "a tensor would have over 2^31 elements"
            )
    return sorted(lines)


def _just(size: int) -> tuple[int, int, int]:
    return size, size, size


def _cells(size: tuple[int, int]) -> dict[str, tuple[int, int, int]]:
    return {"latent_height": _just(size[1] // 8), "latent_width": _just(size[0] // 8)}


def _pixels(size: tuple[int, int]) -> dict[str, tuple[int, int, int]]:
    return {"height": _just(size[1]), "width": _just(size[0])}
