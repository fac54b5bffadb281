"""`python training/curves.py RUN [RUN …] [--output PICTURE.png] [--apart] [--json]`: compares runs.

A run is the output of `training/train.py`, and may still be going on. `waiting` is the share of the steps' time spent
waiting for clips, `prepared` the time that clips took before the first step. The picture shows the loss, smoothed,
and a measure of the validations, all runs on the same axes. --json ends with one line, an object by run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Column, Table
from typer import Argument, Option

from mimicmotion_trt.console import explained
from mimicmotion_trt.errors import SettingsError
from mimicmotion_trt.training.plots import MARK, drawn, plain_log

Line = Mapping[str, Any]
MEASURES = ("psnr", "colour_error", "found")
"""What is drawn of a validation: the first of these that it has."""
UNITS = {"psnr": "PSNR, dB", "colour_error": "colour error, levels of 255", "found": "found, share"}
"""What a plot calls them."""
RUNS_A_TABLE = 3
"""As many columns as 80 characters hold."""
SMOOTH = 0.02
"""The loss is averaged over this share of a run's steps."""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run in numbers; `step_seconds` is a median, which the machine's other work changes less."""

    steps: int
    hours: float
    """In steps: neither preparing nor validating."""
    step_seconds: float
    waiting: float | None
    """Share of the steps' time that was spent waiting for clips, 0 to 1; None of old runs."""
    loss_begin: float
    loss_end: float
    """Means over the first and the last part of the run that smoothing looks at."""
    validation: Mapping[str, float]
    """The last validation's measures; empty if there was none."""
    prepare_seconds: float | None = None
    """Spent on clips before the first step, here and wherever the run was resumed; None of old runs."""


@dataclass(frozen=True, slots=True)
class Curve:
    """What is drawn of a run."""

    name: str
    steps: Sequence[int]
    losses: Sequence[float | None]
    """Smoothed, as many as steps."""
    validations: Sequence[Line]


def read_lines(path: Path) -> list[Line]:
    """The whole lines of a `.jsonl` file; none if it is not there. A line that is being written is left out."""
    if not path.is_file():
        return []
    lines = path.read_text().split("\n")[:-1]
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise SettingsError(f"{path} cannot be read: {error}", field="run") from None


def summarize(folder: Path) -> RunSummary:
    """The numbers of a run; raises `SettingsError` if the folder holds none."""
    steps, validations = read_lines(folder / "metrics.jsonl"), read_lines(folder / "validation.jsonl")
    if not steps:
        raise SettingsError(
            f"{folder} holds no run.", remedy="Give the output of `mimicmotion-trt train`.", field="run"
        )
    seconds, waited, losses = (column(steps, name) for name in ("step_seconds", "data_seconds", "loss"))
    part = window(len(losses))
    last = validations[-1] if validations else {}
    validation = {name: value for name, value in last.items() if name != "step" and value is not None}
    prepared = [float(line["prepare_seconds"]) for line in steps if "prepare_seconds" in line]
    return RunSummary(
        steps=int(steps[-1]["step"]),
        hours=float(seconds.sum() / 3600),
        step_seconds=float(np.median(seconds)),
        waiting=float(waited.sum() / seconds.sum()),
        loss_begin=float(np.nanmean(losses[:part])),
        loss_end=float(np.nanmean(losses[-part:])),
        validation=validation,
        prepare_seconds=sum(prepared) if prepared else None,
    )


def column(lines: Sequence[Line], name: str) -> NDArray[np.float64]:
    """One value of all lines; what was not finite is NaN."""
    return np.array([np.nan if line[name] is None else line[name] for line in lines], np.float64)


def window(steps: int) -> int:
    """Over how many steps a curve is smoothed."""
    return max(1, round(SMOOTH * steps))


def smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The running mean over `window`, of as many values as there are whole windows; NaN is left out."""
    known, ones = np.isfinite(values), np.ones(window(len(values)))
    total = np.convolve(np.where(known, values, 0.0), ones, "valid")
    return np.asarray(total / np.maximum(np.convolve(known, ones, "valid"), 1))


def read_curve(folder: Path, most: int = 400) -> Curve:
    """The curve of a run, thinned to about `most` points."""
    lines = read_lines(folder / "metrics.jsonl")
    losses = smooth(column(lines, "loss"))
    steps, every = column(lines, "step")[-len(losses) :], -(-len(losses) // most)
    return Curve(
        folder.name,
        [int(step) for step in steps[::every]],
        [float(f"{loss:.5g}") if np.isfinite(loss) else None for loss in losses[::every]],
        read_lines(folder / "validation.jsonl"),
    )


def draw_curves(rows: Sequence[Sequence[Curve]], path: Path) -> None:
    """Write the picture: the loss on the left, a measure of validation on the right; a row's curves share axes."""
    with drawn(path, len(rows), 2, (8.5, 2.3 * max(len(rows), 1.5))) as axes:
        for (left, right), curves in zip(axes, rows, strict=True):
            draw_row(left, right, curves)


def draw_row(left: Any, right: Any, curves: Sequence[Curve]) -> None:
    """Losses and validations of some runs on two axes of matplotlib."""
    measured = [curve.validations[-1] for curve in curves if curve.validations]
    name = next((measure for measure in MEASURES for line in measured if measure in line), None)
    stills = []
    for curve in curves:
        left.plot(curve.steps, np.array(curve.losses, np.float64), label=curve.name)  # None becomes NaN
        lines = [line for line in curve.validations if name in line]
        if lines:
            right.plot(column(lines, "step"), column(lines, str(name)), marker=".", label=curve.name)
        stills += [line[f"{name}_repeat_reference"] for line in lines if f"{name}_repeat_reference" in line]
    if stills:
        right.axhline(stills[-1], linestyle=":", color=MARK, label="reference repeated")
    of = f"{curves[0].name}: " if len(curves) == 1 else ""
    left.set(title=f"{of}training loss, smoothed", xlabel="step", ylabel="loss")
    plain_log(left)
    seen = "clips never trained on" if name else "no validation yet"
    right.set(title=f"{of}{seen}", xlabel="step", ylabel=UNITS.get(str(name), ""))
    for axes in (left, right):
        if len(axes.lines) > 1:
            axes.legend()


def table_of(summaries: Mapping[str, RunSummary]) -> Table:
    """A column for each run, a line for each number."""
    ones = summaries.values()
    lines: dict[str, list[str]] = {
        "steps": [f"{one.steps:,}" for one in ones],
        "hours": [f"{one.hours:.2f}" for one in ones],
        "seconds a step": [f"{one.step_seconds:.2f}" for one in ones],
        "waiting for clips": ["–" if one.waiting is None else f"{one.waiting:.1%}" for one in ones],
        "clips prepared in": [
            "–" if one.prepare_seconds is None else f"{one.prepare_seconds:.0f} s" for one in ones
        ],
        "loss at first": [f"{one.loss_begin:.4g}" for one in ones],
        "loss at last": [f"{one.loss_end:.4g}" for one in ones],
    }
    for name in dict.fromkeys(name for one in ones for name in one.validation):
        values = (one.validation.get(name) for one in ones)
        lines[name] = ["–" if value is None else f"{value:.4g}" for value in values]
    table = Table("run", *(Column(name, justify="right", overflow="fold") for name in summaries))
    for head, cells in lines.items():
        table.add_row(head, *cells)
    return table


def main(
    runs: Annotated[list[Path], Argument(help="Folders of runs.")],
    output: Annotated[Path | None, Option(help="Picture to write: .png.")] = None,
    apart: Annotated[
        bool, Option(help="In the picture a row for each run, not all on the same axes.")
    ] = False,
    as_json: Annotated[bool, Option("--json", help="End with one line of JSON.")] = False,
) -> None:
    """Compare runs: what they did, and where their time went."""
    with explained():
        summaries = {str(run): summarize(run) for run in runs}
    console, names = Console(markup=False, highlight=False), list(summaries)
    for start in range(0, len(names), RUNS_A_TABLE):
        console.print(table_of({name: summaries[name] for name in names[start : start + RUNS_A_TABLE]}))
    if output is not None:
        curves = [read_curve(run) for run in runs]
        draw_curves([[curve] for curve in curves] if apart else [curves], output)
    if as_json:
        print(json.dumps({name: asdict(one) for name, one in summaries.items()}))


if __name__ == "__main__":
    typer.run(main)
