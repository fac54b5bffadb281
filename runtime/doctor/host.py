"""The machine besides its GPUs: processor, memory, installed packages, and how fast the processor computes."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from ..engines import Bundle, Placement, open_engine
from ..settings import Settings
from .prediction import ModelStats, Throughput, cost_of, latent_pixels

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
        packages = {name: version for name in PACKAGES if (version := _version(name))}
        return cls(_cpu_name(), cores, memory.total, memory.available, packages)


def _version(name: str) -> str | None:
    """The version of a distribution, from its metadata; None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


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
    unet, (width, height) = bundle.manifest.networks["unet"], settings.size
    frames = cost_of(ModelStats.of(bundle.manifest), settings, frames).segment_frames
    work = unet.work.flops(frames=frames, pixels=latent_pixels(settings))
    weights = sum(file.bytes for file in unet.files)
    if bundle.manifest.backend != "onnxruntime" or work > SMALL_CALL or weights > SMALL_FILE:
        return None
    sizes = {"rows": 1, "frames": frames, "latent_height": height // 8, "latent_width": width // 8}
    engine = open_engine(bundle, "unet", Placement("cpu", spin_threads=True))
    inputs, outputs = (
        {t.name: np.zeros([sizes[d] if isinstance(d, str) else d for d in t.shape], t.dtype) for t in tensors}
        for tensors in (engine.spec.inputs, engine.spec.outputs)
    )
    try:
        taken = _median_seconds(engine.bind(inputs, outputs), seconds)
    finally:
        engine.close()
    return Throughput(work / taken, f"a U-Net call of one row, {taken * 1e3:.0f} ms")


def time_product(*, seconds: float = 0.3, side: int = 768) -> Throughput:
    """What engines may reach on this CPU, from float32 matrix products of `side`."""
    a = np.ones((side, side), np.float32)
    out = np.empty_like(a)
    taken = _median_seconds(lambda: np.matmul(a, a, out=out), seconds)
    said = f"{OF_A_PRODUCT:.0%} of a float32 matrix product's speed"
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
