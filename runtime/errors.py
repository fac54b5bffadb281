"""Every error this package raises on purpose, on one page.

    MimicMotionError
    ├── InputError            the caller's input is at fault; the next call works
    │   ├── SettingsError     a setting is out of range, unknown, or does not fit the bundle
    │   ├── PictureError      the reference picture cannot be used
    │   ├── MotionError       the driving motion (video, keypoints, pose pictures) cannot be used
    │   └── LimitError        the input is sound but larger than this host allows
    ├── BundleError           a bundle is missing, damaged, or not for this machine
    ├── CheckpointError       a checkpoint's keys or shapes are not the network's
    ├── ExportError           an exported network does not agree with PyTorch, or could not be built
    ├── EngineError           an engine failed while running
    │   ├── OutOfMemory       the GPU has no room for it; a smaller job may run
    │   └── DeviceLost        the GPU failed and stays failed until this process has ended
    ├── KernelError           the CUDA kernels cannot be compiled or loaded on this machine
    ├── OutputError           the result cannot be written where it was asked to go
    ├── Cancelled             the job was cancelled by its owner
    └── ServiceError          the server cannot be reached, is busy, or failed

Each message says what is wrong with which input; `remedy` says what to do about it.
"""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """ "1 frame", "2 frames", for messages."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


class MimicMotionError(Exception):
    """Base of the tree. `str(error)` is the message followed by the remedy."""

    def __init__(self, message: str, *, remedy: str = "", field: str = "") -> None:
        super().__init__(message, remedy, field)
        self.message = message
        self.remedy = remedy
        self.field = field
        """The input at fault, as a path such as `settings.overlap`; empty where no single one is."""

    def __reduce__(self) -> tuple[object, ...]:  # errors cross process boundaries
        return (_rebuild, (type(self), self.message, self.remedy, self.field))

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


def _rebuild(kind: type[MimicMotionError], message: str, remedy: str, field: str) -> MimicMotionError:
    return kind(message, remedy=remedy, field=field)


class InputError(MimicMotionError):
    """The caller's input is at fault."""


class SettingsError(InputError):
    """A setting is out of range, unknown, or does not fit the bundle."""


class PictureError(InputError):
    """The reference picture cannot be used."""


class MotionError(InputError):
    """The driving motion (video, keypoints or pose pictures) cannot be used."""


class LimitError(InputError):
    """The input is sound but larger than this host allows."""


class BundleError(MimicMotionError):
    """A bundle is missing, damaged, or not for this machine."""


class CheckpointError(MimicMotionError):
    """A checkpoint's keys or shapes are not the network's."""


class ExportError(MimicMotionError):
    """An exported network does not agree with PyTorch, or could not be built."""


class EngineError(MimicMotionError):
    """An engine failed while running."""


class OutOfMemory(EngineError):  # noqa: N818 - read as what happened
    """The GPU, or the memory that it copies from, has no room; a smaller job may run."""


class DeviceLost(EngineError):  # noqa: N818
    """The GPU failed in a way that no later call of this process survives."""


class KernelError(MimicMotionError):
    """The CUDA kernels cannot be compiled or loaded on this machine."""


class OutputError(MimicMotionError):
    """The result cannot be written where it was asked to go."""


class Cancelled(MimicMotionError):  # noqa: N818 - not a fault
    """The job was cancelled by its owner."""


class ServiceError(MimicMotionError):
    """The server cannot be reached, is busy, or failed."""
