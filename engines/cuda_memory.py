"""Memory on a GPU, arrays in it, and pinned memory of the host to copy through."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np

from ..errors import EngineError
from .spec import Array


@dataclass(frozen=True)
class Memory:
    """Bytes on the GPU, or pinned ones of the host; they are given back when nobody refers to `owner` any more."""

    address: int
    size: int
    owner: Any = field(repr=False, compare=False)

    def as_array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Pinned memory as a numpy array; it must not outlive this object."""
        raw: Any = (ctypes.c_byte * self.size).from_address(self.address)
        array: Array = np.frombuffer(raw, dtype, math.prod(shape)).reshape(shape)
        return array


@dataclass(frozen=True)
class DeviceArray:
    """An array on the GPU, row by row without gaps: an address with a shape, and what keeps it alive."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    writeable: bool = True
    owner: Any = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, array: Any) -> DeviceArray:
        """Any library's array on the GPU (CuPy, PyTorch); raises `EngineError` if it has gaps."""
        if isinstance(array, cls):
            return array
        face = array.__cuda_array_interface__
        shape, dtype = tuple(map(int, face["shape"])), np.dtype(face["typestr"])
        strides, step = face.get("strides"), dtype.itemsize
        for size, stride in zip(reversed(shape), reversed(strides or ()), strict=False):
            if size > 1 and stride != step:
                raise EngineError(
                    f"an array {list(shape)} on the GPU has gaps.", remedy="Bind a contiguous one."
                )
            step *= size
        address, read_only = face["data"]
        return cls(int(address), shape, dtype, not read_only, array)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        data = (self.address, not self.writeable)
        return {"shape": self.shape, "typestr": self.dtype.str, "data": data, "version": 3}

    @property
    def ndim(self) -> int:
        """Dimensions."""
        return len(self.shape)

    @property
    def flags(self) -> SimpleNamespace:
        """What `EngineSpec.check` asks of any array."""
        return SimpleNamespace(c_contiguous=True, writeable=self.writeable)


class Arena:
    """Scratch memory in which all engines of a stream take turns: as large as the largest need, not the sum.

    Its rule: whoever asks for more than there is makes it move. So an address holds for one call, made in one's
    turn (`Gpu.lock`), and whoever needs it for longer, as a captured graph does, keeps the `Memory`: what has
    moved away lives on as long as that is kept.
    """

    def __init__(self, allocate: Callable[[int], Memory]) -> None:
        self._allocate = allocate
        self._memory: Memory | None = None
        self._engines = 0

    def join(self) -> None:
        """One engine more."""
        self._engines += 1

    def leave(self) -> None:
        """One engine less; without any there is no memory."""
        self._engines -= 1
        if not self._engines:
            self._memory = None

    def reserve(self, size: int) -> Memory:
        """At least `size` bytes, the same as before if these were enough."""
        if self._memory is None or self._memory.size < size:
            self._memory = None  # the smaller one goes first: both together may not fit
            self._memory = self._allocate(max(size, 256))
        return self._memory


class Reclaimable(Protocol):
    """A holder of memory that may be had back."""

    def free_unused(self) -> object:
        """Let go of what nobody uses now."""
