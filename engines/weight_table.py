"""Which tensors of an engine's file hold which weights of the checkpoint, so that these can be changed at load.

The exporter writes the table beside the engine. A layer goes by its path in the checkpoint, without the network's
prefix and `.weight`: `down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q`.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..errors import BundleError
from ..files import write_atomic
from .spec import Array

SUFFIX = ".layers.json"
"""The table of `unet` is the file `unet.layers.json`."""

Delta = Callable[[], Array]
"""Computes what is added to a tensor: an array of as many numbers, in its order."""


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor of an engine's file that holds a layer's weight, or some rows of it."""

    tensor: str
    rows: tuple[int, int] | None = None
    """The first row, and the one after the last; None: all."""
    scale: float = 1.0
    """The tensor is the weight times this."""
    transposed: bool = False

    def part(self, weight: Array) -> Array:
        """This tensor's part of a layer's weight [rows, …], or of what is added to it."""
        rows = weight if self.rows is None else weight[slice(*self.rows)]
        flat = rows.reshape(len(rows), -1)
        return (flat.T if self.transposed else flat) * self.scale


@dataclass(frozen=True, slots=True)
class LayerWeight:
    """The weight of a layer of the checkpoint."""

    shape: tuple[int, ...]
    places: tuple[Place, ...] = ()
    """All that depends on it; none: the network computes the same whatever it is."""
    fixed: bool = False
    """It cannot be changed here: left out because it is zero, shared with an equal one, or stored in float8."""

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(outputs, inputs times kernel)."""
        return self.shape[0], math.prod(self.shape[1:])


WeightTable = Mapping[str, LayerWeight]
"""Layers by their paths."""


@dataclass(frozen=True)
class WeightChanges:
    """What is added to the weights of an engine when it is loaded."""

    deltas: Mapping[str, Delta]
    """By the names of tensors."""
    graph: Path | None = None
    """The ONNX file that a plan was compiled from."""


def make_changes(table: WeightTable, added: Mapping[str, Delta]) -> Iterator[tuple[str, Delta]]:
    """For each tensor that changes, its name and what is added to it.

    `added` says what is added to layers' weights: [rows, …] for each path. Layers that the table lacks are not in
    this network. Raises `BundleError` for one that is fixed.
    """
    for path, delta in added.items():
        layer = table.get(path)
        if layer is None:
            continue
        if layer.fixed:
            raise BundleError(
                f"the weight of {path} cannot be changed in this bundle: it was left out because it is zero, is"
                " shared with an equal one, or is stored in float8.",
                remedy="Merge the LoRA into the checkpoint and build a bundle from that.",
                field="lora",
            )
        for place in layer.places:
            yield place.tensor, functools.partial(_part_of, place, delta)


def check_range(name: str, finite: bool, dtype: object) -> None:
    """Raise `BundleError` if a changed weight is not finite in its dtype."""
    if not finite:
        raise BundleError(
            f"the weight {name} leaves the range of {dtype} with the LoRA.",
            remedy="Choose a lower strength.",
            field="lora",
        )


def _part_of(place: Place, delta: Delta) -> Array:
    return place.part(delta())


def write_table(path: Path, table: WeightTable) -> Path:
    """Write a table, a line for each layer; what is as usual is left out."""
    usual = asdict(Place(""))
    lines = []
    for name, layer in table.items():
        places = [
            {key: value for key, value in asdict(place).items() if value != usual[key]}
            for place in layer.places
        ]
        entry: dict[str, Any] = {"shape": layer.shape, "places": places}
        lines.append(f"{json.dumps(name)}: {json.dumps(entry | ({'fixed': True} if layer.fixed else {}))}")
    write_atomic(path, "{\n" + ",\n".join(lines) + "\n}\n")
    return path


def read_table(path: Path) -> dict[str, LayerWeight]:
    """Read a table; raises `BundleError`."""
    try:
        table: dict[str, LayerWeight] = TypeAdapter(dict[str, LayerWeight]).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise BundleError(f"{path} cannot be read ({error}).", remedy="Rebuild the bundle.") from None
    return table
