"""The stages of `gpu_check.py`: each proves or times one thing, in parts that add figures as they have them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gpu_golden import golden_bundle, golden_errors, relative_error
from gpu_kernels import Amount, check_kernels, time_kernels
from gpu_networks import REAL, SMALL
from gpu_place import Figures, Part, Place
from gpu_real import RealLoops, decode_parts
from gpu_tensorrt import real_parts, tensorrt_parts

from mimicmotion_trt import Animator, Limits
from mimicmotion_trt.cuda.compiler import compile_kernels
from mimicmotion_trt.cuda.device import CudaDevice
from mimicmotion_trt.engines.cuda_memory import Gpu, open_gpu
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
    """Two jobs of one shape, sampled and decoded: one after the other, and at once in one engine process.

    On a GPU their rows share the steps' graphs and one is decoded while the other is denoised. Company may change
    a job's last bits only: by at most what is told, relative L2.
    """

    def compared() -> Iterator[Figures]:
        bundle = machine.bundle or machine.golden("fp32")
        latents, seconds = {}, {}
        for jobs in (1, 2):
            with Animator.load(bundle, limits=Limits(jobs=jobs)) as animator:
                latents[jobs], seconds[jobs] = time_jobs(animator, jobs)
        error = max(relative_error(b, a) for a, b in zip(*latents.values(), strict=True))
        if error > 1e-4:
            raise AssertionError(f"in company the latents are others: relative L2 {error:.1e}")
        yield {
            "apart_s": seconds[1],
            "at_once_s": seconds[2],
            "ratio": seconds[1] / seconds[2],
            "rel_l2": error,
        }

    return {"compared": compared}


def time_jobs(animator: Animator, at_once: int, runs: int = 3) -> tuple[list[Any], float]:
    """The latents of two jobs of other seeds, and the fastest time of both together; the first is not timed."""
    picture, poses = chance_inputs(animator)

    def job(seed: int) -> Any:
        latents = animator.sample(picture, poses, animator.settings(steps=3, seed=seed))
        animator.decode(latents)
        return latents

    best, latents = float("inf"), []
    with ThreadPoolExecutor(at_once) as threads:
        for run in range(runs):
            began = time.perf_counter()
            latents = list(threads.map(job, (1, 2)))
            best = min(best, time.perf_counter() - began) if run else best
    return latents, best


def chance_inputs(animator: Animator) -> tuple[Any, Any]:
    """A picture and 17 pose pictures of chance, of the bundle's first size."""
    width, height = animator.manifest.sizes[0]
    chance = np.random.default_rng(0)
    picture = chance.integers(0, 255, (height, width, 3), np.uint8)
    return picture, chance.integers(0, 255, (17, height, width, 3), np.uint8)


def time_samples(animator: Animator, runs: int = 4) -> tuple[float, list[bytes]]:
    """The fastest of some runs of one seed, of which the first is not timed; and the latents of each."""
    picture, poses = chance_inputs(animator)
    settings = animator.settings(steps=3, seed=1)
    best, answers = float("inf"), []
    for run in range(runs):
        began = time.perf_counter()
        answers.append(animator.sample(picture, poses, settings).tobytes())
        best = min(best, time.perf_counter() - began) if run else best
    return best, answers


def golden(machine: Machine) -> Mapping[str, Part]:
    """The reference's own latents against ours, in float32 and in float16, on the graphs of this machine's device."""

    def compared(precision: str) -> Iterator[Figures]:
        errors = golden_errors(machine.golden(precision), precision)
        yield {f"{case}_{precision}": error for case, error in errors.items()}

    return {precision: partial(compared, precision) for precision in ("fp32", "fp16")}


def kernels(machine: Machine) -> Mapping[str, Part]:
    """Every kernel against numpy, and the bandwidth of the large ones against a copy's."""

    def run(dtype: str) -> Iterator[Figures]:
        device = CudaDevice(machine.on, dtype)
        for figures in (*check_kernels(device, dtype), *time_kernels(device, dtype, Amount())):
            yield {f"{dtype}_{name}": value for name, value in figures.items()}
        device.close()

    return {dtype: partial(run, dtype) for dtype in ("float16", "float32")}


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
    "tensorrt-real": Stage(
        "the same U-Net as a plan of TensorRT or TensorRT-RTX",
        lambda m: real_parts(Place.of(m.on, "float16"), REAL, 16, m.on, m.work),
    ),
    "decode": Stage("the real VAE decoder", lambda m: decode_parts(Place.of(m.on, "float16"), REAL)),
    "loop-72": Stage("1.5 billion weights, one segment of 72 frames", real_loops(72)),
}
