"""TensorRT and TensorRT-RTX: two libraries with one interface, and whether a plan is for this library and GPU."""

from __future__ import annotations

import functools
import importlib
import threading
import weakref
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from ..errors import BundleError
from .cuda import Gpu, gpu_index, open_gpu
from .spec import FLAVOURS, EnginePlan

EXTRAS = {"tensorrt": "gpu", "tensorrt-rtx": "rtx"}
"""Flavour -> the extra of this package that installs it."""
DISTRIBUTIONS = {"tensorrt": "tensorrt-cu13", "tensorrt-rtx": "tensorrt-rtx-cu13"}
"""Flavour -> what that extra installs."""
REBUILD = "Rebuild the bundle: `mimicmotion-trt inspect` shows the command that built it."
DOCTOR = "Rebuild the bundle for this GPU, see `mimicmotion-trt doctor`."
MESSAGES = 50
"""Messages of the library that are remembered for an error."""

_HINTS = (
    (("version is insufficient", "insufficient driver", "insufficient cuda version"),
     "Update the GPU's driver (CUDA 13 needs release 580 or newer)."),
    (("insufficient workspace", "the workspace size", "the workspace memory"),
     "Give more --workspace, or leave it out; without it, build for a smaller --size, --segment or --batch."),
    (("out of memory", "outofmemory", "insufficient memory", "memory is insufficient"),
     "Use fewer pixels, frames or rows, or free memory on the GPU."),
    (("compute capability", "incompatible device"),
     "Rebuild the bundle on this machine, or with --capability for its GPU."),
    (("this version of tensorrt, expecting", "version tag does not match", "serialization version",
      "plan major version", "newer plan file", "library version"),
     "Install the version that built the bundle, or rebuild it."),
    (("magic",), "The plan is damaged or of the other flavour: rebuild the bundle."),
    # inside the compiler; any failed call of CUDA reads like that, so all else comes first
    (("cuda_success",), "This option needs a GPU where the plan is built: leave out --refit, or build there."),
)  # fmt: skip
"""What the library says -> the remedy; the first that has one of its words in it."""
_REASONS = {
    "MALFORMED_ENGINE": ("is damaged", REBUILD),
    "VERSION_MISMATCH": ("was compiled by another version", REBUILD),
    "OLD_CUDA_DRIVER": ("needs a newer driver", "Update the GPU's driver."),
    "OLD_CUDA_RUNTIME": ("needs a newer CUDA", "Update the GPU's driver and the packages of the rtx extra."),
    "INSUFFICIENT_GPU_MEMORY": (
        "needs more memory than the GPU has free",
        "End other programs that use it, or build for a smaller --size, --segment or --batch.",
    ),
    "UNSUPPORTED_CC": ("was not compiled for this GPU, {here}", DOCTOR),
}
"""TensorRT-RTX's reasons why a plan does not run -> what is wrong, and the remedy."""


@dataclass(frozen=True)
class Library:
    """One flavour, ready to use."""

    flavour: str
    api: Any
    """The module, `tensorrt` or `tensorrt_rtx`."""
    logger: Any
    """Its logger, which keeps the library's errors in `messages`."""
    messages: deque[str]

    @property
    def version(self) -> str:
        """`tensorrt-rtx 1.7.1.116`."""
        return f"{self.flavour} {self.api.__version__}"

    def start(self, kind: Any) -> Any:
        """An object of the library that takes its logger; raises `BundleError` where it cannot start."""
        try:
            return kind(self.logger)
        except (TypeError, RuntimeError) as error:  # pybind11's words for a null pointer
            reason, remedy = self.explain(
                "It needs a GPU and a driver that work: see `mimicmotion-trt doctor`."
            )
            raise BundleError(
                f"{self.version} cannot start: {reason}.", remedy=remedy, field="backend"
            ) from error

    def explain(self, usual: str) -> tuple[str, str]:
        """The library's messages since the last call on one line, and the remedy for them, else the `usual` one."""
        reason = "; ".join(dict.fromkeys(self.messages)) or "it gave no reason"
        self.messages.clear()
        text = reason.lower()
        remedy = next((hint for words, hint in _HINTS if any(word in text for word in words)), usual)
        return reason, remedy


