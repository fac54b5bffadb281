"""Who is behind a call."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    """By its token, or by its address."""

    name: str
    """Of its token; its address (without the port) where callers have no tokens."""
    peer: str
    """Address and port, as gRPC writes them."""
    scope: str | None = None
    """Whose jobs it may see: its own name; None where callers have no tokens, and for an admin: everybody's."""
    key_scope: str | None = None
    """Among whose jobs a `request_id` has to be unique; None: everybody's."""
    traceparent: str = ""
    """The span of the caller that this call belongs to, as W3C writes it."""

    def may_see(self, client: str) -> bool:
        """Whether a job of this client is one of the caller's."""
        return self.scope is None or self.scope == client


_current: ContextVar[Caller] = ContextVar("caller")


def caller() -> Caller:
    """Of the call that is being served."""
    return _current.get()


def serve_for(who: Caller) -> None:
    """From now on this task serves a call of `who`."""
    _current.set(who)
