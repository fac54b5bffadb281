"""The NVIDIA GPUs of this machine as NVML reports them, and how fast each may be; nothing is started on them."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import Any

MINIMUM_DRIVER = 580
"""The first driver branch for CUDA 13 (CUDA toolkit release notes, "Minimum Required Driver Version")."""
MINIMUM_CAPABILITY = (7, 5)
"""CUDA 13 begins with Turing, and so do TensorRT 11 and PyTorch built for it."""

EFFICIENCY = 0.28
"""Share of a GPU's peak that engines are taken to reach: NVIDIA's own TensorRT SVD-XT on an H100 PCIe does 209 of
756 TFLOP/s in its U-Net (25 frames, 25 steps: 19.1 s)."""
PEAK_TFLOPS = {
    "B200": 2250, "H200": 989, "H100": 989, "H100 PCIe": 756, "H100 NVL": 835, "GH200": 989, "H800": 989,
    "A100": 312, "A800": 312, "A30": 165, "A10": 125, "A10G": 70, "A40": 150, "L4": 121, "L40": 181, "L40S": 362,
    "T4": 65, "RTX A6000": 155, "RTX A5000": 111, "RTX 6000 Ada": 364, "RTX 5090": 210, "RTX 5080": 113,
    "RTX 5070 Ti": 88, "RTX 5070": 62, "RTX 4090": 165, "RTX 4080 SUPER": 104, "RTX 4080": 97,
    "RTX 4070 Ti SUPER": 88, "RTX 4070 Ti": 80, "RTX 4070": 58, "RTX 3090 Ti": 80, "RTX 3090": 71, "RTX 3080": 60,
}  # fmt: skip
"""Dense FP16 tensor TFLOP/s with FP32 accumulation, from NVIDIA's data sheets and architecture papers."""

# Operations a clock of one multiprocessor and CUDA cores in one, by compute capability; where chips of one
# capability differ, the slower one's.
_PER_CLOCK = {75: 512, 80: 2048, 86: 512, 89: 512, 90: 4096, 100: 8192, 103: 8192, 120: 512}
_CORES = {75: 64, 80: 64}


@dataclass(frozen=True, slots=True)
class GpuInfo:
    """One GPU, or one MIG instance of it."""

    name: str
    capability: tuple[int, int]
    memory_total: int
    """Bytes."""
    memory_free: int
    peak: float | None
    """Dense FP16 operations a second; None if nothing is known of it."""
    peak_source: str
    mig: bool = False

    @property
    def flavour(self) -> str:
        """The backend for it: TensorRT for RTX is for GPUs of that name, GeForce or not, from RTX 2000 on.

        NVIDIA lists those alone (prerequisites of TensorRT-RTX), not the GeForce GTX of equal capability.
        """
        return "tensorrt-rtx" if "RTX" in self.name else "tensorrt"

    @property
    def sm(self) -> str:
        """Its compute capability as plans and the builder name it: `SM89`."""
        return "SM{}{}".format(*self.capability)

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
    """Why GPUs could not be looked at or used; empty if all is well."""


class Nvml:
    """Asks NVML once; `library` is the module `pynvml`, or anything with its functions."""

    def __init__(self, library: Any = None) -> None:
        self._library = library

    def read(self) -> Gpus:
        """Never raises: what is not there is said in `problem`."""
        if self._library is None:
            try:
                self._library = importlib.import_module("pynvml")
            except ImportError:
                return Gpus(problem="nvidia-ml-py is not installed, so GPUs cannot be looked at")
        nvml = self._library
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            return Gpus(problem=f"no NVIDIA driver answers ({error})")
        try:
            return self._read(nvml)
        except nvml.NVMLError as error:
            return Gpus(problem=f"the NVIDIA driver does not answer as it should ({error})")
        finally:
            nvml.nvmlShutdown()

    def _read(self, nvml: Any) -> Gpus:
        driver, cuda = _text(nvml.nvmlSystemGetDriverVersion()), int(nvml.nvmlSystemGetCudaDriverVersion_v2())
        found: list[GpuInfo] = []
        for index in range(nvml.nvmlDeviceGetCount()):
            found += _gpus(nvml, nvml.nvmlDeviceGetHandleByIndex(index))
        branch = re.match(r"\d+", driver)
        old = branch is not None and int(branch[0]) < MINIMUM_DRIVER
        problem = f"driver {driver} is older than r{MINIMUM_DRIVER}, which CUDA 13 needs" if old else ""
        return Gpus(tuple(found), driver, f"{cuda // 1000}.{cuda % 1000 // 10}", problem)


def _gpus(nvml: Any, handle: Any) -> list[GpuInfo]:
    """A GPU, or the instances that it is divided into."""
    name = _text(nvml.nvmlDeviceGetName(handle))
    major, minor = map(int, nvml.nvmlDeviceGetCudaComputeCapability(handle))
    cores = _ask(nvml, "nvmlDeviceGetNumGpuCores", handle)
    clock = _ask(nvml, "nvmlDeviceGetMaxClockInfo", handle, nvml.NVML_CLOCK_SM)
    processors = cores // _CORES.get(10 * major + minor, 128) if cores else None
    peak, source = peak_flops(name, (major, minor), processors, clock)
    mode = _ask(nvml, "nvmlDeviceGetMigMode", handle)
    if mode and mode[0]:
        return _instances(nvml, handle, name, (major, minor), processors, peak)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return [GpuInfo(name, (major, minor), int(memory.total), int(memory.free), peak, source)]


def _instances(
    nvml: Any,
    handle: Any,
    name: str,
    capability: tuple[int, int],
    processors: int | None,
    peak: float | None,
) -> list[GpuInfo]:
    """The MIG instances of a GPU, each as fast as its share of the multiprocessors."""
    found = []
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        instance = _ask(nvml, "nvmlDeviceGetMigDeviceHandleByIndex", handle, index)
        if instance is None:  # fewer are set up than could be
            continue
        memory = nvml.nvmlDeviceGetMemoryInfo(instance)
        attributes = _ask(nvml, "nvmlDeviceGetAttributes", instance)
        share = attributes.multiprocessorCount / processors if attributes and processors else None
        own = peak * share if peak and share else None
        source = f"{share:.0%} of the GPU's multiprocessors" if own else "unknown"
        size = (int(memory.total), int(memory.free))
        found.append(GpuInfo(f"{name} MIG {index}", capability, *size, own, source, mig=True))
    return found


def peak_flops(
    name: str, capability: tuple[int, int], processors: int | None, clock_mhz: int | None
) -> tuple[float | None, str]:
    """Peak dense FP16 operations a second, and where the figure comes from.

    The table where the name is in it, else multiprocessors x clock x operations a clock.
    """
    known = [key for key in PEAK_TFLOPS if re.search(rf"\b{re.escape(key)}\b", name)]
    if known and not re.search(r"laptop|max-q|mobile", name, re.IGNORECASE):
        return PEAK_TFLOPS[max(known, key=len)] * 1e12, "data sheet"
    per_clock = _PER_CLOCK.get(10 * capability[0] + capability[1])
    if processors and clock_mhz and per_clock:
        return processors * clock_mhz * 1e6 * per_clock, "multiprocessors and clock"
    return None, "unknown"


def _ask(nvml: Any, name: str, *arguments: Any) -> Any:
    """What a function of NVML answers; None where this GPU or driver does not support it."""
    try:
        return getattr(nvml, name)(*arguments)
    except (nvml.NVMLError, AttributeError):
        return None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
