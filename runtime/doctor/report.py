"""What this machine is, which bundles run on it, what is missing, and what an animation would cost here."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..bundles import list_bundles, load_bundle, own_settings
from ..engines import Bundle
from ..engines.tensorrt_checks import for_gpu
from ..engines.tensorrt_library import DISTRIBUTIONS, EXTRAS
from ..errors import BundleError, EngineError, SettingsError
from ..flags import parse_size
from ..settings import Settings
from .fitness import ON_CPU, command_for, cpu_problem, gpu_problem, obstacle, shape_problem, shapes_of
from .gpus import EFFICIENCY, MINIMUM_DRIVER, GpuInfo, Gpus, Nvml
from .host import Host, Throughput, time_engine, time_product
from .prediction import MIMICMOTION, Choice, Model, best, choices

CONTEXT = 700 * 2**20
"""Bytes of GPU memory for the CUDA context and TensorRT's own kernels, an assumption."""
FPS = 15
"""Frames a second of a video made from a usual one of 30: the stride is 2 then."""

MOST_JOBS = 1000
"""Jobs at once that may be asked about."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of every bundle; None takes the bundle's own size, and one segment of frames.

    Raises `SettingsError` when built with numbers that no animation takes.
    """

    size: tuple[int, int] | None = None
    frames: int | None = None
    jobs: int = 1
    """Jobs at once."""

    def __post_init__(self) -> None:
        Settings(size=self.size, frames=self.frames)  # what an animation takes
        if type(self.jobs) is not int or not 1 <= self.jobs <= MOST_JOBS:
            raise SettingsError(f"jobs is {self.jobs!r}.", remedy=f"Ask for 1 to {MOST_JOBS}.", field="jobs")

    @classmethod
    def parse(cls, size: str, frames: int | None, seconds: float | None, jobs: int = 1) -> Question:
        """Of what a command line says; raises `SettingsError`."""
        if frames is not None and seconds is not None:
            raise SettingsError("--frames and --seconds say the same.", remedy="Give one of them.")
        if seconds is not None:
            if not 0 < seconds < math.inf:
                raise SettingsError(f"seconds is {seconds}.", remedy="Give more than 0.", field="seconds")
            frames = max(1, round(seconds * FPS))
        return cls(parse_size(size) if size else None, frames, jobs)


@dataclass(frozen=True, slots=True)
class Outlook:
    """One bundle on one device."""

    bundle: str
    device: str
    runs: bool
    """Whether it does as it is, with what the first choice that fits says."""
    says: str
    """Why it does not, what to do, and settings that it needs to fit."""
    size: tuple[int, int]
    frames: int
    steps: int
    choices: tuple[Choice, ...]
    """Ways to run it, the best first; where it has to be rebuilt, of what the command builds."""
    seconds: float | None
    """Predicted for the first choice that fits; None if none does or the device's speed is not known."""
    assumption: str
    """How the device's speed is known."""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything the doctor found."""

    host: Host
    gpus: Gpus
    outlooks: tuple[Outlook, ...]
    damaged: tuple[str, ...]
    """Bundles that are there but cannot be used, each with the reason."""
    advice: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; sizes in bytes, operations in FLOPs."""
        values = asdict(self)
        for outlook, raw in zip(self.outlooks, values["outlooks"], strict=True):
            for choice, plain in zip(outlook.choices, raw["choices"], strict=True):
                plain["memory"]["total"], plain["cost"]["total"] = choice.memory.total, choice.cost.total
        return values


def examine(
    bundle: str = "", question: Question | None = None, *, nvml: Nvml | None = None, host: Host | None = None
) -> Report:
    """Look at the machine and at one bundle, or at all that are found and the full-size model.

    Raises `BundleError` if the one named cannot be used and `SettingsError` if it cannot make what is asked; a
    machine without a GPU is no error.
    """
    question = question or Question()
    host, gpus = host or Host.read(), (nvml or Nvml()).read()
    damaged: list[str] = []
    outlooks: list[Outlook] = []
    for folder in [bundle] if bundle else list_bundles():
        try:
            outlooks += tuple(_bundle_outlooks(load_bundle(folder), question, host, gpus))
        except (BundleError, EngineError) as error:
            if bundle:
                raise
            said = str(error)
            damaged.append(said if str(folder) in said else f"{folder}: {said}")
    if not bundle:
        outlooks += _model_outlooks(question, host, gpus)
    return Report(host, gpus, tuple(outlooks), tuple(damaged), tuple(_advice(host, gpus)))


