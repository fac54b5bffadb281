"""The layers that a plan really has, as TensorRT's engine inspector tells them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import EngineError

FLOAT32 = ("fp32", "float32", "float")
"""How inspectors name it, in lower case."""


@dataclass(frozen=True, slots=True)
class Layers:
    """What a plan is made of after all fusions."""

    kinds: Mapping[str, int]
    """How many of each kind, the most frequent first."""
    wide: tuple[str, ...]
    """Names of those that answer in float32 only."""

    @property
    def count(self) -> int:
        """All of them."""
        return sum(self.kinds.values())


def read_layers(text: str) -> Layers:
    """Layers of an inspector's JSON; raises `EngineError` if it is not in the detailed form that builds here have."""
    try:
        layers = json.loads(text)["Layers"]
        kinds = Counter(layer["LayerType"] for layer in layers)
        wide = [layer["Name"] for layer in layers if _only_float32(layer.get("Outputs", ()))]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(
            f"the engine inspector's answer is not understood: {type(error).__name__} {error}.",
            remedy="The bundle may still run; rebuild it with this version to have its layers told.",
        ) from error
    return Layers(dict(kinds.most_common()), tuple(wide))


def _only_float32(outputs: Iterable[Mapping[str, Any]]) -> bool:
    """Of layers without outputs nothing is said. Old inspectors name format and dtype in one string."""
    words = [
        str(tensor.get("Datatype", tensor.get("Format/Datatype", ""))).lower().split() for tensor in outputs
    ]
    return bool(words) and all(any(word in FLOAT32 for word in tensor) for tensor in words)
