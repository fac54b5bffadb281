"""This machine: processor, memory, packages and GPUs, and how fast they compute."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from ..denoise.cost import ModelStats, cost_of, latent_pixels
from ..engines import Bundle, Engine, Placement, call_sizes, open_engine
from ..settings import Settings
from .prediction import Throughput

PACKAGES = ("onnxruntime", "torch", "tensorrt-cu13", "tensorrt-rtx-cu13", "cuda-core", "nvidia-ml-py")
SMALL_CALL = 5e9
"""Operations of a U-Net call that any processor does within a fraction of a second."""
SMALL_FILE = 200 * 2**20
"""Bytes of an engine that loads as quickly."""
OF_A_PRODUCT = 0.5
"""Engines reach about this share of a plain matrix product's throughput on a CPU (convolutions, norms, memory)."""


@dataclass(frozen=True, slots=True)
class Host:
    """Processor, memory and packages."""

    cpu: str
    cores: int
    """Those that this process may use."""
    memory_total: int
    """Bytes."""
    memory_free: int
    """Bytes that programs can get without swapping."""
    packages: Mapping[str, str]
    """Version of each of `PACKAGES` that is installed."""

    @classmethod
    def read(cls) -> Host:
        """Ask the system; imports no library of those that it lists."""
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else psutil.cpu_count() or 1
        memory = psutil.virtual_memory()
        packages = {}
        for name in PACKAGES:
            with suppress(importlib.metadata.PackageNotFoundError):
                packages[name] = importlib.metadata.version(name)
        return cls(_cpu_name(), cores, memory.total, memory.available, packages)


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")  # neither platform nor psutil has the model's name on Linux
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def time_engine(
    bundle: Bundle, settings: Settings, frames: int, *, seconds: float = 0.5
) -> Throughput | None:
    """The U-Net's throughput on this CPU by calls of one row of the very job, float32, for about `seconds`.

    None where such a call or its engine is too large to try.
    """
    assert settings.size is not None
    unet = bundle.manifest.networks["unet"]
    frames = cost_of(ModelStats.of(bundle.manifest), settings, frames).segment_frames
    work = unet.flops.total(frames=frames, pixels=latent_pixels(settings))
    weights = sum(file.bytes for file in unet.files)
    if bundle.manifest.backend != "onnxruntime" or work > SMALL_CALL or weights > SMALL_FILE:
        return None
    with closing(open_engine(bundle, "unet", Placement("cpu", spin_threads=True))) as engine:
        taken = _median_seconds(unet_call(engine, 1, frames, settings.size), seconds)
    return Throughput(work / taken, f"measured: a U-Net call of one row takes {taken * 1e3:.0f} ms")


