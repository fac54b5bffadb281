"""Real servers with the real spawned engine process, around the stand-in animator."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mimicmotion_trt.service import AnimationServer, ServiceConfig

from . import stand_in_animator

ROOT = Path(__file__).parents[2]
STAND_IN: dict[str, Any] = {"port": 0, "load": stand_in_animator.load, "bundle": "{}", "grace": 0.0}
"""Options of a server around the stand-in."""


class Host:
    """A server on its own thread and event loop, as a program that embeds it might have it."""

    def __init__(self, **options: Any) -> None:
        self.config = ServiceConfig(**STAND_IN | options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.server: AnimationServer = self.call(self._make)
        self._stopped = False

    async def _make(self) -> AnimationServer:
        server = AnimationServer(self.config)
        await server.start()
        return server

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run an async function on the server's loop."""
        return asyncio.run_coroutine_threadsafe(function(*arguments), self._loop).result(120)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    @property
    def engine_pid(self) -> int:
        pid = self.server.scheduler.engines[0].pid
        assert pid is not None
        return pid

    def stop(self, grace: float | None = None) -> None:
        if not self._stopped:
            self._stopped = True
            self.call(self.server.stop, grace)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(60)
            self._loop.close()


@contextmanager
def hosted(*, warm: bool = True, **options: Any) -> Iterator[Host]:
    host = Host(**options)
    try:
        if warm:
            host.call(host.server.ready)
        yield host
    finally:
        host.stop()


@contextmanager
def process(*, stderr: Any = subprocess.PIPE, **options: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own; gives (process, address)."""
    running = subprocess.Popen(
        [sys.executable, "-m", "tests.service.serve_stand_in", json.dumps(options)],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        cwd=ROOT,
        start_new_session=True,  # a group of its own, as in a terminal
    )
    assert running.stdout is not None
    try:
        yield running, running.stdout.readline().split()[-1]
    finally:
        running.kill()
        running.communicate()


def script(**does: Any) -> bytes:
    """A picture that tells the stand-in what to do; see `stand_in_animator.py`."""
    return json.dumps(does).encode()


def until(check: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for `check()`; fails after `seconds`, which only a fault takes: a busy machine is slow."""
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.01)


def fill(place: Path) -> Path:
    """Fill a file system up with a file, which is returned."""
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler
