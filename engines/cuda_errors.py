"""What goes wrong on a GPU as errors of this package, by what CUDA, PyTorch and TensorRT say of it."""

from __future__ import annotations

from typing import Any

from ..errors import DeviceLost, EngineError, MimicMotionError, OutOfMemory

SMALLER = "Use fewer pixels, frames or rows, or end other programs that use the GPU."
ANEW = "Start this process again; a server does so by itself. If it happens again, report the text above."
NO_ROOM = ("out_of_memory", "out of memory", "outofmemory", "cublas_status_alloc_failed")
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


def kind_of(said: str) -> type[EngineError]:
    """The class of an error by its text, which must not hold a remedy of ours."""
    text = said.lower()
    if any(words in text for words in LOST):
        return DeviceLost
    return OutOfMemory if any(words in text for words in NO_ROOM) else EngineError


def explained(error: Exception | str, what: str, remedy: str = "") -> EngineError:
    """`what` went wrong, with the reason; `remedy` is for errors that are neither of memory nor of a lost GPU."""
    said = error.message if isinstance(error, MimicMotionError) else str(error) or type(error).__name__
    kind = type(error) if isinstance(error, EngineError) else kind_of(said)
    return kind(f"{what}: {said}", remedy={DeviceLost: ANEW, OutOfMemory: SMALLER}.get(kind, remedy))


def answer(told: tuple[Any, ...], what: str) -> Any:
    """What a call of the driver gave besides its error; raises `EngineError` if there was one."""
    error, *values = told
    if error:
        raise explained(error.name, what)
    return values[0] if values else None
