"""What the benchmarks share: inputs, tables in pages of docs/, and figures that are written as they come."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import platform
import re
import resource
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console

from mimicmotion_trt.files import write_atomic
from mimicmotion_trt.media.picture import fit_picture, read_picture
from mimicmotion_trt.pose import PoseSequence
from mimicmotion_trt.training.plots import COLOURS, drawn

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PERSON = ROOT / "demo" / "person.jpg"
MOTION = ROOT / "demo" / "balance.npz"
PACKAGES = ("torch", "cuda-core", "nvidia-cuda-nvrtc", "tensorrt-cu13", "tensorrt-rtx-cu13", "numpy")

T = TypeVar("T")

AsJson = Annotated[bool, typer.Option("--json", help="Print the JSON line only.")]
BundleName = Annotated[str, typer.Option(help="Bundle, by name or folder.")]

# ---- inputs and measures ----


def keypoints(frames: int) -> PoseSequence:
    """The demo's motion, run forth and back until there are `frames` of it."""
    poses = PoseSequence.load(MOTION)
    period = np.concatenate([np.arange(len(poses)), np.arange(len(poses) - 2, 0, -1)])
    return poses.take(period[np.arange(frames) % len(period)])


def driving_video(path: Path, frames: int, size: tuple[int, int] = (480, 854), fps: float = 15.0) -> Path:
    """A video of the demo's person swaying: for what pose estimation and decoding cost, not for looks."""
    from mimicmotion_trt.media.writer import VideoWriter  # needs PyAV, which a GPU machine may lack

    person = fit_picture(read_picture(PERSON), size[0] + 64, size[1])
    with VideoWriter(path, fps=fps, size=size) as writer:
        for index in range(frames):
            left = round(32 + 30 * np.sin(index / 5))
            writer.write(np.ascontiguousarray(person[:, left : left + size[0]]))
    return path


def picture(size: tuple[int, int]) -> NDArray[np.uint8]:
    """The demo's person, uint8 [H,W,3] of `size` (width, height)."""
    return fit_picture(read_picture(PERSON), *size)


def timed(work: Callable[[], Any]) -> float:
    """Seconds that a piece of work takes; on a GPU it has to wait for what it begins."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def in_own_process(work: Callable[..., T], *arguments: Any) -> T:
    """What a function answers in a new process, whose peak memory is the function's own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def peak_mib() -> float:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# ---- tables in pages: between <!-- NAME: begin --> and <!-- NAME: end --> ----


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as lines of markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [headers, ["---"] * len(headers), *rows])


def with_table(text: str, name: str, table: str) -> str:
    """The page with what stands between the marks replaced; ValueError if it lacks them."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = text.partition(begin)
    _, mark, after = rest.partition(end)
    if not mark:
        raise ValueError(f"the page lacks {begin} … {end}")
    return f"{before}{begin}\n{table}\n{end}{after}"


# ---- figures that are written as they come ----

Figures = Mapping[str, Any]
Part = Callable[[], Iterable[tuple[str, Figures]]]
"""Measures something; yields (name of the row, its figures) as it has them."""


@dataclass(frozen=True)
class Record:
    """What a run has found so far. Its file is one line of JSON, written again after every figure."""

    path: Path
    found: dict[str, Any]

    @classmethod
    def begin(cls, results: Path, benchmark: str, machine: str, **head: Any) -> Record:
        """A new one, in a file that is named by benchmark, machine and date."""
        slug = re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")
        path = results / f"{benchmark}-{slug}-{date.today().isoformat()}.json"
        return cls(path, {"machine": machine, "versions": versions(), **head, "rows": {}, "left": {}})

    def add(self, group: str, row: str, figures: Figures) -> None:
        """More figures of a row."""
        self.found["rows"].setdefault(group, {}).setdefault(row, {}).update(figures)
        self.save()

    def leave(self, group: str, part: str, why: str) -> None:
        """A part that found nothing more, and why."""
        self.found["left"].setdefault(group, {})[part] = why
        self.save()

    def save(self) -> None:
        """Write all that was found."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path, self.line + "\n")

    @property
    def line(self) -> str:
        """All that was found as one line of JSON."""
        return json.dumps(self.found)

    def plot(self, groups: Mapping[str, Mapping[str, float]], label: str, console: Console) -> None:
        """Draw a panel of bars for each group beside the file, if there is anything to draw, and matplotlib."""
        groups = {name: values for name, values in groups.items() if values}
        if not groups or importlib.util.find_spec("matplotlib") is None:
            return
        picture, heights = self.path.with_suffix(".png"), [len(values) + 1 for values in groups.values()]
        size = (8, 0.35 * sum(heights) + len(heights))
        with drawn(picture, len(groups), 1, size, height_ratios=heights) as axes:
            for axis, (name, values) in zip(axes[:, 0], groups.items(), strict=True):
                bars = axis.barh(list(values), list(values.values()), color=COLOURS[0])
                axis.bar_label(bars, fmt="{:.3g}", padding=3)
                axis.set(title=f"{name}, {self.found['machine']}", xlabel=label)
                axis.grid(visible=False, axis="y")
                axis.invert_yaxis()
        console.print(str(picture))


def run_parts(
    parts: Iterable[tuple[str, str, Part]],
    record: Record,
    console: Console,
    minutes: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Run parts (group, name, part) in order; none begins after `minutes`, and one that fails costs no other."""
    began = clock()
    for group, name, part in parts:
        if minutes is not None and clock() - began >= 60 * minutes:
            record.leave(group, name, "no time was left")
            continue
        try:
            for row, figures in part():
                record.add(group, row, figures)
                console.print(f"{group}, {row}: {', '.join(f'{k} {shown(v)}' for k, v in figures.items())}")
        except Exception as error:  # out of memory, a library that is missing: the others may run
            record.leave(group, name, f"{type(error).__name__}: {error}")
            console.print(f"{group}, {name}: {type(error).__name__}: {error}", style="red")


def shown(value: Any) -> str:
    """A figure for people."""
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def versions() -> dict[str, str]:
    """Python, and what is installed of the packages that matter on a GPU."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
