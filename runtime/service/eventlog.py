"""The events of one job, kept for any number of readers at their own pace."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from ..events import Event, Preview, Progress, Queued

OneEvent = TypeVar("OneEvent", bound=Event)


class EventLog:
    """Events numbered from 1. A newer progress report of a stage, preview or place in the queue replaces the older.

    That is the whole flow control: the log stays small whatever an engine reports, a reader that keeps up
    sees every report, and a slow one sees the newest. Events of other kinds are never dropped; video events
    only point into the job's file.

    Readers see an event when it is written, if it has to be, and those before it are.
    """

    def __init__(self, events: Iterable[Event] = (), numbered: int = 0) -> None:
        """`events` of an earlier life of the server, in which numbers up to `numbered` may have been told."""
        self._kept: list[Event] = list(events)
        self._replaceable: dict[str, Event] = {}
        self._waiting: deque[tuple[Callable[[], None], Future[Any] | None]] = deque()
        self._changed = asyncio.Event()
        self.numbered = numbered
        """Number of the newest event, shown or not."""
        self.last_sequence = self._kept[-1].sequence if self._kept else numbered
        """Of the newest event that readers see."""
        self.closed = False

    def __len__(self) -> int:
        return len(self._kept)

    def number(self, event: OneEvent) -> OneEvent:
        """The event with the next number; `put` has to follow."""
        self.numbered += 1
        return replace(event, sequence=self.numbered)

    def append(self, event: Event) -> None:
        """Keep the event under the next number."""
        self.put(self.number(event))

    def put(self, event: Event, written: Future[Any] | None = None) -> None:
        """Show a numbered event to readers, once it is `written`."""
        self.when_shown(lambda: self._show(event), written)

    def when_shown(self, action: Callable[[], None], written: Future[Any] | None = None) -> None:
        """Call this when all events before it are shown, and `written` is done."""
        self._waiting.append((action, written))
        if written is not None and not written.done():
            loop = asyncio.get_running_loop()

            def wake(_: Future[Any]) -> None:
                with suppress(RuntimeError):  # the loop is closed, and nobody reads any more
                    loop.call_soon_threadsafe(self._proceed)

            written.add_done_callback(wake)
        self._proceed()

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

    def _proceed(self) -> None:
        while self._waiting and ((written := self._waiting[0][1]) is None or written.done()):
            action, _ = self._waiting.popleft()
            if written is None or written.exception() is None:
                action()

    def _show(self, event: Event) -> None:
        self.last_sequence = event.sequence
        key = _replaced_by(event)
        if key is not None:
            older = self._replaceable.get(key)
            if older is not None:
                del self._kept[self._after(older.sequence) - 1]
            self._replaceable[key] = event
        self._kept.append(event)
        self._wake()

    def _after(self, sequence: int) -> int:
        return bisect_right(self._kept, sequence, key=lambda event: event.sequence)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _replaced_by(event: Event) -> str | None:
    if isinstance(event, Progress):
        return event.stage
    return event.kind if isinstance(event, Preview | Queued) else None
