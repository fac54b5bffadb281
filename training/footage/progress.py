"""What a person, or a program, sees of a preparation."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any


class Bars:
    """Bars on stderr: recordings done, and frames of the present one."""

    def __enter__(self) -> Bars:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._counts: Counter[str] = Counter()
        self._bars = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
            TimeElapsedColumn(), TextColumn("{task.fields[note]}", markup=False),
            console=Console(stderr=True, markup=False),
        )  # fmt: skip
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def begin(self, videos: int) -> None:
        """So many recordings."""
        self._all = self._bars.add_task("videos", total=videos, note="")
        self._one = self._bars.add_task("frames", total=None, note="")

    def frames(self, video: str, done: int) -> None:
        """So many frames of one are posed."""
        self._bars.update(self._one, completed=done, note=video[-40:])

    def end(self, video: str, kept: int, left_out: Counter[str]) -> None:
        """One recording is done."""
        self._counts["kept"] += kept
        self._counts.update(left_out)
        note = ", ".join(f"{count} {name}" for name, count in self._counts.items())
        self._bars.update(self._all, advance=1, note=note)


class Lines:
    """A line of JSON on stdout for every recording."""

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def begin(self, videos: int) -> None:
        """So many recordings."""
        _line({"videos": videos})

    def frames(self, video: str, done: int) -> None:
        """Nothing is said of frames."""

    def end(self, video: str, kept: int, left_out: Counter[str]) -> None:
        """One recording is done."""
        _line({"video": video, "kept": kept, "left_out": dict(left_out)})


def _line(values: dict[str, Any]) -> None:
    print(json.dumps(values), flush=True)
