"""The NVIDIA GPUs of this machine as NVML reports them, and how fast each may be; nothing is started on them."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import Any

from .prediction import Throughput

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

# FP16 operations per clock of one multiprocessor, and CUDA cores in one (128 if not listed), by compute capability.
# Where chips of one capability differ, the slower one's.
_PER_CLOCK = {(7, 5): 512, (8, 0): 2048, (8, 6): 512, (8, 9): 512, (9, 0): 4096, (10, 0): 8192, (10, 3): 8192,
              (12, 0): 512}  # fmt: skip
_CORES = {(7, 5): 64, (8, 0): 64}


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
        source = f"{EFFICIENCY:.0%} of {self.peak / 1e12:.0f} TFLOP/s fp16 ({self.peak_source})"
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
        multiprocessors = nvml.nvmlDeviceGetNumGpuCores(handle) // _CORES.get((major, minor), 128)
        clock = nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)
    except nvml.NVMLError:  # not every driver tells
        multiprocessors = clock = 0
    peak, source = peak_flops(name, (major, minor), multiprocessors, clock)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return GpuInfo(name, (major, minor), int(memory.total), int(memory.free), peak, source)


def peak_flops(
    name: str, capability: tuple[int, int], multiprocessors: int = 0, clock_mhz: int = 0
) -> tuple[float | None, str]:
    """Peak dense FP16 operations per second, and where the figure comes from.

    By name from `PEAK_TFLOPS`, else multiprocessors x clock x operations per clock; None if these are 0.
    """
    known = [key for key in PEAK_TFLOPS if re.search(rf"\b{re.escape(key)}\b", name)]
    if known and not re.search(r"laptop|max-q|mobile", name, re.IGNORECASE):
        return PEAK_TFLOPS[max(known, key=len)] * 1e12, "data sheet"
    peak = multiprocessors * clock_mhz * 1e6 * _PER_CLOCK.get(capability, 0)
    return (peak, "multiprocessors and clock") if peak else (None, "unknown")
