"""The one face of every backend, and the table that imports each only when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from ..errors import BundleError
from .bundle import Bundle
from .plan import Plan
from .spec import Array, EngineSpec

BACKENDS = {
    "onnxruntime": "onnxruntime_backend",
    "tensorrt": "tensorrt_backend",
    "tensorrt-rtx": "tensorrt_backend",
    "torch": "torch_backend",
}
"""Backend name in the manifest -> module of this room."""

Call = Callable[[], None]
"""Runs an engine once on the arrays it was bound to."""


class Engine(Protocol):
    """One loaded network."""

    @property
    def spec(self) -> EngineSpec:
        """Its tensors."""

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Call:
        """Fix the arrays of a call: each call reads and writes this memory and allocates none of its own.

        Raises `EngineError` if an array is not what the spec says.
        """

    def close(self) -> None:
        """Give back what the engine holds; no call may follow."""


class Backend(Protocol):
    """What each backend's module offers."""

    def open_engine(
        self,
        path: Path,
        spec: EngineSpec,
        *,
        device: str,
        threads: int | None,
        alert: bool,
        plan: Plan | None,
        stream: str,
        command: str,
    ) -> Engine:
        """Load one engine file; raises `BundleError` if it does not fit the spec or the machine.

        `plan` is what the manifest says of how the file was compiled, `command` what builds its bundle again.
        """


def open_engine(
    bundle: Bundle,
    network: str,
    *,
    device: str = "auto",
    threads: int | None = None,
    alert: bool = False,
    stream: str = "",
) -> Engine:
    """Load one network of a bundle on its backend.

    `alert` keeps CPU threads spinning between operators: faster where these are many and short, and a waste
    of a core where they are long. On a GPU, engines of one `stream`, by whatever name, take turns and share
    scratch memory; those of different ones run side by side.
    """
    name = bundle.manifest.backend
    if name not in BACKENDS:
        raise BundleError(
            f"{bundle.folder} was built for {name!r}, which this version does not run.",
            remedy=f"Rebuild it with --backend {' or '.join(BACKENDS)}.",
        )
    module: Backend = importlib.import_module(f".{BACKENDS[name]}", __package__)
    found = bundle.manifest.networks[network]
    return module.open_engine(
        bundle.engine_path(network),
        found.spec,
        device=device,
        threads=threads,
        alert=alert,
        plan=found.plan,
        stream=stream,
        command=bundle.manifest.command,
    )
