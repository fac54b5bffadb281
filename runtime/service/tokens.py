"""Who is behind a call; and bearer tokens, a file that knows their hashes only, one line for each.

    # name:sha256 of the token[:admin][:priority=HIGHEST]
    alice:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08:priority=0
    boss:60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752:admin

A token is 32 random bytes, so that a plain hash keeps it: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from ..errors import ServiceError, SettingsError

PRIORITIES = 9
"""The highest priority; the lowest is as much below 0."""
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
"""Of a token. Never what an address looks like: callers without tokens are named by theirs."""
LINE = re.compile(rf"({NAME.pattern}):([0-9a-f]{{64}})(:admin)?(?::priority=(-?[0-{PRIORITIES}]))?")


def checked_priority(priority: int) -> int:
    """Raises `SettingsError` for what is no priority."""
    if type(priority) is not int or abs(priority) > PRIORITIES:
        raise SettingsError(
            f"priority is {priority!r:.40}.",
            remedy=f"Choose -{PRIORITIES} to {PRIORITIES}.",
            field="priority",
        )
    return priority


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
    priority: int = PRIORITIES
    """The highest that its jobs may have."""
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


# ---- tokens ----


@dataclass(frozen=True, slots=True)
class Token:
    """One caller as the file knows it."""

    name: str
    digest: str
    """SHA-256 of the token, 64 hexadecimal digits."""
    admin: bool = False
    """Sees and cancels everybody's jobs."""
    priority: int = PRIORITIES
    """The highest that its jobs may have, -9 to 9."""

    @property
    def line(self) -> str:
        more = [f"priority={self.priority}"] if self.priority != PRIORITIES else []
        return ":".join([self.name, self.digest, *(["admin"] if self.admin else []), *more])


class Tokens:
    """The tokens of a file. `load` and `reload` raise `ServiceError` with the line that is wrong."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = read_tokens(path)

    def reload(self) -> None:
        """Read the file again; where it is wrong the tokens stay as they were."""
        self._known = read_tokens(self._path)

    def __len__(self) -> int:
        return len(self._known)

    def find(self, presented: str) -> Token | None:
        """Whose token this is. Takes the same time wherever the file has it."""
        digest, found = digest_of(presented), None
        for token in self._known:
            if hmac.compare_digest(token.digest, digest):
                found = token
        return found


def digest_of(token: str) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def read_tokens(path: Path) -> list[Token]:
    """The tokens of a file; empty lines and lines that begin with # are passed over. Raises `ServiceError`."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ServiceError(f"{path} cannot be read: {why}.", remedy="Check it.", field="tokens") from error
    tokens: dict[str, Token] = {}
    for number, line in enumerate(lines, 1):
        if not (text := line.strip()) or text.startswith("#"):
            continue
        found = LINE.fullmatch(text)
        if found is None:
            raise ServiceError(
                f"{path}, line {number}: this is not NAME:SHA256[:admin][:priority=-{PRIORITIES} to {PRIORITIES}].",
                remedy="Have `mimicmotion-trt new-token NAME --tokens FILE` write it.",
                field="tokens",
            )
        name, digest, admin, priority = found.groups()
        if name in tokens:
            raise ServiceError(f"{path}, line {number}: {name} is there twice.", field="tokens")
        tokens[name] = Token(name, digest, bool(admin), PRIORITIES if priority is None else int(priority))
    return list(tokens.values())


def add_token(path: Path, name: str, *, admin: bool = False, priority: int = PRIORITIES) -> str:
    """Make a token, add its line to the file (a new one is its owner's only), and return the token.

    `priority` is the highest that its jobs may have. Raises `ServiceError` if the name is taken or is no name, or if
    the file cannot be written, and `SettingsError` for a priority that is none.
    """
    checked_priority(priority)
    if not NAME.fullmatch(name):
        raise ServiceError(
            f"{name!r:.80} cannot name a token.",
            remedy="Begin with a letter; letters, digits, - and _ may follow, 64 in all.",
            field="name",
        )
    if path.exists() and any(token.name == name for token in read_tokens(path)):
        raise ServiceError(
            f"{path} has a token of {name} already.", remedy="Remove its line to replace it.", field="name"
        )
    token = secrets.token_urlsafe(32)
    try:
        with os.fdopen(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600), "r+") as file:
            text = file.read()
            line = Token(name, digest_of(token), admin, priority).line
            file.write(("" if not text or text.endswith("\n") else "\n") + line + "\n")
    except OSError as error:
        raise ServiceError(f"{path} cannot be written: {error.strerror}.", field="tokens") from error
    return token
