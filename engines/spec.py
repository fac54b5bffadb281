"""What an engine is to its caller: named tensors, some of whose sizes are free, and what a plan was compiled for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError

Array = NDArray[Any]
Dim = int | str
"""A fixed size, or the name of a free one: equal names within one call mean equal sizes."""

Range = tuple[int, int, int]
"""Smallest, usual and largest size of a free dimension."""

FLAVOURS = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Backend name -> the library's module."""

NETWORKS = ("unet", "pose_net", "vae_encoder", "vae_decoder", "image_encoder")
FEATURE_CACHE_NETWORKS = ("unet_caching", "unet_shallow")
"""Two networks more of a bundle built with --deep-cache: the full U-Net that also gives its cached features, and the
shallow U-Net (its first level alone), which takes these features from an earlier step."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor; `dtype` is numpy's name for it. Raises `ValueError` for another name, and a size below 1."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    def __post_init__(self) -> None:
        if any(not isinstance(dim, str) and dim < 1 for dim in self.shape):
            raise ValueError(f"tensor {self.name} has the shape {list(self.shape)}")
        if self.dtype not in np.sctypeDict or np.dtype(self.dtype).name != self.dtype:
            raise ValueError(f"{self.dtype!r} is not the name of a dtype")

    def sized(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Its shape where the free dimensions have these sizes."""
        return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in self.shape)

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Inputs and outputs of one network."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def dtypes(self) -> dict[str, np.dtype[Any]]:
        """The dtype of each tensor."""
        return {spec.name: np.dtype(spec.dtype) for spec in (*self.inputs, *self.outputs)}

    def check(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> dict[str, int]:
        """The sizes of the free dimensions; raises `EngineError` if an array is not what the spec says."""
        sizes: dict[str, int] = {}
        for specs, arrays in ((self.inputs, inputs), (self.outputs, outputs)):
            names = {spec.name for spec in specs}
            if names != set(arrays):
                raise EngineError(f"expected tensors {sorted(names)}, got {sorted(arrays)}.")
            for spec in specs:
                _check_array(spec, arrays[spec.name], sizes)
        for name, array in outputs.items():
            if not array.flags.writeable:
                raise EngineError(f"{name} may not be written to.")
        return sizes


def _check_array(spec: TensorSpec, array: Array, sizes: dict[str, int]) -> None:
    if array.dtype != np.dtype(spec.dtype) or array.ndim != len(spec.shape):
        raise EngineError(f"expected {spec}, got {array.dtype}{list(array.shape)}.")
    if not array.flags.c_contiguous:
        raise EngineError(f"{spec.name} is not contiguous.")
    for dim, size in zip(spec.shape, array.shape, strict=True):
        if size != (sizes.setdefault(dim, size) if isinstance(dim, str) else dim):
            raise EngineError(f"expected {spec} with {sizes}, got {list(array.shape)}.")


def call_sizes(frames: int, latent_size: tuple[int, int], *, rows: int = 1, batch: int = 1) -> dict[str, int]:
    """The sizes of all free dimensions of networks; `latent_size` is (height, width), 8x8 pixels a position."""
    height, width = latent_size
    latents = {"latent_height": height, "latent_width": width}
    return {
        "rows": rows,
        "frames": frames,
        "batch": batch,
        **latents,
        "height": 8 * height,
        "width": 8 * width,
    }


@dataclass(frozen=True, slots=True)
class Profile:
    """Sizes of the free dimensions that one set of kernels was compiled for; raises `ValueError` if they are none."""

    dims: Mapping[str, Range]

    def __post_init__(self) -> None:
        for low, usual, high in self.dims.values():
            if not 0 < low <= usual <= high:
                raise ValueError(f"{[low, usual, high]} is no range of sizes")

    def fits(self, sizes: Mapping[str, int]) -> bool:
        """Whether every size lies within its range."""
        return all(low <= sizes[name] <= high for name, (low, _, high) in self.dims.items() if name in sizes)

    def sizes(self, which: int) -> dict[str, int]:
        """The smallest (0), usual (1) or largest (2) sizes."""
        return {name: sizes[which] for name, sizes in self.dims.items()}

    def __str__(self) -> str:
        return ", ".join(
            f"{name} {low}" if low == high else f"{name} {low}-{high}"
            for name, (low, _, high) in self.dims.items()
        )


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """How an engine file was compiled."""

    library: str
    """`tensorrt 11.4.0.106`: the flavour and version that compiled it and must run it."""
    target: str
    """The GPU, or the compute capabilities (`SM89 SM120`), that it runs on."""
    profiles: tuple[Profile, ...]
    refittable: bool = False
    """Whether it takes other weights without a rebuild."""
    streamable: bool = False
    """Whether weights may stay in the host's memory."""

    def choose(self, sizes: Mapping[str, int]) -> int:
        """The number of the first profile that takes these sizes; raises `EngineError` if none does."""
        for index, profile in enumerate(self.profiles):
            if profile.fits(sizes):
                return index
        wanted = Profile({name: (size, size, size) for name, size in sizes.items()})
        raise EngineError(
            f"the plan was not compiled for {wanted}; it takes {'; or '.join(map(str, self.profiles))}.",
            remedy="Use a size, segment and batch of the bundle, or rebuild it with --size, --segment, --batch.",
        )

    def check_profiles(self, spec: EngineSpec) -> None:
        """Raise ValueError unless every profile gives a range for exactly the free dimensions of the inputs."""
        if not self.profiles:
            raise ValueError("a plan has no profile")
        free = {dim for tensor in spec.inputs for dim in tensor.shape if isinstance(dim, str)}
        for profile in self.profiles:
            if set(profile.dims) != free:
                raise ValueError(f"a profile has {sorted(profile.dims)}, the tensors {sorted(free)}")


WIDE = frozenset({"timestep", "time_ids"})
"""Tensors that are float32 in every precision: float16 is too coarse for micro-conditions and ln sigma."""


def network_specs(
    *,
    pose_channels: int,
    token_width: int,
    image_size: int,
    dtype: str = "float32",
    cached_channels: int | None = None,
) -> dict[str, EngineSpec]:
    """The five networks of a bundle: pictures of `height` x `width`, latents of an eighth of that.

    With `cached_channels`, the channels of the cached features, the two of `FEATURE_CACHE_NETWORKS` follow.
    """

    def spec(inputs: dict[str, tuple[Dim, ...]], output: str, shape: tuple[Dim, ...]) -> EngineSpec:
        dtypes = {name: "float32" if name in WIDE else dtype for name in inputs}
        tensors = (TensorSpec(name, dtypes[name], dims) for name, dims in inputs.items())
        return EngineSpec(tuple(tensors), (TensorSpec(output, dtype, shape),))

    segment: tuple[Dim, ...] = ("rows", "frames")
    latent: tuple[Dim, ...] = ("latent_height", "latent_width")
    five = {
        "unet": spec(
            {
                "latents": (*segment, 8, *latent),
                "timestep": ("rows",),
                "embedding": ("rows", 1, token_width),
                "time_ids": ("rows", 3),
                "pose": (*segment, pose_channels, *latent),
            },
            "prediction",
            (*segment, 4, *latent),
        ),
        "pose_net": spec(
            {"pose": ("frames", 3, "height", "width")}, "features", ("frames", pose_channels, *latent)
        ),
        "vae_encoder": spec({"image": ("batch", 3, "height", "width")}, "latents", ("batch", 4, *latent)),
        "vae_decoder": spec(
            {"latents": ("frames", 4, *latent)}, "frames_out", ("frames", 3, "height", "width")
        ),
        "image_encoder": spec(
            {"pixels": ("batch", 3, image_size, image_size)}, "embedding", ("batch", 1, token_width)
        ),
    }
    if cached_channels is None:
        return five
    unet, features = five["unet"], TensorSpec("cached_features", dtype, (*segment, cached_channels, *latent))
    return {
        **five,
        "unet_caching": EngineSpec(unet.inputs, (*unet.outputs, features)),
        "unet_shallow": EngineSpec((*unet.inputs, features), unet.outputs),
    }


def check_specs(specs: Mapping[str, EngineSpec]) -> None:
    """Raise ValueError unless these are the networks of a bundle, with the tensors that the runtime binds.

    Sizes that the model chooses (channels, widths) may be any.
    """
    wanted = network_specs(pose_channels=1, token_width=1, image_size=1, cached_channels=1)
    if set(specs) not in ({*NETWORKS}, {*NETWORKS, *FEATURE_CACHE_NETWORKS}):
        raise ValueError(f"networks are {sorted(specs)}, not {', '.join(NETWORKS)}")
    for name, spec in specs.items():
        pairs = {
            "inputs": (spec.inputs, wanted[name].inputs),
            "outputs": (spec.outputs, wanted[name].outputs),
        }
        for side, (found, expected) in pairs.items():
            if _free_sizes(found) != _free_sizes(expected):
                raise ValueError(f"{side} of {name} are {_free_sizes(found)}, not {_free_sizes(expected)}")


def _free_sizes(tensors: tuple[TensorSpec, ...]) -> dict[str, list[str]]:
    return {t.name: [dim if isinstance(dim, str) else "*" for dim in t.shape] for t in tensors}
