"""MimicMotion as a deployable runtime: one picture and a motion in, a video out."""

from .errors import (
    BundleError,
    Cancelled,
    CheckpointError,
    EngineError,
    ExportError,
    InputError,
    LimitError,
    MimicMotionError,
    MotionError,
    OutputError,
    PictureError,
    ServiceError,
    SettingsError,
)
from .settings import Settings

__version__ = "0.1.0"

__all__ = [
    "BundleError",
    "Cancelled",
    "CheckpointError",
    "EngineError",
    "ExportError",
    "InputError",
    "LimitError",
    "MimicMotionError",
    "MotionError",
    "OutputError",
    "PictureError",
    "ServiceError",
    "Settings",
    "SettingsError",
]
