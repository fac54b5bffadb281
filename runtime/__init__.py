"""MimicMotion as a deployable runtime: one picture and a motion in, a video out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import (
    BundleError,
    Cancelled,
    CheckpointError,
    DeviceLost,
    EngineError,
    ExportError,
    InputError,
    KernelError,
    LimitError,
    MimicMotionError,
    MotionError,
    OutOfMemory,
    OutputError,
    PictureError,
    ServiceError,
    SettingsError,
)

if TYPE_CHECKING:
    from .animator import Animator
    from .events import Event
    from .facts import Facts
    from .job import Job, Result
    from .limits import Limits
    from .media.record import read_facts
    from .pose import PoseSequence, draw_poses, estimate_poses, rescale_to_reference
    from .service import AsyncClient, Client, ClientTls
    from .settings import Settings, SettingsDict

__version__ = "0.1.0"

_LAZY = {
    "Animator": "animator",
    "AsyncClient": "service",
    "Client": "service",
    "ClientTls": "service",
    "Event": "events",
    "Facts": "facts",
    "Job": "job",
    "Limits": "limits",
    "PoseSequence": "pose",
    "Result": "job",
    "Settings": "settings",
    "SettingsDict": "settings",
    "draw_poses": "pose",
    "estimate_poses": "pose",
    "read_facts": "media.record",
    "rescale_to_reference": "pose",
}
"""Names whose modules load numpy, pydantic, OpenCV, PyAV, ONNX Runtime or gRPC: imported when first used."""

__all__ = [
    "Animator",
    "AsyncClient",
    "BundleError",
    "Cancelled",
    "CheckpointError",
    "Client",
    "ClientTls",
    "DeviceLost",
    "EngineError",
    "Event",
    "ExportError",
    "Facts",
    "InputError",
    "Job",
    "KernelError",
    "LimitError",
    "Limits",
    "MimicMotionError",
    "MotionError",
    "OutOfMemory",
    "OutputError",
    "PictureError",
    "PoseSequence",
    "Result",
    "ServiceError",
    "Settings",
    "SettingsDict",
    "SettingsError",
    "draw_poses",
    "estimate_poses",
    "read_facts",
    "rescale_to_reference",
]


if not TYPE_CHECKING:  # a checker takes the imports above, and a name that is not there is an error to it

    def __getattr__(name: str) -> Any:
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
