"""What this machine is, which bundles run on it, what is missing, and what an animation would cost here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Annotated, Any

from ..bundles import list_bundles, load_bundle, own_settings
from ..denoise.cost import MIMICMOTION, ModelStats
from ..denoise.shapes import EngineShapes
from ..engines import Bundle
from ..engines.bundle import COMMAND
from ..engines.tensorrt_library import DISTRIBUTIONS, EXTRAS
from ..errors import BundleError, EngineError, MimicMotionError, SettingsError
from ..pose.sampling import frames_of
from ..settings import Settings
from ..validation import Whole, checked
from .fitness import ON_CPU, check_clip, check_cpu, check_gpu, check_machine, fault_of, options_for
from .machine import MINIMUM_DRIVER, Gpus, Host, read_gpus, time_engine, time_product
from .prediction import Prediction, Throughput, best, predict

CPU_VALUE = 4
"""Bytes of a value on a CPU, in every precision: ONNX Runtime's CPU provider converts float16 to float32."""
CONTEXT = 700 * 2**20
"""Bytes of GPU memory for the CUDA context and TensorRT's own kernels, an assumption."""
FULL_SIZE = Settings(segment=72, size=(576, 1024))
"""MimicMotion's own segment and size."""


@checked(SettingsError)
@dataclass(frozen=True)
class Question:
    """What is asked about every bundle; None takes the bundle's own size, and one segment of frames.

    Raises `SettingsError` when built with numbers that no animation takes.
    """

    size: tuple[int, int] | None = None
    frames: int | None = None
    jobs: Annotated[int, Whole(1, 1000)] = 1
    """Jobs at once."""

    def __post_init__(self) -> None:
        Settings(size=self.size, frames=self.frames)  # checks both

    @classmethod
    def of(
        cls,
        size: tuple[int, int] | None,
        frames: int | None,
        seconds: float | None,
        jobs: int = 1,
        fps: float | None = None,
    ) -> Question:
        """With the length in frames or in seconds, at `fps` or 15 frames per second; raises `SettingsError`."""
        if frames is not None and seconds is not None:
            raise SettingsError("--frames and --seconds are both given.", remedy="Give one of them.")
        if seconds is not None:
            frames = frames_of(Settings(fps=fps), seconds)
        elif fps is not None:
            raise SettingsError(
                "--fps is given without --seconds.", remedy="Give the length, too.", field="fps"
            )
        return cls(size=size, frames=frames, jobs=jobs)

    def apply(self, own: Settings) -> tuple[Settings, int]:
        """A bundle's own settings in the size that is asked about, and the frames of the video."""
        return replace(own, size=self.size or own.size), self.frames or (own.segment or 2) - 1


@dataclass(frozen=True, slots=True)
class Outlook:
    """One bundle on one device."""

    bundle: str
    device: str
    runs: bool
    """Whether it runs as it is, with the first choice that fits."""
    problem: str
    remedy: str
    needs: str
    """Flags that make it fit into memory; empty if none are needed."""
    size: tuple[int, int]
    frames: int
    steps: int
    choices: tuple[Prediction, ...]
    """Ways to run it, the best first; where it has to be rebuilt, those of the rebuilt one."""
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
    bundle: str = "", question: Question | None = None, *, gpus: Gpus | None = None, host: Host | None = None
) -> Report:
    """Look at the machine and at one bundle, or at all that are found and the full-size model.

    `gpus` and `host` are this machine's unless given. Raises `BundleError` if the bundle named cannot be used and
    `SettingsError` if it cannot make what is asked; a machine without a GPU is no error.
    """
    question = question or Question()
    host, gpus = host or Host.read(), gpus or read_gpus()
    damaged: list[str] = []
    outlooks: list[Outlook] = []
    for folder in [bundle] if bundle else list_bundles():
        try:
            outlooks += tuple(_bundle_outlooks(load_bundle(folder), question, host, gpus))
        except (BundleError, EngineError) as error:
            if bundle:
                raise
            damaged.append(str(error) if str(folder) in str(error) else f"{folder}: {error}")
    if not bundle:
        outlooks += _model_outlooks(question, host, gpus)
    return Report(host, gpus, tuple(outlooks), tuple(damaged), tuple(_advice(host, gpus)))


