"""What a TensorRT plan was compiled for: the machine, and the shapes that it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import EngineError
from .spec import EngineSpec

Range = tuple[int, int, int]
"""Smallest, usual and largest size of a free dimension."""
FLAVOURS = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Backend name -> the library's module."""


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

    def shape(self, dims: tuple[int | str, ...], which: int) -> tuple[int, ...]:
        """A tensor's shape at its smallest (0), usual (1) or largest (2)."""
        return tuple(self.dims[dim][which] if isinstance(dim, str) else dim for dim in dims)

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
    """Whether weights can be put in without a rebuild."""
    streamable: bool = False
    """Whether weights may stay in the host's memory."""

    def choose(self, sizes: Mapping[str, int]) -> int:
        """The number of the first profile that takes these sizes; raises `EngineError` if none does."""
        for index, profile in enumerate(self.profiles):
            if profile.fits(sizes):
                return index
        wanted = ", ".join(f"{name} {size}" for name, size in sizes.items())
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