def _bundle_outlooks(bundle: Bundle, question: Question, host: Host, gpus: Gpus) -> Iterator[Outlook]:
    manifest, name = bundle.manifest, bundle.folder.resolve().name
    settings, frames = _job(own_settings(bundle), question)
    unfit = shape_problem(manifest, settings, frames)
    if not manifest.reuses:
        settings = replace(settings, reuse_interval=1)  # what can be counted
    model, rows = Model.of(manifest), manifest.rows
    if manifest.backend in ON_CPU or not gpus.found:
        says = cpu_problem(bundle, host) or unfit
        speed = time_engine(bundle, settings, frames) or time_product()
        built = model if manifest.backend == "torch" else model.widened()
        found = choices(built, settings, frames, rows, host.memory_free, question.jobs)
        yield _outlook(name, "CPU", not says, says, settings, frames, found, speed)
    for gpu in gpus.found:
        says = gpu_problem(bundle, gpu, gpus, host) or unfit
        built = model if manifest.backend == "torch" else model.halved()
        shapes = None if says else shapes_of(manifest)  # one that is rebuilt takes what is asked
        free = gpu.memory_free - CONTEXT
        found = choices(built, settings, frames, rows, free, question.jobs, gpu=True, shapes=shapes)
        peak = _speed(gpu) if built.value_bytes == 2 else None  # what is known is that of half precision
        yield _outlook(name, gpu.name, not says, says, settings, frames, found, peak)


def _model_outlooks(question: Question, host: Host, gpus: Gpus) -> Iterator[Outlook]:
    """The full-size model, whether or not it has been built here."""
    settings, frames = _job(Settings(segment=72, size=(576, 1024)), question)
    for gpu in gpus.found:
        found = choices(
            MIMICMOTION, settings, frames, (1, 2, 4), gpu.memory_free - CONTEXT, question.jobs, gpu=True
        )
        options = for_gpu(f"--backend {gpu.flavour}", gpu.sm, gpu.flavour == "tensorrt-rtx")
        command = command_for(options, Path(f"bundles/mm11-{gpu.flavour}"))
        says = obstacle(gpu, gpu.flavour, gpus, host) or f"build it: {command}"
        yield _outlook("MimicMotion 1.1", gpu.name, False, says, settings, frames, found, _speed(gpu))
    if not gpus.found:
        found = choices(MIMICMOTION.widened(), settings, frames, (1, 2, 4), host.memory_free, question.jobs)
        says = "not built here; at full size a GPU is needed"
        yield _outlook("MimicMotion 1.1", "CPU", False, says, settings, frames, found, time_product())


def _job(own: Settings, question: Question) -> tuple[Settings, int]:
    settings = replace(own, size=question.size or own.size)
    return settings, question.frames or (settings.segment or 2) - 1


def _outlook(
    bundle: str,
    device: str,
    runs: bool,
    says: str,
    settings: Settings,
    frames: int,
    found: list[Choice],
    speed: Throughput | None,
) -> Outlook:
    assert settings.size is not None
    chosen = best(found)
    if chosen is None:
        runs, short = False, f"no way to run it fits ({found[-1].why}): choose a smaller size or fewer frames"
        says = f"{short}; {says}" if says else short
    elif needed := _needed(settings, found[0], chosen):
        says = f"{says}; {needed}" if says else needed
    return Outlook(
        bundle=bundle,
        device=device,
        runs=runs,
        says=says,
        size=settings.size,
        frames=frames,
        steps=settings.steps,
        choices=tuple(found),
        seconds=chosen.cost.seconds(speed.flops) if chosen and speed else None,
        assumption=_rate(speed) if speed else "the device's speed is not known",
    )


