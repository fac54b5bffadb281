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
            raise BundleError(
                f"{self.version} cannot start: {self.reason()}.",
                remedy="It needs a GPU and a driver that work: see `mimicmotion-trt doctor`.",
                field="backend",
            ) from error

    def reason(self) -> str:
        """The library's messages since the last call, on one line."""
        reason = "; ".join(dict.fromkeys(self.messages)) or "it gave no reason"
        self.messages.clear()
        return reason


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

    @property
    def target(self) -> str:
        """This GPU as a plan's `target` names it: `NVIDIA L4 SM89`."""
        return f"{self.gpu.name} {self.gpu.capability}"


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


def check_plan(session: Session, plan: EnginePlan, size: int, name: str) -> None:
    """Raise `BundleError` if a plan of `size` bytes is not for this library's version and this GPU, or too large."""
    library, gpu = session.library, session.gpu
    if library.version != plan.library:
        flavour, _, version = plan.library.partition(" ")
        raise BundleError(
            f"{name} was compiled by {plan.library}, and {library.version} is installed.",
            remedy=f"pip install {DISTRIBUTIONS[flavour]}=={version}, or rebuild the bundle.",
        )
    if not session.portable and plan.target != session.target:
        raise BundleError(
            f"{name} was compiled for {plan.target}; this GPU is {session.target}.", remedy=DOCTOR
        )
    free = gpu.free_memory()
    if size > free and not plan.streamable:
        raise BundleError(
            f"{name} takes {size / 1e9:.1f} GB, and {gpu.name} has {free / 1e9:.1f} GB free.",
            remedy="End other programs that use it, or rebuild the bundle with --weight-streaming.",
        )


def check_validity(session: Session, data: Any, name: str) -> None:
    """Ask TensorRT-RTX's runtime whether a plan runs here; raises `BundleError` with its reasons."""
    api = session.library.api
    validity, bits = session.runtime.get_engine_validity(data)
    if validity == api.EngineValidity.INVALID:
        members = api.EngineInvalidityDiagnostics.__members__.items()
        kinds = ", ".join(kind for kind, member in members if int(member) & int(bits))
        raise BundleError(
            f"{name} does not run on {session.target}: {kinds} ({session.library.reason()}).", remedy=DOCTOR
        )
