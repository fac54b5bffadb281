"""What commands take and show: flags that follow a model, a progress bar, lines of JSON, errors with their remedy."""

from __future__ import annotations

import inspect
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from .errors import MimicMotionError
from .events import Done, Event, Preview, Progress, Video

Given = dict[str, Any]
"""The flags that the command line names, by their names."""
Command = Callable[..., None]


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


# ---- flags, one for each field of a model ----


def make_flag(
    name: str, hint: Any, *words: str, help: str, panel: str | None = None, **shown: Any
) -> inspect.Parameter:
    """A flag that is None unless it is given; `words` are its names if `--name` is not the only one."""
    option = typer.Option(*words, help=help, rich_help_panel=panel, show_default=False, **shown)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[hint | None, option]
    )


def with_flags(parameter: str, flags: list[inspect.Parameter]) -> Callable[[Command], Command]:
    """Decorates a command: its `parameter`, a `Given`, becomes these flags."""

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        own = [known for name, known in signature.parameters.items() if name != parameter]

        def run(**values: Any) -> None:
            given = {flag.name: values.pop(flag.name) for flag in flags}
            given = {name: value for name, value in given.items() if value is not None}
            command(**values, **{parameter: given})

        parameters = [*own, *flags]
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {known.name: known.annotation for known in parameters}
        run.__doc__, run.__name__ = command.__doc__, command.__name__
        return run

    return decorate
