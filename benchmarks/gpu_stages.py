"""The stages of `gpu_check.py`: each proves or times one thing, in parts that add figures as they have them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

from gpu_golden import golden_bundle, golden_errors
from gpu_jobs import time_samples, two_jobs_parts
from gpu_kernels import CHECKS, TIMED, Amount, check_kernel, time_kernel
from gpu_networks import REAL, SMALL
from gpu_place import Figures, Part, Place, named, tidied
from gpu_plan import RealPlan, real_plan
from gpu_real import RealLoops, decode_parts
from gpu_tensorrt import tensorrt_parts

from mimicmotion_trt import Animator
from mimicmotion_trt.cuda.compiler import compile_kernels
from mimicmotion_trt.cuda.launches import Device, open_device
from mimicmotion_trt.engines.cuda import Gpu, open_gpu
from mimicmotion_trt.errors import BundleError

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
SMALL_BOUND = 1e-4
"""Largest relative L2 error of a small float32 loop of ours against the plain one."""


@dataclass(frozen=True)
class Machine:
    """Where the stages run."""

    gpu: Gpu | None
    name: str
    why: str
    """Why there is no GPU."""
    bundle: str
    work: Path
    """Folder for what is built; what is there already is not built again."""

    @classmethod
    def look(cls, index: int, bundle: str, work: Path) -> Machine:
        """The GPU of that number, if there is one."""
        try:
            gpu = open_gpu(index)
        except BundleError as error:
            return cls(None, "cpu", str(error), bundle, work)
        return cls(gpu, gpu.name, "", bundle, work)

    @property
    def on(self) -> Gpu:
        """The GPU, of a stage that needs one."""
        assert self.gpu is not None
        return self.gpu

    def golden(self, precision: str) -> Path:
        """A bundle of the golden networks: of PyTorch on a GPU, which is there wherever this script is."""
        backend = "onnxruntime" if self.gpu is None else "torch"
        return golden_bundle(self.work / f"golden-{backend}-{precision}", backend, precision)


@dataclass(frozen=True)
class Stage:
    """One of them."""

    says: str
    parts: Callable[[Machine], Mapping[str, Part]]
    needs_gpu: bool = True


def cubins(machine: Machine) -> Mapping[str, Part]:
    """The kernels compile for every architecture; needs no GPU."""

    def compiled(arch: str) -> Iterator[Figures]:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as fresh:  # the cache proves nothing
            sizes = [len(compile_kernels(arch, dtype, Path(fresh))) for dtype in ("float16", "float32")]
        yield {f"{arch}_bytes": sum(sizes), f"{arch}_s": round(time.perf_counter() - began, 3)}

    return {arch: partial(compiled, arch) for arch in ARCHITECTURES}


def same_bytes(machine: Machine) -> Mapping[str, Part]:
    """Runs of one seed give the same bytes: on a GPU with captured graphs and without, on a CPU twice.

    Of the bundle given, or of the golden networks.
    """

    def compared() -> Iterator[Figures]:
        bundle, first = machine.bundle or machine.golden("fp32"), b""
        for name, graphs in (("graphs", True), ("plain", False)) if machine.gpu else (("cpu", True),):
            with Animator.load(bundle, graphs=graphs) as animator:
                took, answers = time_samples(animator)
            first = first or answers[0]
            if any(answer != first for answer in answers):
                raise AssertionError(f"runs of one seed differ ({name})")
            yield {f"sample_{name}_s": took}
        yield {"same": True}

    return {"compared": compared}


def two_jobs(machine: Machine) -> Mapping[str, Part]:
    """Two jobs apart, at once, and in one step program; of the bundle given, or of the golden networks."""
    return two_jobs_parts(lambda: machine.bundle or machine.golden("fp32"))


def golden(machine: Machine) -> Mapping[str, Part]:
    """The reference's own latents against ours, in float32 and in float16, on the graphs of this machine's device."""

    def compared(precision: str) -> Iterator[Figures]:
        errors = golden_errors(machine.golden(precision), precision)
        yield {f"{case}_{precision}": error for case, error in errors.items()}

    return {precision: partial(compared, precision) for precision in ("fp32", "fp16")}


def kernels(machine: Machine) -> Mapping[str, Part]:
    """Every kernel against numpy, then the bandwidth of the large ones against a copy's; each is a part."""

    def run(dtype: str, work: Callable[[Device], Figures]) -> Iterator[Figures]:
        with closing(open_device(machine.on, dtype)) as device:
            yield work(device)

    parts: dict[str, Part] = {}
    dtypes = ("float16", "float32")
    for dtype, name in product(dtypes, CHECKS):
        parts[f"{dtype} {name}"] = partial(run, dtype, partial(check_kernel, dtype=dtype, name=name))
    for dtype, name in product(dtypes, TIMED):
        timed = partial(time_kernel, dtype=dtype, name=name, amount=Amount())
        parts[f"{dtype} {name} bandwidth"] = partial(run, dtype, timed)
    return {name: partial(named, name.split()[0], part) for name, part in parts.items()}


