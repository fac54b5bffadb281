"""What commands show: a progress bar for people, lines of JSON for machines, errors with their remedy."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .errors import MimicMotionError
from .events import Done, Event, Preview, Progress, Video


class Reporter:
    """Shows the events of one animation, of this process or of a server."""

    def __init__(self, as_json: bool, output: object = "") -> None:
        self.as_json = as_json
        self._file = sys.stderr if str(output) == "-" else sys.stdout
        self._bars: dict[str, Any] = {}
        self._progress: Any = None

    def __enter__(self) -> Reporter:
        if not self.as_json:
            from rich import progress as bar
            from rich.console import Console

            self._progress = bar.Progress(
                bar.TextColumn("{task.description:8}"),
                bar.BarColumn(),
                bar.MofNCompleteColumn(),
                bar.TimeElapsedColumn(),
                bar.TimeRemainingColumn(),
                console=Console(stderr=True, markup=False),
            )
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def show(self, event: Event) -> None:
        """One event: progress moves the bar of its stage, others are said."""
        if self.as_json:
            self.line(event.to_dict())
        elif isinstance(event, Progress):
            if event.stage not in self._bars:
                self._bars[event.stage] = self._progress.add_task(event.stage, total=None)
            total = event.steps or None
            self._progress.update(self._bars[event.stage], completed=event.step, total=total)
        elif not isinstance(event, Preview | Video | Done):
            self._progress.console.print(str(event), highlight=False, style="dim")

    def say(self, text: str) -> None:
        """A line for people; to the standard error where the video goes to the standard output."""
        if not self.as_json:
            print(text, file=self._file)

    def note(self, text: str) -> None:
        """Something that the user should know; nothing if it is empty."""
        if text:
            self.line({"event": "note", "note": text})
            if not self.as_json:
                print(f"note: {text}", file=sys.stderr)

    def line(self, values: dict[str, Any]) -> None:
        """One line of JSON, if that was asked for."""
        if self.as_json:
            print(json.dumps(values), file=self._file, flush=True)


@contextmanager
def explained(as_json: bool = False) -> Iterator[None]:
    """Turn our errors into a message and exit code 1, Ctrl-C into exit code 130; no traceback."""
    try:
        with _ended_by_signals():
            yield
    except MimicMotionError as error:
        if as_json:
            values = {"event": "error", "kind": type(error).__name__, "field": error.field}
            print(json.dumps({**values, "message": error.message, "remedy": error.remedy}), flush=True)
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the command as Ctrl-C does: what is not finished is removed; exit code 128 + number."""

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, leave) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
