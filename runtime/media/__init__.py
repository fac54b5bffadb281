"""Media in and out: pictures, videos, contact sheets. Names load on first use; PyAV and OpenCV are heavy."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "read_picture": "picture",
    "fit_picture": "picture",
    "write_picture": "picture",
    "encode_picture": "picture",
    "VideoReader": "reader",
    "read_pictures": "picture",
    "VideoWriter": "writer",
    "FragmentedMp4": "writer",
    "contact_sheet": "sheet",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
