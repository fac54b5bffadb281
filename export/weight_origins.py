"""Where an engine's weights come from: parameters remember it while blocks are rewritten; and the table of it.

What the ONNX exporter does to a weight is found by content: it transposes those of linear layers without a bias,
under names of its own, and merges equal ones.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from torch import Tensor, nn

from ..engines.onnx_weights import HALVED, read_tensor
from ..engines.weight_table import LayerWeight, Place

UNUSED = (".attn2.to_q", ".attn2.to_k")
"""Layers without effect: cross-attention to a single token does not depend on its queries and keys (`rewrite`)."""


@dataclass(frozen=True)
class Origin:
    """What a parameter is in the checkpoint."""

    layer: str
    """The layer's path."""
    shape: tuple[int, ...]
    """Of the layer's whole weight."""
    rows: tuple[int, int] | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class Held:
    """A parameter of an engine's module whose origin is known."""

    origin: Origin
    digest: bytes
    """Of its values, row after row."""
    transposed: bytes
    """Of its values, column after column."""


def mark_origins(network: nn.Module) -> None:
    """Let the weight of every layer of a network remember its path."""
    for path, module in network.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.ndim > 1:
            weight.origin = Origin(path, tuple(weight.shape))  # type: ignore[attr-defined]


def derived(values: Tensor, source: Tensor, *, rows: slice | None = None, scale: float = 1.0) -> nn.Parameter:
    """A parameter made of another one, or of some of its rows, times `scale`; it remembers where that came from."""
    parameter, origin = nn.Parameter(values, requires_grad=False), getattr(source, "origin", None)
    if origin is not None:
        of_rows = None if rows is None else (rows.start, rows.stop)
        parameter.origin = replace(origin, rows=of_rows, scale=scale)  # type: ignore[attr-defined]
    return parameter


def marked_layers(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """The layers whose weights remember their paths, and the shapes of these."""
    origins = (getattr(parameter, "origin", None) for parameter in network.parameters())
    return {origin.layer: origin.shape for origin in origins if origin is not None}


def held_weights(module: nn.Module) -> dict[str, Held]:
    """The parameters of an engine's module whose origin is known, by name."""
    found = {}
    for name, parameter in module.named_parameters():
        if (origin := getattr(parameter, "origin", None)) is not None:
            values = parameter.detach().numpy()
            flat = values.reshape(len(values), -1)
            found[name] = Held(origin, _digest(values), _digest(flat.T))
    return found


def torch_table(layers: Mapping[str, tuple[int, ...]], held: Mapping[str, Held]) -> dict[str, LayerWeight]:
    """The table of a TorchScript file, whose tensors are named like the module's parameters."""
    return _make_table(layers, {name: (one, Place(name)) for name, one in held.items()})


def onnx_table(
    layers: Mapping[str, tuple[int, ...]], held: Mapping[str, Held], path: Path
) -> dict[str, LayerWeight]:
    """The table of an ONNX file."""
    named, by_content = {}, defaultdict(list)
    for tensor in onnx.load(str(path), load_external_data=False).graph.initializer:
        if len(tensor.dims) > 1 and tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
            values, name = read_tensor(path, tensor), tensor.name
            if name.endswith(HALVED):
                values, name = values.astype(np.float32), name.removesuffix(HALVED)
            named[name] = _digest(values)
            by_content[named[name]].append(name)
    places = {}
    for name, one in held.items():
        if named.get(name) == one.digest:
            places[name] = one, Place(name)
        elif len(found := by_content[one.transposed]) == 1:
            places[name] = one, Place(found[0], transposed=True)
        elif len(found := by_content[one.digest]) == 1:  # merged with an equal one
            places[name] = one, Place(found[0])
    return _make_table(layers, places)


def _make_table(
    layers: Mapping[str, tuple[int, ...]], places: Mapping[str, tuple[Held, Place]]
) -> dict[str, LayerWeight]:
    """The table of the places that were found; a layer that is not wholly found, or shares a tensor, is fixed."""
    used = Counter(place.tensor for _, place in places.values())
    found: dict[str, list[Place]] = defaultdict(list)
    for one, place in places.values():
        if used[place.tensor] == 1:
            found[one.origin.layer].append(replace(place, rows=one.origin.rows, scale=one.origin.scale))
    table = {}
    for layer, shape in layers.items():
        unused = layer.endswith(UNUSED)
        whole = shape[0] == sum(
            stop - start for start, stop in (p.rows or (0, shape[0]) for p in found[layer])
        )
        fixed = not (unused or whole)
        table[layer] = LayerWeight(shape, () if fixed else tuple(found[layer]), fixed)
    return table


def _digest(values: Any) -> bytes:
    """Of an array's shape and numbers; what has the same rows counts as the same."""
    array = np.ascontiguousarray(values)
    shape = repr((array.dtype.str, len(array), array.size)).encode()
    return hashlib.blake2b(shape + array.tobytes(), digest_size=16).digest()
