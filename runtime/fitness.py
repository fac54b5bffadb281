"""Whether a bundle of plans runs on a GPU as it is, and the command that makes one that does."""

from __future__ import annotations

import shlex
from pathlib import Path

from .engines import Bundle, Manifest, Plan
from .engines.bundle import COMMAND
from .engines.tensorrt_library import DISTRIBUTIONS, EXTRAS
from .errors import InputError
from .gpus import Gpu, Gpus
from .host import Host
from .segments import plan_segments
from .settings import Settings
from .shapes import Shapes


def obstacle(gpu: Gpu, flavour: str, gpus: Gpus, host: Host) -> str:
    """What keeps any bundle of a TensorRT flavour from running on a GPU."""
    if gpu.too_old:
        return f"compute capability {gpu.capability[0]}.{gpu.capability[1]} is too old for TensorRT 11"
    if gpus.problem:
        return f"{gpus.problem}; update it"
    if DISTRIBUTIONS[flavour] not in host.packages:
        return f"pip install 'mimicmotion-trt[{EXTRAS[flavour]}]'"
    return ""


def rebuild_for(bundle: Bundle, gpu: Gpu, host: Host) -> str:
    """Why a bundle's engines do not run on a GPU, and the command that makes those that do."""
    manifest, backend = bundle.manifest, bundle.manifest.backend
    plan = manifest.networks["unet"].plan
    if plan is None:
        other = bundle.folder.with_name(f"{bundle.folder.name}-{gpu.flavour}")
        return f"built for {backend}; rebuild: {command_for(_options(manifest, gpu, gpu.flavour), other)}"
    if not _is_for(plan, gpu):
        flavour = gpu.flavour if backend == "tensorrt-rtx" else backend
        command = command_for(_options(manifest, gpu, flavour), bundle.folder)
        return f"compiled for {plan.target}; rebuild: {command}"
    installed = f"{backend} {host.packages[DISTRIBUTIONS[backend]]}"
    if installed != plan.library:
        command = command_for(_options(manifest, gpu, backend), bundle.folder)
        return f"compiled by {plan.library}, here is {installed}; rebuild: {command}"
    return ""


def _is_for(plan: Plan, gpu: Gpu) -> bool:
    """Whether a plan was compiled for a GPU: TensorRT's for one model, TensorRT-RTX's for capabilities."""
    capability = "SM{}{}".format(*gpu.capability)
    if plan.library.startswith("tensorrt-rtx "):
        return capability in plan.target.split()
    name, _, instance = gpu.name.partition(" MIG ")
    if instance:  # CUDA names instances by their kind, NVML by their number
        return plan.target.startswith(f"{name} MIG ") and plan.target.endswith(f" {capability}")
    return plan.target == f"{name} {capability}"


def shapes_of(manifest: Manifest) -> Shapes | None:
    """What the plans of a bundle take; None for one of graphs, which take anything."""
    shapes = Shapes.of(manifest)
    return shapes if shapes.compiled else None


def shape_problem(manifest: Manifest, settings: Settings, frames: int) -> str:
    """Why plans do not take a clip of `frames` frames and the reference picture's own, and what to do."""
    shapes, (width, height) = Shapes.of(manifest), settings.size or (0, 0)
    cells, every = (height // 8, width // 8), frames + 1
    try:
        segment = shapes.segment(settings, every, cells)
        slots = plan_segments(every, segment, settings.overlap, settings.layout).shape[1]
        shapes.rows(slots, cells)
        shapes.check_chunk(settings.decode_chunk, every, cells)
    except InputError as error:
        return f"{error.message} {error.remedy}"
    return ""


def _options(manifest: Manifest, gpu: Gpu, flavour: str) -> str:
    """A bundle's own options, for another backend without what it does not know."""
    dropped = {"--backend"} | ({"--precision", "--margin"} if flavour != manifest.backend else set())
    only = "--capability {}".format("SM{}{}".format(*gpu.capability))
    if flavour != "tensorrt-rtx":
        dropped, only = dropped | {"--capability"}, ""
    words, kept = iter(shlex.split(manifest.options)), []
    for word in words:
        if word in dropped:
            next(words, None)
        else:
            kept.append(word)
    if only in manifest.options:
        only = ""
    return " ".join(filter(None, (f"--backend {flavour}", shlex.join(kept), only)))


def command_for(options: str, folder: Path) -> str:
    """The command that builds a bundle in a folder."""
    return f"{COMMAND.removesuffix('DIR')}{folder} {options}"
