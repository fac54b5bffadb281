"""The animator behind gRPC: a server with an engine process per device, and clients. Names load lazily."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client import AsyncClient, Client, local_server
    from .config import Keep, ServiceConfig
    from .server import AnimationServer, serve
    from .tls import ClientTls, Tls

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

__all__ = [
    "AnimationServer",
    "AsyncClient",
    "Client",
    "ClientTls",
    "Keep",
    "ServiceConfig",
    "Tls",
    "local_server",
    "serve",
]

if not TYPE_CHECKING:  # a checker takes the imports above

    def __getattr__(name: str) -> Any:
        if name in _HOME:
            return getattr(import_module(f".{_HOME[name]}", __name__), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
