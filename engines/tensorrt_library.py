"""TensorRT and TensorRT-RTX: two libraries with one interface, imported when they are asked for."""

from __future__ import annotations

import functools
import importlib
from collections import deque
from dataclasses import dataclass
from typing import Any

from ..errors import BundleError
from .plan import FLAVOURS

EXTRAS = {"tensorrt": "gpu", "tensorrt-rtx": "rtx"}
"""Flavour -> the extra of this package that installs it."""
DISTRIBUTIONS = {"tensorrt": "tensorrt-cu13", "tensorrt-rtx": "tensorrt-rtx-cu13"}
"""Flavour -> what that extra installs."""
KEPT = 50
"""Messages that are remembered for an error."""
_HINTS = (
    (
        ("version is insufficient", "insufficient driver", "insufficient cuda version"),
        "Update the GPU's driver (CUDA 13 needs release 580 or newer).",
    ),
    (
        ("insufficient workspace", "the workspace size", "the workspace memory"),
        "Give more --workspace, or leave it out; without it, build for a smaller --size, --segment or --batch.",
    ),
    (
        ("out of memory", "outofmemory", "insufficient memory", "memory is insufficient"),
        "Use fewer pixels, frames or rows, or free memory on the GPU.",
    ),
    (
        ("compute capability", "incompatible device"),
        "Rebuild the bundle on this machine, or with --capability for its GPU.",
    ),
    (
        (
            "this version of tensorrt, expecting",
            "version tag does not match",
            "serialization version",
            "plan major version",
            "newer plan file",
            "library version",
        ),
        "Install the version that built the bundle, or rebuild it.",
    ),
    (("magic",), "The plan is damaged or of the other flavour: rebuild the bundle."),
    (  # inside the compiler; any failed call of CUDA reads like that, so all else comes first
        ("cuda_success",),
        "This option needs a GPU where the plan is built: leave out --refit, or build there.",
    ),
)
"""What the library says -> the remedy; the first that has one of its words in it."""


@dataclass(frozen=True)
class Library:
    """One flavour, ready to use."""

    flavour: str
    api: Any
    """The module, `tensorrt` or `tensorrt_rtx`."""
    logger: Any
    """Its logger; what it says of warnings and errors is kept in `messages`."""
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
            said, remedy = self.explain(
                "It needs a GPU and a driver that work: see `mimicmotion-trt doctor`."
            )
            raise BundleError(
                f"{self.version} cannot start: {said}.", remedy=remedy, field="backend"
            ) from error

    def explain(self, usual: str) -> tuple[str, str]:
        """What the library has said since it was last asked, on one line, and the remedy that fits it."""
        said = "; ".join(dict.fromkeys(self.messages)) or "it gave no reason"
        self.messages.clear()
        text = said.lower()
        remedy = next((hint for words, hint in _HINTS if any(word in text for word in words)), usual)
        return said, remedy


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
    messages: deque[str] = deque(maxlen=KEPT)
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
