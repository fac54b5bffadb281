"""Whether a bundle runs on a CPU or a GPU as it is; if not, the error says why and what to do."""

from __future__ import annotations

from collections.abc import Callable

from ..denoise.shapes import EngineShapes, check_reuse
from ..engines import Bundle, EnginePlan, Manifest
from ..engines.tensorrt_library import DISTRIBUTIONS, EXTRAS
from ..errors import BundleError, InputError, MimicMotionError
from ..settings import Settings
from .machine import MINIMUM_CAPABILITY, GpuInfo, Gpus, Host

ON_CPU = ("onnxruntime", "torch")
"""Backends that run on a CPU, too."""
NEEDED = {**DISTRIBUTIONS, "torch": "torch"}
"""Backend -> what it computes with on a GPU, besides cuda-core."""


def fault_of(*checks: Callable[[], None]) -> MimicMotionError | None:
    """The first error of some checks, not raised; None if there is none."""
    try:
        for check in checks:
            check()
    except (BundleError, InputError) as error:
        return error
    return None


def check_cpu(bundle: Bundle, host: Host) -> None:
    """Raise `BundleError` if a bundle does not run on the CPU."""
    manifest = bundle.manifest
    if manifest.backend == "torch" and "torch" not in host.packages:
        raise BundleError("PyTorch is not installed.", remedy="pip install 'mimicmotion-trt[torch]'")
    if manifest.backend not in ON_CPU:
        raise BundleError(
            f"{_made(manifest)}, and there is no GPU here.", remedy=_build_again("--backend onnxruntime")
        )


def check_gpu(bundle: Bundle, gpu: GpuInfo, gpus: Gpus, host: Host) -> None:
    """Raise `BundleError` if a bundle does not run on a GPU."""
    manifest, plan = bundle.manifest, bundle.manifest.networks["unet"].plan
    backend = manifest.backend
    if backend == "onnxruntime" or (backend == "tensorrt-rtx" and not _is_for(plan, gpu)):
        backend = gpu.flavour  # what a rebuilt bundle runs on
    check_machine(gpu, backend, gpus, host)
    if backend == "torch":
        return
    remedy = _build_again(options_for(gpu, backend))
    if plan is None or not _is_for(plan, gpu):
        raise BundleError(f"{_made(manifest)}, not for {gpu.name} {gpu.sm}.", remedy=remedy)
    installed = f"{backend} {host.packages[DISTRIBUTIONS[backend]]}"
    if installed != plan.library:
        raise BundleError(f"compiled by {plan.library}, and {installed} is installed.", remedy=remedy)


def check_machine(gpu: GpuInfo, backend: str, gpus: Gpus, host: Host) -> None:
    """Raise `BundleError` if no bundle of a backend (TensorRT of either flavour, PyTorch) runs on a GPU."""
    if gpu.too_old:
        raise BundleError(
            "compute capability {}.{} is too old for CUDA 13.".format(*gpu.capability),
            remedy="Use a GPU of {}.{} or newer.".format(*MINIMUM_CAPABILITY),
        )
    if gpus.problem:
        raise BundleError(f"{gpus.problem}.", remedy="Update the driver.")
    missing = [name for name in (NEEDED[backend], "cuda-core") if name not in host.packages]
    if missing:
        raise BundleError(
            f"{' and '.join(missing)} is not installed.",
            remedy=f"pip install 'mimicmotion-trt[{EXTRAS.get(backend, 'torch,cuda')}]'",
        )
    if backend == "torch" and "+cpu" in host.packages["torch"]:
        raise BundleError(
            f"PyTorch {host.packages['torch']} is the build for CPUs.",
            remedy="Install one for CUDA, see https://pytorch.org/get-started/locally",
        )


def check_clip(manifest: Manifest, settings: Settings, frames: int) -> None:
    """Raise `InputError` if a bundle cannot make `frames` frames, besides the reference picture's own."""
    shapes, (width, height) = EngineShapes.of(manifest), settings.size or (0, 0)
    latent_size, every = (height // 8, width // 8), frames + 1
    check_reuse(manifest.reuses, settings)
    shapes.fit(settings, every, latent_size)
    shapes.chunk(min(settings.decode_chunk, every), latent_size)


def options_for(gpu: GpuInfo, backend: str) -> str:
    """The options of `mimicmotion-trt build` with which a bundle runs on a GPU."""
    return f"--backend {backend}" + (f" --capability {gpu.sm}" if backend == "tensorrt-rtx" else "")


def _build_again(options: str) -> str:
    return f"Build it with {options}; `mimicmotion-trt inspect` shows how it was built."


def _made(manifest: Manifest) -> str:
    plan = manifest.networks["unet"].plan
    return f"compiled for {plan.target}" if plan else f"built for {manifest.backend}"


def _is_for(plan: EnginePlan | None, gpu: GpuInfo) -> bool:
    """Whether a plan was compiled for a GPU: TensorRT's for one model, TensorRT-RTX's for capabilities."""
    if plan is None:
        return False
    if plan.library.startswith("tensorrt-rtx "):
        return gpu.sm in plan.target.split()
    return plan.target == f"{gpu.name} {gpu.sm}"
