"""Whether a bundle runs on a CPU or a GPU as it is, and the command that makes one that does."""

from __future__ import annotations

import shlex
from pathlib import Path

from ..denoise.plan import segments_of
from ..denoise.shapes import EngineShapes, check_reuse
from ..engines import Bundle, EnginePlan, Manifest
from ..engines.bundle import COMMAND
from ..engines.tensorrt_checks import PRECISION, for_backend, for_cpu, for_gpu, without
from ..engines.tensorrt_library import DISTRIBUTIONS, EXTRAS
from ..errors import InputError
from ..settings import Settings
from .gpus import GpuInfo, Gpus
from .host import Host

ON_CPU = ("onnxruntime", "torch")
"""Backends that run on a CPU, too."""
NEEDED = {**DISTRIBUTIONS, "torch": "torch"}
"""Backend -> what it computes with on a GPU, besides cuda-core."""


def cpu_problem(bundle: Bundle, host: Host) -> str:
    """Why a bundle does not run on the CPU, and what to do."""
    manifest = bundle.manifest
    if manifest.backend == "torch" and "torch" not in host.packages:
        return "pip install 'mimicmotion-trt[torch]'"
    if manifest.backend in ON_CPU:
        return ""
    plan = manifest.networks["unet"].plan
    made = f"compiled for {plan.target}" if plan else f"built for {manifest.backend}"
    command = _command(bundle, "onnxruntime", for_cpu(manifest.options))
    return f"{made}, and no GPU is found here; rebuild it for this CPU: {command}"


def gpu_problem(bundle: Bundle, gpu: GpuInfo, gpus: Gpus, host: Host) -> str:
    """Why a bundle does not run on a GPU, and what to do."""
    backend = backend_on(bundle.manifest, gpu)
    problem = obstacle(gpu, backend, gpus, host)
    return problem or ("" if backend == "torch" else rebuild_for(bundle, gpu, host))


def backend_on(manifest: Manifest, gpu: GpuInfo) -> str:
    """What runs a bundle on a GPU as it is or, where that is not possible, rebuilt."""
    plan, backend = manifest.networks["unet"].plan, manifest.backend
    portable = backend == "tensorrt-rtx" and plan is not None and _is_for(plan, gpu)
    if backend in ("torch", "tensorrt") or portable:
        return backend
    return gpu.flavour


def obstacle(gpu: GpuInfo, backend: str, gpus: Gpus, host: Host) -> str:
    """What keeps any bundle of TensorRT, of either flavour, or of PyTorch from running on a GPU."""
    if gpu.too_old:
        return f"compute capability {gpu.capability[0]}.{gpu.capability[1]} is too old for CUDA 13"
    if gpus.problem:
        return f"{gpus.problem}; update it"
    if not {NEEDED[backend], "cuda-core"} <= set(host.packages):
        return f"pip install 'mimicmotion-trt[{EXTRAS.get(backend, 'torch,cuda')}]'"
    if backend == "torch" and "+cpu" in host.packages["torch"]:
        return (
            f"PyTorch {host.packages['torch']} is the build for CPUs; install one for CUDA, "
            "see https://pytorch.org/get-started/locally"
        )
    return ""


def rebuild_for(bundle: Bundle, gpu: GpuInfo, host: Host) -> str:
    """Why a bundle's engines do not run on a GPU with TensorRT, and the command that makes those that do."""
    manifest, flavour = bundle.manifest, backend_on(bundle.manifest, gpu)
    plan = manifest.networks["unet"].plan
    portable = flavour == "tensorrt-rtx"
    options = manifest.options if portable else without(manifest.options, ("--capability",))
    if plan is None or manifest.backend not in DISTRIBUTIONS:
        options = for_gpu(without(options, PRECISION), gpu.sm, portable)
        return f"built for {manifest.backend}; rebuild: {_command(bundle, flavour, options)}"
    if not _is_for(plan, gpu):
        command = _command(bundle, flavour, for_gpu(options, gpu.sm, portable, plan.target))
        return f"compiled for {plan.target}; rebuild: {command}"
    installed = f"{flavour} {host.packages[DISTRIBUTIONS[flavour]]}"
    if installed != plan.library:
        return (
            f"compiled by {plan.library}, here is {installed}; rebuild: {_command(bundle, flavour, options)}"
        )
    return ""


def _is_for(plan: EnginePlan, gpu: GpuInfo) -> bool:
    """Whether a plan was compiled for a GPU: TensorRT's for one model, TensorRT-RTX's for capabilities."""
    if plan.library.startswith("tensorrt-rtx "):
        return gpu.sm in plan.target.split()
    name, _, instance = gpu.name.partition(" MIG ")
    if instance:  # CUDA names instances by their kind, NVML by their number
        return plan.target.startswith(f"{name} MIG ") and plan.target.endswith(f" {gpu.sm}")
    return plan.target == f"{name} {gpu.sm}"


def shapes_of(manifest: Manifest) -> EngineShapes | None:
    """What the plans of a bundle take; None for one of graphs, which take anything."""
    shapes = EngineShapes.of(manifest)
    return shapes if shapes.compiled else None


def shape_problem(manifest: Manifest, settings: Settings, frames: int) -> str:
    """Why a bundle does not take a clip of `frames` frames and the reference picture's own, and what to do.

    Plans take what they were compiled for; features are reused by networks of their own.
    """
    shapes, (width, height) = EngineShapes.of(manifest), settings.size or (0, 0)
    cells, every = (height // 8, width // 8), frames + 1
    try:
        check_reuse(manifest, settings)
        segments_of(settings, every, cells, shapes)
        shapes.check_chunk(settings.decode_chunk, every, cells)
    except InputError as error:
        return f"{error.message} {error.remedy}"
    return ""


def _command(bundle: Bundle, backend: str, options: str) -> str:
    """What builds a bundle for a backend; one for another backend gets a folder of its own."""
    folder, options = bundle.folder, for_backend(options, backend)
    if backend != bundle.manifest.backend:
        folder = folder.with_name(f"{folder.name}-{backend}")
    return command_for(options, folder)


def command_for(options: str, folder: Path) -> str:
    """The command that builds a bundle in a folder."""
    return f"{COMMAND.removesuffix('DIR')}{shlex.quote(str(folder))} {options}"
