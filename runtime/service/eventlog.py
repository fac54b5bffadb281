"""The events of one job, kept for any number of readers at their own pace."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import AsyncIterator
from dataclasses import replace

from ..events import Event, Preview, Progress, Queued


class EventLog:
    """Events numbered from 1. A newer progress report of a stage, preview or place in the queue replaces the older.

    That is the whole flow control: the log stays small whatever an engine reports, a reader that keeps up
    sees every report, and a slow one sees the newest. Events of other kinds are never dropped; video events
    only point into the job's file.
    """

    def __init__(self) -> None:
        self._kept: list[Event] = []
        self._replaceable: dict[str, Event] = {}
        self._changed = asyncio.Event()
        self.last_sequence = 0
        self.closed = False

    def __len__(self) -> int:
        return len(self._kept)

    def append(self, event: Event) -> None:
        """Keep the event under the next number."""
        self.last_sequence += 1
        event = replace(event, sequence=self.last_sequence)
        key = _replaced_by(event)
        if key is not None:
            older = self._replaceable.get(key)
            if older is not None:
                del self._kept[self._after(older.sequence) - 1]
            self._replaceable[key] = event
        self._kept.append(event)
        self._wake()

    def close(self) -> None:
        """No more events will come; readers end after the last one."""
        self.closed = True
        self._wake()

    async def follow(self, after: int = 0) -> AsyncIterator[Event]:
        """Events numbered above `after`: kept ones first, then new ones until the log closes."""
        while True:
            changed = self._changed
            index = self._after(after)
            if index < len(self._kept):
                event = self._kept[index]
                after = event.sequence
                yield event
            elif self.closed:
                return
            else:
                await changed.wait()

    def _after(self, sequence: int) -> int:
        return bisect_right(self._kept, sequence, key=lambda event: event.sequence)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _replaced_by(event: Event) -> str | None:
    if isinstance(event, Progress):
        return event.stage
    return event.kind if isinstance(event, Preview | Queued) else None
