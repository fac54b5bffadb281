"""Memory of a GPU (arrays, scratch memory, pinned memory to copy through), and CUDA's errors as errors of ours."""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import DeviceLost, EngineError, MimicMotionError, OutOfMemory
from .spec import Array

SMALLEST_PIECE = 4096
KEPT_BYTES = 64 * 2**20
"""Pinned bytes that `Staging` keeps idle at most: to pin and to release memory is slow, and a release waits for the
GPU."""
SMALLER = "Use fewer pixels, frames or rows, or end other programs that use the GPU."
RESTART = "Start this process again; a server does so by itself. If it happens again, report the text above."
NO_MEMORY = ("out_of_memory", "out of memory", "outofmemory", "cublas_status_alloc_failed")
LOST = (
    "cuda_error_assert", "device-side assert triggered",
    "cuda_error_contained",
    "cuda_error_context_is_destroyed", "context is destroyed",
    "cuda_error_device_unavailable", "busy or unavailable",
    "cuda_error_ecc_uncorrectable", "uncorrectable ecc error",
    "cuda_error_external_device",
    "cuda_error_hardware_stack_error", "hardware stack error",
    "cuda_error_illegal_address", "illegal memory access",
    "cuda_error_illegal_instruction", "illegal instruction",
    "cuda_error_invalid_address_space", "operation not supported on global/shared address space",
    "cuda_error_invalid_pc", "invalid program counter",
    "cuda_error_launch_failed", "unspecified launch failure",
    "cuda_error_launch_timeout", "the launch timed out and was terminated",
    "cuda_error_misaligned_address", "misaligned address",
    "cuda_error_nvlink_uncorrectable", "uncorrectable nvlink error",
    "cuda_error_tensor_memory_leak",
)  # fmt: skip
"""After these every call of the process fails: the driver's names, and texts that PyTorch and TensorRT pass on."""


def error_class(text: str) -> type[EngineError]:
    """The class of an error by CUDA's, PyTorch's or TensorRT's text, which must not hold a remedy of ours."""
    text = text.lower()
    if any(words in text for words in LOST):
        return DeviceLost
    return OutOfMemory if any(words in text for words in NO_MEMORY) else EngineError


def translate(error: Exception | str, what: str, remedy: str = "") -> EngineError:
    """`what` went wrong, with the reason; `remedy` is for errors that are neither of memory nor of a lost GPU."""
    reason = error.message if isinstance(error, MimicMotionError) else str(error) or type(error).__name__
    kind = type(error) if isinstance(error, EngineError) else error_class(reason)
    return kind(f"{what}: {reason}", remedy={DeviceLost: RESTART, OutOfMemory: SMALLER}.get(kind, remedy))


def check_result(result: tuple[Any, ...], what: str) -> Any:
    """What a call of the driver returns besides its error; raises `EngineError` if there was one."""
    error, *values = result
    if error:
        raise translate(error.name, what)
    return values[0] if values else None


@contextmanager
def error_context(what: str) -> Iterator[None]:
    """Raise an error of CUDA's as one of this package that says `what` went wrong."""
    try:
        yield
    except MimicMotionError:
        raise
    except Exception as error:
        raise translate(error, what, RESTART) from error


@dataclass(frozen=True)
class Mark:
    """A place in the work of a stream."""

    event: Any

    @property
    def done(self) -> bool:
        """Whether the GPU has reached it; raises `EngineError` if the work before failed."""
        with error_context("the GPU failed"):
            return bool(self.event.is_done)

    def wait(self) -> None:
        """Until the GPU has reached it; raises `EngineError` if the work before failed."""
        with error_context("the GPU failed"):
            self.event.sync()


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
class Flags:
    """What `EngineSpec.check` asks of any array; named as numpy names it."""

    writeable: bool
    c_contiguous: bool = True


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
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def flags(self) -> Flags:
        return Flags(self.writeable)


class Arena:
    """Scratch memory that all engines of a stream share in turns: as large as the largest need, not the sum.

    Whoever asks for more than there is makes it move. So an address holds for one call, made under `Gpu.lock`;
    whoever needs it for longer, as a captured graph does, keeps the `Memory`: memory that the arena has left lives
    on as long as that is kept.
    """

    def __init__(self, allocate: Callable[[int], Memory]) -> None:
        self._allocate = allocate
        self._memory: Memory | None = None
        self._engines = 0

    def join(self) -> None:
        """One engine more."""
        self._engines += 1

    def leave(self) -> None:
        """One engine less; the last one frees the memory."""
        self._engines -= 1
        if not self._engines:
            self._memory = None

    def reserve(self, size: int) -> Memory:
        """At least `size` bytes, the same as before if these were enough."""
        if self._memory is None or self._memory.size < size:
            self._memory = None  # the smaller one goes first: both together may not fit
            self._memory = self._allocate(max(size, 256))
        return self._memory


class Staging:
    """Pieces of pinned memory that copies pass through, used again once the copies are done.

    `pin(size)` makes a piece. May be used by several threads.
    """

    def __init__(self, pin: Callable[[int], Memory], kept: int = KEPT_BYTES) -> None:
        self._pin, self._kept = pin, kept
        self._returned: list[tuple[Memory, Mark | None]] = []
        self._lock = threading.Lock()

    def take(self, size: int) -> Memory:
        """A piece of at least `size` bytes that no copy uses."""
        wanted = max(SMALLEST_PIECE, 1 << (size - 1).bit_length())
        with self._lock:
            for index, (memory, mark) in enumerate(self._returned):
                if memory.size == wanted and (mark is None or mark.done):
                    del self._returned[index]
                    return memory
        return self._pin(wanted)

    def give_back(self, memory: Memory, mark: Mark | None) -> None:
        """Return a piece, to be used again after `mark`; beyond `kept` bytes idle pieces are freed."""
        with self._lock:
            self._returned.append((memory, mark))
            total = sum(piece.size for piece, _ in self._returned)
            for piece, after in list(self._returned):
                if total > self._kept and (after is None or after.done):
                    total -= piece.size
                    self._returned.remove((piece, after))

    def close(self) -> None:
        """Free all pieces; the GPU must be done with them."""
        with self._lock:
            self._returned.clear()
