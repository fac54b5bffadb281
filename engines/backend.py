"""What every backend offers, and `open_engine`, which imports a backend only when a bundle needs it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from ..errors import BundleError
from .bundle import Bundle
from .cuda import Gpu
from .spec import Array, EngineSpec
from .weight_table import Delta, WeightChanges

BACKENDS = {
    "onnxruntime": "onnxruntime_backend",
    "tensorrt": "tensorrt_backend",
    "tensorrt-rtx": "tensorrt_backend",
    "torch": "torch_backend",
}
"""Backend name in the manifest -> module of this room."""

Call = Callable[[], None]
"""Runs an engine once on the arrays it was bound to."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an engine runs, and with what."""

    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:1`; `auto` is a GPU where the backend has one."""
    threads: int | None = None
    """CPU threads of one call; None takes every core. Means nothing on a GPU."""
    spin_threads: bool = False
    """Keep CPU threads spinning between operators: faster where these are many and short, and a waste of a core
    where they are long."""
    stream: str = ""
    """On a GPU, engines of one stream, by whatever name, take turns and share scratch memory; those of different
    ones run side by side."""


ANYWHERE = Placement()


class Engine(Protocol):
    """One loaded network."""

    @property
    def spec(self) -> EngineSpec:
        """Its tensors."""

    @property
    def gpu(self) -> Gpu | None:
        """Where it runs; None on a CPU."""

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Call:
        """Fix the arrays of a call: each call reads and writes this memory, and allocates none.

        Raises `EngineError` if an array is not what the spec says.
        """

    def close(self) -> None:
        """Free what the engine holds; no call may follow."""


def open_engine(
    bundle: Bundle,
    network: str,
    placement: Placement = ANYWHERE,
    *,
    deltas: Mapping[str, Delta] | None = None,
) -> Engine:
    """Load one network of a bundle on its backend; raises `BundleError`.

    `deltas` are added to tensors of its file (`weight_table.make_changes`), which stays as it is.
    """
    name = bundle.manifest.backend
    if name not in BACKENDS:
        raise BundleError(
            f"{bundle.folder} was built for {name!r}, which this version does not run.",
            remedy=f"Rebuild it with --backend {' or '.join(BACKENDS)}.",
        )
    module = importlib.import_module(f".{BACKENDS[name]}", __package__)
    found = bundle.manifest.networks[network]
    changes = WeightChanges(deltas, bundle.graph_path(network)) if deltas else None
    engine: Engine = module.open_engine(
        bundle.engine_path(network), found.spec, placement, plan=found.plan, changes=changes
    )
    return engine