def _bundle_outlooks(bundle: Bundle, question: Question, host: Host, gpus: Gpus) -> Iterator[Outlook]:
    manifest, name = bundle.manifest, bundle.folder.resolve().name
    settings, frames = question.apply(own_settings(bundle))
    fits_clip = partial(check_clip, manifest, settings, frames)
    if not manifest.reuses:
        settings = replace(settings, reuse_interval=1)  # so that its operations can be counted
    model, rows, jobs = ModelStats.of(manifest), manifest.rows, question.jobs
    if manifest.backend in ON_CPU or not gpus.found:
        fault = fault_of(partial(check_cpu, bundle, host), fits_clip)
        built = model if manifest.backend == "torch" else replace(model, value_bytes=CPU_VALUE)
        found = predict(built, settings, frames, rows, host.memory_free, jobs)
        speed = time_engine(bundle, settings, frames) or time_product()
        yield _outlook(name, "CPU", fault, settings, frames, found, speed)
    for gpu in gpus.found:
        fault = fault_of(partial(check_gpu, bundle, gpu, gpus, host), fits_clip)
        built = model if manifest.backend == "torch" else replace(model, value_bytes=2)
        shapes = EngineShapes.of(manifest)
        compiled = None if fault or not shapes.compiled else shapes  # a rebuilt bundle takes what is asked
        free = gpu.memory_free - CONTEXT
        found = predict(built, settings, frames, rows, free, jobs, gpu=True, shapes=compiled)
        peak = gpu.throughput if built.value_bytes == 2 else None  # the peak is that of half precision
        yield _outlook(name, gpu.name, fault, settings, frames, found, peak)


def _model_outlooks(question: Question, host: Host, gpus: Gpus) -> Iterator[Outlook]:
    """The full-size model, whether or not it has been built here."""
    name, rows, jobs = "MimicMotion 1.1", (1, 2, 4), question.jobs
    settings, frames = question.apply(FULL_SIZE)
    for gpu in gpus.found:
        free = gpu.memory_free - CONTEXT
        found = predict(MIMICMOTION, settings, frames, rows, free, jobs, gpu=True)
        fault = fault_of(partial(check_machine, gpu, gpu.flavour, gpus, host)) or BundleError(
            "not built yet.", remedy=f"Build it: {COMMAND} {options_for(gpu, gpu.flavour)}"
        )
        yield _outlook(name, gpu.name, fault, settings, frames, found, gpu.throughput)
    if not gpus.found:
        found = predict(
            replace(MIMICMOTION, value_bytes=CPU_VALUE), settings, frames, rows, host.memory_free, jobs
        )
        fault = BundleError("not built yet.", remedy="Use a machine with a GPU: a CPU is too slow for it.")
        yield _outlook(name, "CPU", fault, settings, frames, found, time_product())


def _outlook(
    bundle: str, device: str, fault: MimicMotionError | None, settings: Settings, frames: int,
    found: list[Prediction], speed: Throughput | None,
) -> Outlook:  # fmt: skip
    assert settings.size is not None
    chosen = best(found)
    if chosen is None and fault is None:
        fault = BundleError(
            f"no way to run it fits: {found[-1].why}.", remedy="Choose a smaller size or fewer frames."
        )
    return Outlook(
        bundle=bundle,
        device=device,
        runs=fault is None,
        problem=fault.message if fault else "",
        remedy=fault.remedy if fault else "",
        needs=_flags(found[0], chosen) if chosen else "",
        size=settings.size,
        frames=frames,
        steps=settings.steps,
        choices=tuple(found),
        seconds=chosen.cost.seconds(speed.flops) if chosen and speed else None,
        assumption=str(speed) if speed else "the device's speed is not known",
    )


def _flags(usual: Prediction, chosen: Prediction) -> str:
    """The flags with which a choice fits where the usual one does not."""
    names = ("segment", "decode_chunk")
    changed = {name: getattr(chosen, name) for name in names if getattr(chosen, name) != getattr(usual, name)}
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in changed.items())


def _advice(host: Host, gpus: Gpus) -> Iterator[str]:
    if gpus.problem and gpus.found:
        yield f"{gpus.problem}."
    if not gpus.found:
        yield "Bundles for ONNX Runtime run on the CPU; nothing is missing for them."
        yield (
            "On a host with a GPU: pip install 'mimicmotion-trt[rtx]' for GPUs with RTX in their name, "
            f"'mimicmotion-trt[gpu]' for others; both need an NVIDIA driver of r{MINIMUM_DRIVER} or newer."
        )
    for flavour in sorted({gpu.flavour for gpu in gpus.found if not gpu.too_old}):
        if DISTRIBUTIONS[flavour] not in host.packages:
            yield f"Install what runs engines here: pip install 'mimicmotion-trt[{EXTRAS[flavour]}]'."
    if len(gpus.found) > 1:
        yield f"{len(gpus.found)} GPUs: `mimicmotion-trt serve` runs one engine process for each --device given."
