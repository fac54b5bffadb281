"""The doctor's report for people: a verdict, an advice, this machine, the bundles."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Column, Table

from ..errors import counted
from .machine import GpuInfo, Host
from .prediction import Prediction, best
from .report import Outlook, Report


def show(report: Report, console: Console, *, asked: str = "") -> None:
    """Print a report; `asked` is the bundle that it was asked about, whose ways to run are all listed."""
    for line in verdict(report, asked):
        console.print(line)
    console.print()
    for name, text in _machine(report):
        console.print(f"{name:9} {text}")
    console.print(_bundles(report))
    for outlook in report.outlooks:
        if asked:
            console.print(_ways(outlook))
        told = [outlook.problem, outlook.remedy]
        if outlook.needs and (outlook.runs or outlook.device != "CPU"):
            told.append(f"It fits with {outlook.needs}.")
        if any(told):
            console.print(f"{outlook.bundle} on {outlook.device}: {' '.join(filter(None, told))}")
    for line in (*report.damaged, *report.advice):
        console.print(line)


def verdict(report: Report, asked: str) -> tuple[str, str]:
    """One line that says what runs here, and one that says what to do next."""
    running = [outlook for outlook in report.outlooks if outlook.runs]
    if not running:
        first = report.outlooks[0] if report.outlooks else None
        if first is None:
            return "No bundle was found.", "Build one: mimicmotion-trt build --help"
        return f"{asked or first.bundle} does not run here: {first.problem}", first.remedy
    fastest = min(running, key=lambda outlook: outlook.device == "CPU")
    time = "" if fastest.seconds is None else f" in about {_duration(fastest.seconds)}"
    name, needs = asked or fastest.bundle, f" {fastest.needs}" if fastest.needs else ""
    todo = f"mimicmotion-trt animate person.jpg dance.mp4 -o out.mp4 --bundle {name}{needs}"
    return f"{name} runs here on {_device(fastest)}: {_job(fastest)}{time}.", f"Use it: {todo}"


def _machine(report: Report) -> Iterator[tuple[str, str]]:
    host, gpus = report.host, report.gpus
    yield "CPU", f"{host.cpu}, {host.cores} cores, {_memory(host)}"
    for gpu in gpus.found:
        capability = ".".join(map(str, gpu.capability))
        yield "GPU", f"{gpu.name}, compute capability {capability}, {_memory(gpu)}"
    if not gpus.found:
        yield "GPU", f"none: {gpus.problem}" if gpus.problem else "none"
    if gpus.driver:
        yield "driver", f"{gpus.driver}, for CUDA up to {gpus.cuda}"
    yield "installed", ", ".join(f"{name} {version}" for name, version in host.packages.items())
    speeds = {outlook.device: outlook.assumption for outlook in report.outlooks if outlook.runs}
    for device, speed in speeds.items():
        yield "speed", f"{device}: {speed}"


def _bundles(report: Report) -> Table:
    """Each bundle on each device: whether it runs, and what the video that was asked about needs."""
    caption = "Memory and times are estimates; finding poses and writing the video come on top."
    table = plain_table("bundle", "device", "runs", "video", "GB", "time", caption=caption)
    for outlook in report.outlooks:
        chosen = best(outlook.choices) or (outlook.choices[-1] if outlook.choices else None)
        runs, time = ("yes", _duration(outlook.seconds)) if outlook.runs else ("no", "–")
        memory = "–" if chosen is None else _gigabytes(chosen)
        table.add_row(outlook.bundle, outlook.device, runs, _job(outlook), memory, time)
    return table


def _ways(outlook: Outlook) -> Table:
    """The ways to run a bundle on a device, the best first."""
    caption = (
        "Segment: frames denoised together. Rows: of the U-Net in one call. Chunk: frames decoded together."
    )
    table = plain_table("ways to run it", "segment", "rows", "chunk", "GB", "time", caption=caption)
    chosen = best(outlook.choices)
    for choice in outlook.choices:
        fits, time = choice.why or ("the best" if choice is chosen else "fits"), "–"
        if outlook.runs and outlook.seconds is not None and choice.fits and chosen:
            time = _duration(outlook.seconds * choice.cost.total / chosen.cost.total)
        counts = map(str, (choice.segment, choice.rows, choice.decode_chunk))
        table.add_row(fits, *counts, _gigabytes(choice), time)
    return table


def plain_table(*columns: str, caption: str = "") -> Table:
    """A table as all commands print it: a narrow terminal folds its cells and cuts nothing off."""
    folding = [Column(name, overflow="fold") for name in columns]
    return Table(*folding, box=box.SIMPLE_HEAD, pad_edge=False, caption=caption, caption_justify="left")


def _job(outlook: Outlook) -> str:
    width, height = outlook.size
    return f"{counted(outlook.frames, 'frame')} of {width}x{height}, {counted(outlook.steps, 'step')}"


def _device(outlook: Outlook) -> str:
    return "the CPU" if outlook.device == "CPU" else outlook.device


def _gigabytes(choice: Prediction) -> str:
    streamed = f" (+{choice.memory.streamed / 1e9:.2g} streamed)" if choice.memory.streamed else ""
    return f"{choice.memory.total / 1e9:.2g}{streamed}"


def _memory(device: Host | GpuInfo) -> str:
    return f"{device.memory_free / 1e9:.1f} of {device.memory_total / 1e9:.1f} GB of memory free"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "not known"
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.2g} s" if seconds < 100 else f"{seconds:.0f} s"