def _needed(settings: Settings, usual: Choice, chosen: Choice) -> str:
    """The settings with which a choice fits where the usual one does not."""
    flags = [f"--segment {chosen.segment}"] if chosen.segment != usual.segment else []
    if chosen.decode_chunk != settings.decode_chunk:
        flags.append(f"--decode-chunk {chosen.decode_chunk}")
    return f"it fits with {' '.join(flags)}" if flags else ""


def _speed(gpu: GpuInfo) -> Throughput | None:
    if gpu.peak is None:
        return None
    source = f"{EFFICIENCY:.0%} of {gpu.peak / 1e12:.0f} TFLOP/s fp16 ({gpu.peak_source})"
    return Throughput(gpu.peak * EFFICIENCY, source)


def _advice(host: Host, gpus: Gpus) -> Iterator[str]:
    if gpus.problem:
        yield f"{gpus.problem}."
    if not gpus.found:
        yield "Bundles for onnxruntime run on the CPU; nothing is missing for them."
        yield (
            "On a host with a GPU: pip install 'mimicmotion-trt[rtx]' where its name has RTX in it, "
            f"'mimicmotion-trt[gpu]' for others; both need an NVIDIA driver of r{MINIMUM_DRIVER} or newer."
        )
    for flavour in sorted({gpu.flavour for gpu in gpus.found if not gpu.too_old}):
        if DISTRIBUTIONS[flavour] not in host.packages:
            yield f"Install what runs engines here: pip install 'mimicmotion-trt[{EXTRAS[flavour]}]'."
    if len(gpus.found) > 1:
        yield f"{len(gpus.found)} GPUs: `mimicmotion-trt serve` runs one engine process for each --device given."


def show(report: Report, console: Console, *, every_choice: bool = False) -> None:
    """Print a report for people; `every_choice` lists the ways to run that are not the best, too."""
    host, gpus = report.host, report.gpus
    console.print(f"CPU: {host.cpu}, {host.cores} cores, {_free(host.memory_free, host.memory_total)}")
    for gpu in gpus.found:
        capability, memory = ".".join(map(str, gpu.capability)), _free(gpu.memory_free, gpu.memory_total)
        console.print(f"GPU: {gpu.name}, compute capability {capability}, {memory}")
    if gpus.driver:
        console.print(f"driver {gpus.driver}, for CUDA up to {gpus.cuda}")
    console.print("installed: " + ", ".join(f"{name} {v}" for name, v in host.packages.items()))
    table = Table("bundle", "device", "runs", "segment x rows", "chunk", "GB", "predicted")
    for outlook in report.outlooks:
        chosen = best(outlook.choices)
        listed = outlook.choices if every_choice else [chosen] if chosen else outlook.choices[-1:]
        for choice in listed:
            table.add_row(*_row(outlook, choice, chosen))
    console.print(table)
    for outlook in report.outlooks:
        job = f"{outlook.size[0]}x{outlook.size[1]}, {outlook.frames} frames, {outlook.steps} steps"
        console.print(f"{outlook.bundle} on {outlook.device}: {job}; {outlook.assumption}")
        if outlook.says:
            console.print(f"    {outlook.says}")
    for line in (*report.damaged, *report.advice):
        console.print(line)
    console.print("Memory and seconds are estimates; finding poses and video files come on top.")


def _row(outlook: Outlook, choice: Choice, chosen: Choice | None) -> tuple[str, ...]:
    runs = ("yes" if outlook.runs else "no") if choice.fits else choice.why
    seconds = ""
    if outlook.seconds is not None and choice.fits and chosen:
        seconds = _duration(outlook.seconds * choice.cost.total / chosen.cost.total)
    shape, memory = f"{choice.segment} x {choice.rows}", f"{choice.memory.total / 1e9:.2g}"
    if choice.memory.streamed:
        memory += f" (+{choice.memory.streamed / 1e9:.2g} streamed)"
    return outlook.bundle, outlook.device, runs, shape, str(choice.decode_chunk), memory, seconds


def _free(free: int | None, total: int | None) -> str:
    if free is None or total is None:
        return "memory unknown"
    return f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"


def _rate(speed: Throughput) -> str:
    large = speed.flops >= 1e12
    return f"{speed.flops / (1e12 if large else 1e9):.3g} {'T' if large else 'G'}FLOP/s: {speed.source}"


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.2g} s"
