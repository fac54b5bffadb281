"""`mimicmotion-trt doctor`: what this machine runs, and what an animation would need here."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from ..console import explained
from ..settings import parse_size


def doctor(
    bundle: Annotated[str, typer.Option(help="Bundle, by name or folder; all that are found if empty.")] = "",
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT of the video; the bundle's own if empty.")] = "",
    frames: Annotated[int | None, typer.Option(help="Its frames; one segment if not given.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Its length instead, at 15 frames a second.")] = None,
    jobs: Annotated[int, typer.Option(help="Jobs at once, as with serve --limit jobs=N.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Say what this machine runs, what is missing, and what an animation would need here."""
    from rich.console import Console

    from ..doctor import Question, examine, show

    with explained(as_json):
        question = Question.of(parse_size(size) if size else None, frames, seconds, jobs)
        report = examine(bundle, question)
        if as_json:
            print(json.dumps(report.to_dict()))
        else:
            show(report, Console(highlight=False, markup=False, soft_wrap=True), every_choice=bool(bundle))
