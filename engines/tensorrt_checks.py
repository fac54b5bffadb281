"""What a plan is asked before and after it is loaded, so that what does not fit is told with its remedy."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BundleError
from .cuda import Gpu
from .plan import FLAVOURS, EnginePlan
from .spec import EngineSpec
from .tensorrt_library import DISTRIBUTIONS, Library

_REASONS = {
    "MALFORMED_ENGINE": ("is damaged", "Rebuild it: {command}."),
    "VERSION_MISMATCH": ("was compiled by another version", "Rebuild it: {command}."),
    "OLD_CUDA_DRIVER": ("needs a newer driver", "Update the GPU's driver."),
    "OLD_CUDA_RUNTIME": ("needs a newer CUDA", "Update the GPU's driver and the packages of the rtx extra."),
    "INSUFFICIENT_GPU_MEMORY": (
        "needs more memory than the GPU has free",
        "End other programs that use it, or build for a smaller --size, --segment or --batch.",
    ),
    "UNSUPPORTED_CC": ("was not compiled for this GPU, {gpu}", "{another}."),
}
"""TensorRT-RTX's reasons -> what is the matter, and the remedy."""
ALONE = ("--refit", "--weight-streaming", "--deep-cache")
"""Options of the builder without a value."""
PRECISION = ("--precision", "--margin")
"""Left out where another kind of backend is to take its own usual precision."""
COMPILER = (
    "--level", "--workspace", "--aux-streams", "--capability", "--frames", "--refit", "--weight-streaming"
)  # fmt: skip
"""What the builder is told for TensorRT only."""
FLOAT8 = 89
"""The first compute capability that multiplies in float8: SM89, Ada."""


def rebuild(command: str, more: str = "") -> str:
    """The command that builds a bundle again, with one option `more`."""
    return f"`{command}`" if not more or more in command.split() else f"`{command} {more}`"


def without(command: str, options: Iterable[str]) -> str:
    """A command of the builder, or its options alone, without some of them."""
    return _join(part for part in _parts(command) if part[0] not in options)


def for_backend(command: str, backend: str) -> str:
    """A command of the builder, or its options alone, for another backend."""
    parts = list(_parts(command))
    chosen = ("--backend", backend)
    if all(part[0] != "--backend" for part in parts):
        parts.append(chosen)
    return _join(chosen if part[0] == "--backend" else part for part in parts)


def for_cpu(command: str) -> str:
    """A command of the builder, or its options alone, of the same bundle for the CPU."""
    return for_backend(without(command, (*PRECISION, *COMPILER)), "onnxruntime")


def for_gpu(command: str, capability: str, portable: bool, target: str = "") -> str:
    """A command of the builder, or its options alone, that compiles for a GPU of a `capability` (`SM89`), too.

    That of a `portable` plan names capabilities: those of its `target` (`SM80 SM86`), if the builder took its own,
    and of an open one (`--refit`) one only. What the builder refuses for this GPU is left out.
    """
    if int(capability[2:]) < FLOAT8 and ("--precision", "fp8") in _parts(command):
        command = without(command, PRECISION)
    if not portable:
        return command
    if ("--refit",) in _parts(command):
        command, target = without(command, ("--capability",)), ""
    parts = list(_parts(command))
    if all(part[0] != "--capability" for part in parts):
        parts += [("--capability", name) for name in target.split() if re.fullmatch(r"SM\d+", name)]
    more = ("--capability", capability)
    return _join(parts if more in parts else [*parts, more])


def _parts(command: str) -> Iterator[tuple[str, ...]]:
    """The words of a command, each option with its value."""
    words = iter(shlex.split(command))
    for word in words:
        yield (word, *islice(words, int(word.startswith("--") and word not in ALONE)))


def _join(parts: Iterable[tuple[str, ...]]) -> str:
    words = (word for part in parts for word in part)
    return " ".join(word if word == "…" else shlex.quote(word) for word in words)  # … of options not known


def flavour_of(plan: EnginePlan | None, name: str, command: str) -> str:
    """The flavour that compiled a plan; raises `BundleError` if that is unknown."""
    flavour = plan.library.partition(" ")[0] if plan else ""
    if flavour not in FLAVOURS:
        raise BundleError(
            f"the manifest does not say which TensorRT compiled {name}.",
            remedy=f"Rebuild it: {rebuild(command)}.",
        )
    return flavour


