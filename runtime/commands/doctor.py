"""`mimicmotion-trt doctor`: what this machine runs, and what an animation would need here."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from ..console import explained, waiting
from ..settings import parse_size


def doctor(
    bundle: Annotated[
        str, typer.Option(metavar="NAME", help="Bundle, by name or folder; all that are found if not given.")
    ] = "",
    size: Annotated[
        str, typer.Option(metavar="WIDTHxHEIGHT", help="Of the video; the bundle's own if not given.")
    ] = "",
    frames: Annotated[
        int | None, typer.Option(metavar="NUMBER", help="Of the video; one segment if not given.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(metavar="NUMBER", help="Its length instead, at 15 frames a second.")
    ] = None,
    fps: Annotated[
        float | None, typer.Option(metavar="NUMBER", help="With --seconds: frames a second, if not 15.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Jobs at once, as with serve --limit jobs=N.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Say which bundles run on this machine, what is missing, and how long it takes.

    mimicmotion-trt doctor
    mimicmotion-trt doctor --bundle tiny --seconds 10
    """
    from rich.console import Console

    from ..doctor import Question, examine, show

    with explained(as_json):
        question = Question.of(parse_size(size) if size else None, frames, seconds, jobs, fps)
        with waiting("looking at this machine and its bundles", quiet=as_json):
            report = examine(bundle, question)
        if as_json:
            print(json.dumps(report.to_dict()))
        else:
            show(report, Console(highlight=False, markup=False, soft_wrap=True), asked=bundle)
