"""What a long command shows on the standard error: a bar in a terminal, elsewhere a line now and then."""

from __future__ import annotations

import time
from collections import deque
from datetime import timedelta
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class Display:
    """`with Display("step") as display:`; `say` prints lines, `show` tells how far the work is."""

    def __init__(self, unit: str, every: int) -> None:
        """Without a terminal `show` prints every so many units, and the last one."""
        self._unit, self._every = unit, every
        self._console = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
        text = [TextColumn(part, markup=False) for part in ("{task.description}", "{task.fields[note]}")]
        self._bar: Progress | None = None
        if self._console.is_terminal:
            self._bar = Progress(text[0], BarColumn(12), text[1], console=self._console, transient=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text)

    def show(self, done: int, total: int, note: str) -> None:
        """`done` of `total` units are finished; `note` says more about it."""
        where = f"{self._unit} {done}/{total}"
        if self._bar is not None:
            self._bar.start()  # here: of several processes only one shows anything
            task = self._bar.task_ids[0] if self._bar.task_ids else self._bar.add_task("", note="")
            self._bar.update(task, description=where, completed=done, total=total, note=note)
        elif done == total or done % self._every == 0:
            self.say(f"{where}  {note}")


class Pace:
    """How fast steps go, from when the last ones ended; what is done between them counts as well."""

    def __init__(self, most: int = 100) -> None:
        self._ends = deque([time.monotonic()], most)

    def step(self) -> None:
        """A step has ended."""
        self._ends.append(time.monotonic())

    @property
    def seconds(self) -> float:
        """Seconds a step; 0 before the first has ended."""
        return (self._ends[-1] - self._ends[0]) / max(1, len(self._ends) - 1)

    def left(self, steps: int) -> str:
        """How long so many steps will take, in hours, minutes and seconds."""
        return f"{timedelta(seconds=round(self.seconds * steps))} left"
