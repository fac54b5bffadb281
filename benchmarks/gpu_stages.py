"""The stages of `gpu_check.py`: each proves or times one thing and returns its figures."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gpu_real import compare_loops, decode_frames, matmul_ceiling

from mimicmotion_trt import Animator, Limits, Settings
from mimicmotion_trt.cuda import launches
from mimicmotion_trt.cuda.compiler import compile_kernels
from mimicmotion_trt.cuda.device import CudaDevice
from mimicmotion_trt.engines.cuda_memory import Gpu, open_gpu
from mimicmotion_trt.errors import BundleError
from mimicmotion_trt.kernels import to_pictures
from mimicmotion_trt.segments import fusion_weights, plan_segments

GOLDEN = Path(__file__).parents[1] / "tests" / "data" / "golden" / "tiny"
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
Figures = dict[str, Any]


@dataclass(frozen=True)
class Machine:
    """Where the stages run."""

    gpu: Gpu | None
    name: str
    why: str
    """Why there is no GPU."""
    bundle: str

    @classmethod
    def look(cls, index: int, bundle: str) -> Machine:
        """The GPU of that number, if there is one."""
        try:
            gpu = open_gpu(index)
        except BundleError as error:
            return cls(None, "cpu", str(error), bundle)
        return cls(gpu, gpu.name, "", bundle)


@dataclass(frozen=True)
class Stage:
    """One of them."""

    says: str
    run: Callable[[Machine], Figures]
    needs_gpu: bool = True


def cubins(machine: Machine) -> Figures:
    """The kernels compile for every architecture; needs no GPU."""
    figures: Figures = {}
    for arch in ARCHITECTURES:
        began = time.perf_counter()
        sizes = [len(compile_kernels(arch, dtype)) for dtype in ("float16", "float32")]
        figures[f"{arch}_bytes"] = sum(sizes)
        figures[f"{arch}_s"] = round(time.perf_counter() - began, 3)
    return figures


def same_bytes(machine: Machine) -> Figures:
    """Runs of one seed give the same bytes: on a GPU with captured graphs and without, on a CPU twice.

    Of the bundle given, or of the golden networks; on a GPU these are PyTorch's, which is there wherever this
    script is.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = machine.bundle or build_golden(Path(folder), backend_of(machine), "fp32")
        seconds, first = {}, b""
        for name, graphs in (("graphs", True), ("plain", False)) if machine.gpu else (("cpu", True),):
            with Animator.load(output, graphs=graphs) as animator:
                took, answers = time_samples(animator)
            first = first or answers[0]
            if any(answer != first for answer in answers):
                raise AssertionError(f"runs of one seed differ ({name})")
            seconds[f"sample_{name}_s"] = took
    return {"same": True, **seconds, "device": machine.name}


def two_jobs(machine: Machine) -> Figures:
    """Two jobs of one shape, sampled and decoded: one after the other, and at once in one engine process.

    On a GPU their rows share the steps' graphs and one is decoded while the other is denoised. Company may change
    a job's last bits only: by at most what is told, relative L2.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = machine.bundle or build_golden(Path(folder), backend_of(machine), "fp32")
        latents, seconds = {}, {}
        for jobs in (1, 2):
            with Animator.load(output, limits=Limits(jobs=jobs)) as animator:
                latents[jobs], seconds[jobs] = time_jobs(animator, jobs)
    errors = [relative_error(b, a) for a, b in zip(*latents.values(), strict=True)]
    if max(errors) > 1e-4:
        raise AssertionError(f"in company the latents are others: relative L2 {max(errors):.1e}")
    return {
        "apart_s": seconds[1],
        "at_once_s": seconds[2],
        "ratio": seconds[1] / seconds[2],
        "rel_l2": max(errors),
        "device": machine.name,
    }


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


def backend_of(machine: Machine) -> str:
    """What runs the golden networks: PyTorch on a GPU, which is there wherever this script is."""
    return "onnxruntime" if machine.gpu is None else "torch"


def build_golden(folder: Path, backend: str, precision: str) -> Path:
    """A bundle of the golden networks."""
    from mimicmotion_trt.export.build import build_bundle
    from mimicmotion_trt.export.options import Options

    options = Options(
        backend=backend,
        precision=precision,
        sizes=((64, 128), (128, 64)),
        segment=16,
        defaults={"canvas": 512},
    )
    build_bundle(GOLDEN / "svd", GOLDEN / "mimicmotion.pth", folder / precision, options)
    return folder / precision


def golden(machine: Machine) -> Figures:
    """The reference's own latents against ours, in float32 and in float16, on the graphs of this machine's device."""
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for precision in ("fp32", "fp16"):
            with Animator.load(build_golden(Path(folder), backend_of(machine), precision)) as animator:
                for case in sorted(GOLDEN.glob("*.npz")):
                    figures[f"{case.stem}_{precision}"] = golden_error(animator, case)
    return figures


def golden_error(animator: Animator, case: Path) -> float:
    """Relative L2 error of the last latents of one golden run."""
    with np.load(case) as file:
        run = dict(file)
    given = json.loads(str(run.pop("settings")))
    keys = ("segment", "overlap", "steps", "noise_aug", "guidance", "decode_chunk")
    settings = Settings(**{key: given[key] for key in keys})
    latents = animator.sample(
        case.with_suffix(".png"),
        np.ascontiguousarray(run["pose_frames"].transpose(0, 2, 3, 1)),
        settings,
        initial_latents=run["initial_latents"][0],
        image_noise=run["image_noise"][0] if settings.noise_aug else None,
    )
    expected = run["latents_after_step"][-1]
    return relative_error(latents, expected)


def relative_error(found: Any, expected: Any) -> float:
    """Relative L2."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def kernels(machine: Machine) -> Figures:
    """Every kernel against numpy, and the bandwidth of the two large ones against a copy's."""
    assert machine.gpu is not None
    figures: Figures = {}
    for dtype in ("float16", "float32"):
        device = CudaDevice(machine.gpu, dtype)
        figures |= {f"{name}_{dtype}": value for name, value in check_kernels(device, dtype).items()}
    return figures