def small_loops(machine: Machine) -> Mapping[str, Part]:
    """The loops of the real size on small networks in float32, ours close to the plain one's latents."""
    place = Place.of(machine.gpu, "float32")
    parts = RealLoops(place, SMALL, 6).parts()
    return {name: partial(close_enough, part) for name, part in parts.items()}


def close_enough(part: Part) -> Iterator[Figures]:
    """The figures as they come; AssertionError for latents that are not the plain loop's."""
    for figures in part():
        for name, value in figures.items():
            if name.endswith("_rel_l2") and not value <= SMALL_BOUND:
                raise AssertionError(f"{name} is {value:.1e}")
        yield figures


def real_loops(frames: int) -> Callable[[Machine], Mapping[str, Part]]:
    """The real size with random weights: the plain loop, and ours with each step switched on in turn."""
    return lambda machine: RealLoops(Place.of(machine.on, "float16"), REAL, frames).parts()


def plan_of(machine: Machine, place: Place, frames: int) -> RealPlan:
    """The real U-Net as a plan for this GPU."""
    return real_plan(place, REAL, frames, machine.on, machine.work)


def real_plans(frames: int) -> Callable[[Machine], Mapping[str, Part]]:
    """The same on a plan of TensorRT or TensorRT-RTX."""
    return lambda machine: plan_of(machine, Place.of(machine.on, "float16"), frames).parts()


def gaps(machine: Machine) -> Mapping[str, Part]:
    """How much of a captured step the GPU is idle, of each loop. Last: PyTorch's profiler stays in the process."""
    place = Place.of(machine.on, "float16")

    def on_plan(frames: int) -> Iterator[Figures]:
        yield from plan_of(machine, place, frames).gaps()

    parts: dict[str, Part] = {
        "loop-16": RealLoops(place, REAL, 16).own_gaps,
        "tensorrt-real": partial(on_plan, 16),
        "loop-72": RealLoops(place, REAL, 72).own_gaps,
        "tensorrt-real-72": partial(on_plan, 72),
    }
    return tidied(place, {name: partial(named, name, part) for name, part in parts.items()})


STAGES: dict[str, Stage] = {
    "cubins": Stage("the kernels for every architecture", cubins, needs_gpu=False),
    "same-bytes": Stage("one seed, the same bytes", same_bytes, needs_gpu=False),
    "two-jobs": Stage("two jobs at once against one after the other", two_jobs, needs_gpu=False),
    "golden": Stage("the reference's golden runs in float32 and float16", golden, needs_gpu=False),
    "loop-small": Stage("the loops of the real size on small networks", small_loops, needs_gpu=False),
    "kernels": Stage("every kernel against numpy, and the bandwidth of the large ones", kernels),
    "tensorrt": Stage(
        "TensorRT, TensorRT-RTX on the golden networks", lambda m: tensorrt_parts(m.on, m.work)
    ),
    "loop-16": Stage("1.5 billion weights, 1024x576, one segment of 16 frames", real_loops(16)),
    "tensorrt-real": Stage("the same U-Net as a plan of TensorRT or TensorRT-RTX", real_plans(16)),
    "decode": Stage("the real VAE decoder", lambda m: decode_parts(Place.of(m.on, "float16"), REAL)),
    "loop-72": Stage("1.5 billion weights, one segment of 72 frames", real_loops(72)),
    "tensorrt-real-72": Stage("the same U-Net as a plan, one segment of 72 frames", real_plans(72)),
    "gaps": Stage("how much of a step of these loops the GPU is idle", gaps),
}
