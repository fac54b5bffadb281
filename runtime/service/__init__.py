"""The animator behind gRPC: a server with an engine process per device, and clients. Names load lazily."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "AnimationServer": "server",
    "AsyncClient": "client",
    "Client": "client",
    "ClientTls": "tls",
    "Keep": "config",
    "ServiceConfig": "config",
    "Tls": "tls",
    "local_server": "client",
    "serve": "server",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