def check_kernels(device: CudaDevice, dtype: str) -> Figures:
    """Largest differences, and bandwidths in GB/s at 72 frames of 72x128 cells in segments of 16."""
    chance, kind = np.random.default_rng(0), np.dtype(dtype)
    frames, (high, wide) = 72, (72, 128)
    plan = plan_segments(frames, 16, 6, "reference")
    weights = fusion_weights(plan, "triangular")
    tables = launches.make_tables(plan, weights)
    rows, slots = tables.frames.shape
    predictions = chance.normal(size=(rows, slots, 4, high, wide)).astype(kind)
    latents = chance.normal(size=(frames, 4, high, wide)).astype(np.float32)
    guidance, numbers = np.full(frames, 2.0, np.float32), np.array([0.3, 0.5, 0.9, -0.2], np.float32)
    held = {
        name: put(device, values)
        for name, values in {
            "predictions": predictions,
            "first": tables.first,
            "covers": tables.covers,
            "guidance": guidance,
            "numbers": numbers,
            "latents": latents,
        }.items()
    }
    launch = launches.blend_step(frames, high * wide)
    device.launch(launch, *held.values(), stream=device.gpu.stream)
    expected = latents * numbers[2]
    for row, (slots_of, conditional) in enumerate(zip(tables.frames, tables.conditional, strict=True)):
        share = weights[row // 2] * (2.0 if conditional else -1.0) * numbers[3]
        for slot, frame in enumerate(slots_of):
            expected[frame] += share[slot].astype(np.float32) * predictions[row, slot].astype(np.float32)
    found = device.download(held["latents"])
    moved = predictions.nbytes + 2 * latents.nbytes
    pictures = pictures_figures(device, kind)
    return {
        "blend_step_difference": float(np.abs(found - expected).max()),
        "blend_step_gb_s": moved
        / repeat(device, lambda s: device.launch(launch, *held.values(), stream=s))
        / 1e9,
        "copy_gb_s": copy_bandwidth(device, moved // 2),
        **pictures,
    }


def pictures_figures(device: CudaDevice, kind: np.dtype[Any]) -> Figures:
    """Decode's post-processing at 8 frames of 1024x576."""
    planes = np.random.default_rng(1).uniform(-1.1, 1.1, (8, 3, 576, 1024)).astype(kind)
    source, into = put(device, planes), device.empty((8, 576, 1024, 3), np.uint8)
    launch = launches.to_pictures(8, 576 * 1024, kind)
    device.launch(launch, source, into, stream=device.gpu.stream)
    expected = np.empty(into.shape, np.uint8)
    to_pictures(planes.astype(np.float32), expected)
    seconds = repeat(device, lambda s: device.launch(launch, source, into, stream=s))
    return {
        "to_pictures_same": bool(np.array_equal(device.download(into), expected)),
        "to_pictures_gb_s": (planes.nbytes + expected.nbytes) / seconds / 1e9,
    }


def put(device: CudaDevice, values: np.ndarray[Any, Any]) -> Any:
    """An array on the device with these values."""
    array = device.empty(values.shape, values.dtype)
    device.upload(values, array)
    return array


def repeat(device: CudaDevice, work: Callable[[Any], None], times: int = 50) -> float:
    """Seconds of one repetition, the median of three series."""
    gpu, series = device.gpu, []
    for _ in range(4):
        gpu.wait()
        began = time.perf_counter()
        for _ in range(times):
            work(gpu.stream)
        gpu.wait()
        series.append((time.perf_counter() - began) / times)
    return float(np.median(series[1:]))


def copy_bandwidth(device: CudaDevice, size: int) -> float:
    """GB/s read and written by a copy of `size` bytes on the device."""
    source, target = (device.empty((size,), np.uint8) for _ in range(2))
    return 2 * size / repeat(device, lambda _: device.copy(source, target)) / 1e9


def ceiling(machine: Machine) -> Figures:
    """TFLOP/s of a large float16 matrix product."""
    return {"matmul_tflops": matmul_ceiling()}


def loops(frames: int) -> Callable[[Machine], Figures]:
    """The real size with random weights: the plain loop, and ours with each step switched on in turn."""

    def stage(machine: Machine) -> Figures:
        assert machine.gpu is not None
        return compare_loops(machine.gpu, frames)

    return stage


def decode(machine: Machine) -> Figures:
    """Seconds a frame of the real VAE decoder, 8 frames of 1024x576 at a time."""
    return decode_frames()


STAGES: dict[str, Stage] = {
    "cubins": Stage("the kernels for every architecture", cubins, needs_gpu=False),
    "same-bytes": Stage("one seed, the same bytes", same_bytes, needs_gpu=False),
    "two-jobs": Stage("two jobs at once against one after the other", two_jobs, needs_gpu=False),
    "golden": Stage("the reference's golden runs in float32 and float16", golden, needs_gpu=False),
    "kernels": Stage("kernels against numpy, and their bandwidth", kernels),
    "ceiling": Stage("the matmul ceiling", ceiling),
    "loop-16": Stage("1.5 billion weights, 1024x576, one segment of 16 frames", loops(16)),
    "loop-72": Stage("the same, one segment of 72 frames", loops(72)),
    "decode": Stage("the real VAE decoder", decode),
}