def check_library(library: Library, plan: EnginePlan, name: str, command: str) -> None:
    """Plans run on the very version that compiled them; raises `BundleError` otherwise."""
    if library.version == plan.library:
        return
    flavour, _, version = plan.library.partition(" ")
    raise BundleError(
        f"{name} was compiled by {plan.library}, and {library.version} is installed.",
        remedy=f"pip install {DISTRIBUTIONS[flavour]}=={version}, or rebuild: {rebuild(command)}.",
    )


def check_gpu(gpu: Gpu, plan: EnginePlan, size: int, name: str, command: str, portable: bool) -> None:
    """Whether a plan of `size` bytes is for this GPU and fits; raises `BundleError`.

    A `portable` plan runs on other GPUs than those it was compiled for, and the library tells on which.
    """
    here = f"{gpu.name} {gpu.capability}"
    if not portable and plan.target != here:
        raise BundleError(
            f"{name} was compiled for {plan.target}; this GPU is {here}.",
            remedy=f"Rebuild it on this machine: {rebuild(for_gpu(command, gpu.capability, portable))}.",
        )
    free = gpu.free_memory()
    if size > free and not plan.streamable:
        raise BundleError(
            f"{name} takes {size / 1e9:.1f} GB, and {gpu.name} has {free / 1e9:.1f} GB free.",
            remedy="End other programs that use it, or rebuild with --weight-streaming: "
            f"{rebuild(command, '--weight-streaming')}.",
        )


def check_validity(
    library: Library, runtime: Any, data: Any, gpu: Gpu, name: str, command: str, target: str = ""
) -> None:
    """Ask TensorRT-RTX's runtime whether a plan for `target` runs here; raises `BundleError` with its reasons."""
    validity, bits = runtime.get_engine_validity(data)
    if validity != library.api.EngineValidity.INVALID:
        return
    said, usual = library.explain(f"Rebuild it: {rebuild(command)}.")
    members = library.api.EngineInvalidityDiagnostics.__members__
    for word, (what, remedy) in _REASONS.items():
        if int(members[word]) & int(bits):
            told = {
                "gpu": f"{gpu.name} {gpu.capability}",
                "command": rebuild(command),
                "another": _another(library, gpu, command, target),
            }
            raise BundleError(f"{name} {what.format_map(told)} ({said}).", remedy=remedy.format_map(told))
    raise BundleError(f"{name} does not run here: {said}.", remedy=usual)


def _another(library: Library, gpu: Gpu, command: str, target: str) -> str:
    """What builds a plan of TensorRT-RTX again where it was not compiled for this GPU."""
    if hasattr(library.api.ComputeCapability, gpu.capability):
        more = for_gpu(command, gpu.capability, True, target)
        return f"Rebuild it for this one, too: {rebuild(more)}"
    command = without(for_backend(command, "tensorrt"), ("--capability",))
    command = for_gpu(command, gpu.capability, False)
    return f"TensorRT-RTX does not compile for it, build with --backend tensorrt instead: {rebuild(command)}"


def check_tensors(
    api: Any, engine: Any, spec: EngineSpec, plan: EnginePlan, path: Path, command: str
) -> None:
    """Raise `BundleError` unless a loaded plan has the tensors and profiles of the manifest."""
    found = {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        dtype = np.dtype(api.nptype(engine.get_tensor_dtype(name))).name
        is_input = engine.get_tensor_mode(name) == api.TensorIOMode.INPUT
        found[name] = (is_input, dtype, len(tuple(engine.get_tensor_shape(name))))
    wanted = {
        tensor.name: (tensor in spec.inputs, tensor.dtype, len(tensor.shape))
        for tensor in (*spec.inputs, *spec.outputs)
    }
    if found != wanted or engine.num_optimization_profiles != len(plan.profiles):
        raise BundleError(
            f"{path.name} has tensors {found} and {engine.num_optimization_profiles} profiles; its manifest "
            f"says {wanted} and {len(plan.profiles)}.",
            remedy=f"Rebuild it: {rebuild(command)}.",
        )
