"""The events of one job, kept for any number of readers at their own pace."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import AsyncIterator
from typing import NamedTuple

from .messages import Entry, Preview, Progress


class Numbered(NamedTuple):
    sequence: int
    entry: Entry


class EventLog:
    """Entries numbered from 1. A newer progress report of a stage, or a newer preview, replaces the older.

    That is the whole flow control: the log stays small whatever an engine reports, a reader that keeps up
    sees every report, and a slow one sees the newest. Entries of other kinds are never dropped; video entries
    only point into the job's file.
    """

    def __init__(self) -> None:
        self._kept: list[Numbered] = []
        self._replaceable: dict[str, Numbered] = {}
        self._changed = asyncio.Event()
        self.last_sequence = 0
        self.closed = False

    def __len__(self) -> int:
        return len(self._kept)

    def append(self, entry: Entry) -> None:
        self.last_sequence += 1
        numbered = Numbered(self.last_sequence, entry)
        key = _replaced_by(entry)
        if key is not None:
            older = self._replaceable.get(key)
            if older is not None:
                del self._kept[self._after(older.sequence) - 1]
            self._replaceable[key] = numbered
        self._kept.append(numbered)
        self._wake()

    def close(self) -> None:
        """No more entries will come; readers end after the last one."""
        self.closed = True
        self._wake()

    async def follow(self, after: int = 0) -> AsyncIterator[Numbered]:
        """Entries numbered above `after`: kept ones first, then new ones until the log closes."""
        while True:
            changed = self._changed
            index = self._after(after)
            if index < len(self._kept):
                numbered = self._kept[index]
                after = numbered.sequence
                yield numbered
            elif self.closed:
                return
            else:
                await changed.wait()

    def _after(self, sequence: int) -> int:
        return bisect_right(self._kept, sequence, key=lambda numbered: numbered.sequence)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _replaced_by(entry: Entry) -> str | None:
    if isinstance(entry, Progress):
        return entry.stage
    return "preview" if isinstance(entry, Preview) else None