def unet_call(engine: Engine, rows: int, frames: int, size: tuple[int, int]) -> Callable[[], None]:
    """A call of the U-Net on zeros; `size` is (width, height) of the video."""
    sizes = call_sizes(frames, (size[1] // 8, size[0] // 8), rows=rows)
    inputs, outputs = (
        {tensor.name: np.zeros(tensor.sized(sizes), tensor.dtype) for tensor in tensors}
        for tensors in (engine.spec.inputs, engine.spec.outputs)
    )
    return engine.bind(inputs, outputs)


def time_product(*, seconds: float = 0.3, side: int = 768) -> Throughput:
    """What engines may reach on this CPU, from float32 matrix products of `side`."""
    a = np.ones((side, side), np.float32)
    out = np.empty_like(a)
    taken = _median_seconds(lambda: np.matmul(a, a, out=out), seconds)
    said = f"estimated: {OF_A_PRODUCT:.0%} of what multiplying float32 matrices reaches here"
    return Throughput(2 * side**3 / taken * OF_A_PRODUCT, said)


def _median_seconds(call: Callable[[], object], seconds: float) -> float:
    """The median of one call, after one to warm up; at least one is timed."""
    call()
    times: list[float] = []
    while not times or sum(times) < seconds:
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


MINIMUM_DRIVER = 580
"""The first driver branch for CUDA 13 (CUDA toolkit release notes, "Minimum Required Driver Version")."""
MINIMUM_CAPABILITY = (7, 5)
"""CUDA 13 begins with Turing, and so do TensorRT 11 and PyTorch built for it."""

EFFICIENCY = 0.28
"""Share of a GPU's peak that engines are assumed to reach: NVIDIA's own TensorRT SVD-XT on an H100 PCIe does 209 of
756 TFLOP/s in its U-Net (25 frames, 25 steps: 19.1 s)."""
PEAK_TFLOPS = {
    "B200": 2250, "H200": 989, "H100": 989, "H100 PCIe": 756, "H100 NVL": 835, "GH200": 989, "H800": 989,
    "A100": 312, "A800": 312, "A30": 165, "A10": 125, "A10G": 70, "A40": 150, "L4": 121, "L40": 181, "L40S": 362,
    "T4": 65, "RTX A6000": 155, "RTX A5000": 111, "RTX 6000 Ada": 364, "RTX 5090": 210, "RTX 5080": 113,
    "RTX 5070 Ti": 88, "RTX 5070": 62, "RTX 4090": 165, "RTX 4080 SUPER": 104, "RTX 4080": 97,
    "RTX 4070 Ti SUPER": 88, "RTX 4070 Ti": 80, "RTX 4070": 58, "RTX 3090 Ti": 80, "RTX 3090": 71, "RTX 3080": 60,
}  # fmt: skip
"""Dense FP16 tensor TFLOP/s with FP32 accumulation, from NVIDIA's data sheets and architecture papers."""

_PER_CORE = {
    (7, 5): 8, (8, 0): 32, (8, 6): 4, (8, 9): 4, (9, 0): 32, (10, 0): 64, (10, 3): 64, (12, 0): 4,
}  # fmt: skip
"""FP16 operations per clock of one CUDA core, by compute capability; the slower chip's where chips differ."""


@dataclass(frozen=True, slots=True)
class GpuInfo:
    """One GPU."""

    name: str
    capability: tuple[int, int]
    memory_total: int
    """Bytes."""
    memory_free: int
    peak: float | None = None
    """Dense FP16 operations per second; None if nothing is known."""
    peak_source: str = "unknown"

    @property
    def flavour(self) -> str:
        """The backend for it: `tensorrt-rtx` for GPUs with RTX in their name, `tensorrt` for all others.

        NVIDIA supports TensorRT for RTX on those alone (its prerequisites), not on the GeForce GTX 16.
        """
        return "tensorrt-rtx" if "RTX" in self.name else "tensorrt"

    @property
    def sm(self) -> str:
        """Its compute capability as plans and the builder name it: `SM89`."""
        return "SM{}{}".format(*self.capability)

    @property
    def throughput(self) -> Throughput | None:
        """What engines in half precision may reach on it; None if its peak is not known."""
        if self.peak is None:
            return None
        peak = f"{self.peak / 1e12:.0f} trillion in half precision ({self.peak_source})"
        source = f"estimated: {EFFICIENCY:.0%} of {peak}"
        return Throughput(self.peak * EFFICIENCY, source)

    @property
    def too_old(self) -> bool:
        """Whether neither TensorRT nor our kernels run on it."""
        return self.capability < MINIMUM_CAPABILITY


@dataclass(frozen=True, slots=True)
class Gpus:
    """What NVML said."""

    found: tuple[GpuInfo, ...] = ()
    driver: str = ""
    cuda: str = ""
    """The newest CUDA version that the driver runs."""
    problem: str = ""
    """Why GPUs could not be read or used; empty if all is well."""


def read_gpus(nvml: Any = None) -> Gpus:
    """Ask NVML; `nvml` is the module `pynvml`, or anything with its functions.

    Never raises: what is wrong is said in `problem`.
    """
    if nvml is None:
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            return Gpus(problem="nvidia-ml-py is not installed, so GPUs cannot be found")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return Gpus(problem=f"no NVIDIA driver answers ({error})")
    try:
        driver, cuda = str(nvml.nvmlSystemGetDriverVersion()), int(nvml.nvmlSystemGetCudaDriverVersion_v2())
        handles = map(nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount()))
        found = tuple(_read_gpu(nvml, handle) for handle in handles)
    except nvml.NVMLError as error:
        return Gpus(problem=f"the NVIDIA driver answers with an error ({error})")
    finally:
        nvml.nvmlShutdown()
    old = int(driver.partition(".")[0]) < MINIMUM_DRIVER
    problem = f"driver {driver} is older than r{MINIMUM_DRIVER}, which CUDA 13 needs" if old else ""
    return Gpus(found, driver, f"{cuda // 1000}.{cuda % 1000 // 10}", problem)


def _read_gpu(nvml: Any, handle: Any) -> GpuInfo:
    name = str(nvml.nvmlDeviceGetName(handle))
    major, minor = map(int, nvml.nvmlDeviceGetCudaComputeCapability(handle))
    try:
        cores = nvml.nvmlDeviceGetNumGpuCores(handle)
        clock = nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)
    except nvml.NVMLError:  # not every driver tells
        cores = clock = 0
    peak, source = peak_flops(name, (major, minor), cores, clock)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return GpuInfo(name, (major, minor), int(memory.total), int(memory.free), peak, source)


def peak_flops(
    name: str, capability: tuple[int, int], cores: int = 0, clock_mhz: int = 0
) -> tuple[float | None, str]:
    """Peak dense FP16 operations per second, and where the figure comes from.

    By name from `PEAK_TFLOPS`, else CUDA cores x clock x operations per clock; None if these are 0.
    """
    known = [key for key in PEAK_TFLOPS if re.search(rf"\b{re.escape(key)}\b", name)]
    if known and not re.search(r"laptop|max-q|mobile", name, re.IGNORECASE):
        return PEAK_TFLOPS[max(known, key=len)] * 1e12, "data sheet"
    peak = cores * clock_mhz * 1e6 * _PER_CORE.get(capability, 0)
    return (peak, "CUDA cores and clock") if peak else (None, "unknown")
