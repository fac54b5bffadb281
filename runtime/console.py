"""What commands show: progress, lines of JSON, errors with their remedy."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from .errors import MimicMotionError
from .events import Done, Event, Preview, Progress, Video
from .files import output_errors, write_atomic

LINE_SECONDS = 5.0
"""Between two lines of progress where there is no terminal; nothing is said of work that is shorter."""

SIGNAL_AGAIN = 2.0
"""Seconds after which a signal that ends the command is sent again; removing what is not finished takes less."""

Tell = Callable[[int, int], None]


class Bars:
    """Progress on the standard error: a bar for each stage; where that is no terminal, a line every few seconds."""

    def __init__(self, quiet: bool = False, *, transient: bool = False) -> None:
        """`quiet` shows nothing; `transient` bars are gone at the end."""
        from rich import progress as bar
        from rich.console import Console

        console = Console(stderr=True, markup=False)
        self._lines = not quiet and not console.is_terminal
        self._over = threading.Event()
        self._stages: dict[str, Any] = {}
        self._current: Any = None
        self._progress = bar.Progress(
            bar.TextColumn("{task.description:8}", markup=False),  # names have brackets of their own
            bar.BarColumn(),
            bar.MofNCompleteColumn(),
            bar.TimeElapsedColumn(),
            bar.TimeRemainingColumn(),
            console=console,
            transient=transient,
            disable=quiet or self._lines,
        )

    def __enter__(self) -> Bars:
        self._progress.start()
        if self._lines:
            threading.Thread(target=self._tell, name="mimicmotion-progress", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._progress.stop()

    def show(self, stage: str, done: float = 0, total: float | None = None, what: str = "") -> None:
        """`done` of `total` parts of a stage are done, None where that is not known; `what` is shown in its place."""
        if stage not in self._stages:
            self._stages[stage] = self._progress.add_task(stage, total=None)
        self._current = self._stages[stage]
        self._progress.update(self._current, completed=done, total=total, description=what or stage)

    def say(self, text: str) -> None:
        """A line above the bars."""
        if self._lines:
            print(text, file=sys.stderr, flush=True)
        else:
            self._progress.console.print(text, highlight=False, style="dim")

    def _tell(self) -> None:
        while not self._over.wait(LINE_SECONDS):
            if self._current is None:
                continue
            task = next(task for task in self._progress.tasks if task.id == self._current)
            parts = "" if task.total is None else f" {task.completed:g}/{task.total:g}"
            left = (
                ""
                if task.time_remaining is None or task.finished
                else f", about {task.time_remaining:.0f} s left"
            )
            self.say(f"{task.description}{parts}, {task.elapsed or 0:.0f} s{left}")


@contextmanager
def waiting(what: str, quiet: bool = False) -> Iterator[Tell]:
    """Progress of one thing. Gives a function to call with (parts done, parts in all) where they can be counted."""
    with Bars(quiet, transient=True) as bars:
        bars.show(what)
        yield lambda done, total: bars.show(what, done, total)


def spoken_to(output: object) -> TextIO:
    """Where lines go: to the standard error, if the result itself goes to the standard output."""
    with suppress(OSError, ValueError):
        if str(output) == "-" or os.path.samestat(os.stat(str(output)), os.fstat(1)):
            return sys.stderr
    return sys.stdout


class Reporter:
    """Shows the events of one animation, of this process or of a server."""

    def __init__(self, as_json: bool, output: object = "", preview: Path | None = None) -> None:
        """`preview` is where preview pictures are written, each over the one before."""
        self.as_json = as_json
        self._file = spoken_to(output)
        self._bars = Bars(quiet=as_json)
        self._preview = preview

    def __enter__(self) -> Reporter:
        self._bars.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.__exit__()

    @contextmanager
    def during(self, what: str) -> Iterator[None]:
        """Shows that something is done before the first event comes."""
        self._bars.show(what, 0, 1)
        yield
        self._bars.show(what, 1, 1)

    def show(self, event: Event) -> None:
        """One event: progress moves the bar of its stage, a preview is written, others are said."""
        if isinstance(event, Progress):
            self._show_progress(event)
        elif isinstance(event, Preview):
            self._show_preview(event)
        elif self.as_json:
            self.line(event.to_dict())
        elif not isinstance(event, Video | Done):
            self._bars.say(str(event))

    def _show_progress(self, event: Progress) -> None:
        self._bars.show(event.stage, event.step, event.steps or None)
        self.line({name: value for name, value in event.to_dict().items() if name != "preview"})
        if event.preview is not None:
            from .media.picture import encode_picture

            self._show_preview(Preview(encode_picture(event.preview, ".jpg"), event.step, event.steps))

    def _show_preview(self, event: Preview) -> None:
        path = {}
        if self._preview is not None:
            with output_errors(self._preview):
                write_atomic(self._preview, event.jpeg)
            path["path"] = str(self._preview)
        self.line({**event.to_dict(), **path})

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

    again = list[threading.Timer]()

    def leave(number: int, _: object) -> None:
        # Python drops what is raised while it runs a finalizer: the signal comes again until the command has ended.
        again.append(
            threading.Timer(SIGNAL_AGAIN, signal.pthread_kill, (threading.main_thread().ident, number))
        )
        again[-1].daemon = True
        again[-1].start()
        raise SystemExit(128 + number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, leave) for number in numbers}
    try:
        yield
    finally:
        for timer in again:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