@dataclass(frozen=True)
class Session:
    """One library on one stream of a GPU, for all engines there: they take turns and share scratch memory."""

    library: Library
    gpu: Gpu
    runtime: Any = field(repr=False)

    @property
    def portable(self) -> bool:
        """Whether plans run on other GPUs than those they were compiled for; the runtime tells on which."""
        return hasattr(self.runtime, "get_engine_validity")


@functools.cache  # the library keeps the first logger that it is given, so there can be one only
def open_library(flavour: str) -> Library:
    """Import a flavour; raises `BundleError` that says what to install."""
    try:
        api: Any = importlib.import_module(FLAVOURS[flavour])
    except (ImportError, OSError) as error:  # OSError: it is there, a file that it needs is not
        raise BundleError(
            f"{flavour} is not installed, or cannot be loaded: {error}.",
            remedy=f"pip install 'mimicmotion-trt[{EXTRAS[flavour]}]'",
            field="backend",
        ) from error
    messages: deque[str] = deque(maxlen=MESSAGES)
    return Library(flavour, api, make_logger(api, messages), messages)


def make_logger(api: Any, messages: deque[str]) -> Any:
    """A logger that keeps errors and prints nothing."""

    class Log(api.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            api.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (api.ILogger.Severity.INTERNAL_ERROR, api.ILogger.Severity.ERROR):
                messages.append(" ".join(message.split()))

    return Log()


_sessions: weakref.WeakValueDictionary[tuple[str, int, str], Session] = weakref.WeakValueDictionary()
_opening = threading.Lock()


def open_session(flavour: str, device: str, stream: str) -> Session:
    """The session of a flavour and a stream of a device; it goes with its last engine. Raises `BundleError`."""
    index = gpu_index(device)
    with _opening:
        session = _sessions.get((flavour, index, stream))
        if session is None:
            gpu = open_gpu(index, EXTRAS[flavour])
            library = open_library(flavour)
            session = Session(library, gpu, library.start(library.api.Runtime))
            _sessions[flavour, index, stream] = session
        return session


def flavour_of(plan: EnginePlan | None, name: str) -> str:
    """The flavour that compiled a plan; raises `BundleError` if that is unknown."""
    flavour = plan.library.partition(" ")[0] if plan else ""
    if flavour not in FLAVOURS:
        raise BundleError(f"the manifest does not say which TensorRT compiled {name}.", remedy=REBUILD)
    return flavour


def check_plan(session: Session, plan: EnginePlan, size: int, name: str) -> None:
    """Raise `BundleError` if a plan of `size` bytes is not for this library's version and this GPU, or too large."""
    library, gpu, here = session.library, session.gpu, f"{session.gpu.name} {session.gpu.capability}"
    if library.version != plan.library:
        flavour, _, version = plan.library.partition(" ")
        raise BundleError(
            f"{name} was compiled by {plan.library}, and {library.version} is installed.",
            remedy=f"pip install {DISTRIBUTIONS[flavour]}=={version}, or rebuild the bundle.",
        )
    if not session.portable and plan.target != here:
        raise BundleError(f"{name} was compiled for {plan.target}; this GPU is {here}.", remedy=DOCTOR)
    free = gpu.free_memory()
    if size > free and not plan.streamable:
        raise BundleError(
            f"{name} takes {size / 1e9:.1f} GB, and {gpu.name} has {free / 1e9:.1f} GB free.",
            remedy="End other programs that use it, or rebuild the bundle with --weight-streaming.",
        )


def check_validity(session: Session, data: Any, name: str) -> None:
    """Ask TensorRT-RTX's runtime whether a plan runs here; raises `BundleError` with its reason."""
    library, here = session.library, f"{session.gpu.name} {session.gpu.capability}"
    validity, bits = session.runtime.get_engine_validity(data)
    if validity != library.api.EngineValidity.INVALID:
        return
    reason, usual = library.explain(REBUILD)
    members = library.api.EngineInvalidityDiagnostics.__members__
    for word, (what, remedy) in _REASONS.items():
        if int(members[word]) & int(bits):
            raise BundleError(f"{name} {what.format(here=here)} ({reason}).", remedy=remedy)
    raise BundleError(f"{name} does not run here: {reason}.", remedy=usual)
