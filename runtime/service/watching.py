"""The events of a job as a client gets them, which go on where a connection breaks and the job does not."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Self

import grpc

from ..errors import MimicMotionError
from ..events import Event
from .delivery import Delivery, ReceivedVideo
from .status import Kept, Late, Unreachable, from_rpc_error

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
"""Seconds between two tries to watch a job again: twice as many after each."""


class Reconnection:
    """Watches a job again where its connection broke, for `patience` seconds from the break on.

    `watch(job, after, timeout)` makes the call. `stop(job)` makes the one that cancels the job, where the broken call
    would have: None for jobs that go on without their caller. `timeout` seconds are for all the calls together.
    """

    def __init__(
        self,
        watch: Callable[[str, int, float | None], Any],
        stop: Callable[[str], None] | None,
        patience: float,
        timeout: float | None = None,
        job: str = "",
    ) -> None:
        self._watch, self._stop, self._patience, self._job = watch, stop, patience, job
        self._until = None if timeout is None else time.monotonic() + timeout
        self._broke: float | None = None  # when the connection did; None while events come
        self._pause = FIRST_PAUSE
        self.used = False
        """Whether the job was watched again."""

    def heard(self) -> None:
        """An event came."""
        self._broke, self._pause = None, FIRST_PAUSE

    def pause(self, error: MimicMotionError, job: str) -> float | None:
        """Seconds until the next try; None if this error ends the events."""
        if not isinstance(error, Kept | Unreachable) or not (job := job or self._job):
            return None
        now = time.monotonic()
        if self._broke is None:
            self._broke = now
            if self._patience > 0:
                logging.getLogger(__name__).warning(
                    "%s Job %s is watched again for up to %g s.", error, job, self._patience
                )
        pause, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
        return None if now + pause > self._broke + self._patience else pause

    def again(self, job: str, after: int) -> Any:
        """The next try."""
        self.used = True
        left = None if self._until is None else max(0.0, self._until - time.monotonic())
        return self._watch(job or self._job, after, left)

    def leave(self, job: str) -> None:
        """Cancel the job, as leaving the first call would have done."""
        if job and self._stop is not None:
            self._stop(job)


class JobEvents:
    """What both kinds of `Animation` share."""

    def __init__(self, call: Any, delivery: Delivery, reconnection: Reconnection) -> None:
        self._call = call
        self._delivery = delivery
        self._reconnection = reconnection
        self._over = False  # the server has said how the job ended

    @property
    def job(self) -> str:
        """The job's name on the server, empty until it was accepted."""
        return self._delivery.job

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of job {self.job or '(not accepted yet)'}>"

    def cancel(self) -> None:
        """Stop listening; the server cancels a job that was not detached, another life of it once it was heard."""
        if (
            not self._over
            and self._delivery.result is None
            and (self._reconnection.used or self._call.done())
        ):
            self._reconnection.leave(self.job)  # the first call cannot do it any more
        self._call.cancel()
        self._over = True
        self._delivery.abort()

    def _pause(self, error: grpc.RpcError) -> float:
        """Seconds until the job is watched again; raises what ended the call where it is not."""
        named = from_rpc_error(error)
        if (pause := self._reconnection.pause(named, self.job)) is None:
            self._over = not isinstance(named, Late)
            self.cancel()
            raise named from None
        return pause

    def _watch_again(self) -> None:
        self._call = self._reconnection.again(self.job, self._delivery.sequence)


class Animation(JobEvents, Iterator[Event]):
    """A job's events as they come. `result()` takes what is left of them; leaving early cancels the call.

    Raises what the animation raised on the server, as the same class with `field` and `remedy`;
    `ServiceError` if the server cannot be reached or the stream is damaged.
    """

    def __next__(self) -> Event:
        while True:
            try:
                for response in self._call:
                    self._reconnection.heard()
                    event = self._delivery.take(response.event)
                    if event is not None:
                        return event
            except grpc.RpcError as error:
                pause = self._pause(error)
            except BaseException:
                self.cancel()
                raise
            else:
                raise StopIteration
            try:
                time.sleep(pause)
            except BaseException:
                self.cancel()
                raise
            self._watch_again()

    def result(self) -> ReceivedVideo:
        """Wait for the end; the finished video."""
        for _ in self:
            pass
        return self._delivery.end()

    def save(self, path: str | Path) -> Path:
        """Wait for the end and write the MP4 to `path`."""
        return self.result().save(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()


class AsyncAnimation(JobEvents, AsyncIterator[Event]):
    """Like `Animation`, for asyncio; files are written outside the event loop."""

    async def __anext__(self) -> Event:
        while True:
            try:
                async for response in self._call:
                    self._reconnection.heard()
                    event = await asyncio.to_thread(self._delivery.take, response.event)
                    if event is not None:
                        return event
            except grpc.RpcError as error:
                pause = self._pause(error)
            except BaseException:
                self.cancel()
                raise
            else:
                raise StopAsyncIteration
            try:
                await asyncio.sleep(pause)
            except BaseException:
                self.cancel()
                raise
            self._watch_again()

    async def result(self) -> ReceivedVideo:
        async for _ in self:
            pass
        return self._delivery.end()

    async def save(self, path: str | Path) -> Path:
        result = await self.result()
        return await asyncio.to_thread(result.save, path)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()
