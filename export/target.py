"""The GPUs that plans are compiled for, and whether that can be done here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..engines.cuda import open_gpu
from ..engines.tensorrt_library import open_library
from ..errors import BundleError, ExportError
from .options import Options
from .quantize import check_capability

CAPABILITIES = ("SM80", "SM86", "SM89", "SM120")
"""What a TensorRT-RTX plan is for if nobody says: Ampere, Ada and Blackwell."""


def check_target(options: Options) -> None:
    """Raise `ExportError` for plans that cannot be compiled here, before anything is loaded or exported."""
    if options.backend == "tensorrt":
        name = gpu_name()
        if options.precision == "fp8":
            check_capability(name)
    elif options.backend == "tensorrt-rtx":
        check_capabilities(open_library(options.backend).api, options.plan.capabilities)
        if options.plan.refit:
            gpu_name("TensorRT-RTX compiles with --refit only where a GPU is: leave it out, or build there.")


def runs_here(options: Options) -> bool:
    """Whether this machine has a GPU for the plans that it compiles."""
    try:
        gpu = open_gpu(0)
    except BundleError:
        return False
    return options.backend == "tensorrt" or gpu.capability in (options.plan.capabilities or CAPABILITIES)


def check_capabilities(api: Any, names: Iterable[str]) -> None:
    """Raise `ExportError` for a compute capability that the library does not offer."""
    offered = [name for name in dir(api.ComputeCapability) if name.startswith("SM")]
    for name in names:
        if name not in offered:
            raise ExportError(
                f"TensorRT-RTX {api.__version__} does not compile for {name}.",
                remedy=f"It offers {', '.join(offered)}; data-centre GPUs need --backend tensorrt.",
                field="capability",
            )


def set_capabilities(api: Any, config: Any, names: tuple[str, ...]) -> str:
    """Compile for GPUs that need not be here; returns what the plan is for. Raises `ExportError`."""
    check_capabilities(api, names)
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        config.set_compute_capability(getattr(api.ComputeCapability, name), index)
    return " ".join(names)


def gpu_name(remedy: str = "Build on the GPU host; --backend tensorrt-rtx builds on any machine.") -> str:
    """The GPU for which TensorRT compiles, the first one, named as the backend will name it when it loads plans."""
    try:
        gpu = open_gpu(0)
    except BundleError as error:
        raise ExportError(
            f"no GPU to compile for ({error.message}).", remedy=remedy, field="backend"
        ) from error
    return f"{gpu.name} {gpu.capability}"
