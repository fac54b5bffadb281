"""What a network's graph is made of, where speed is won or lost."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Audit:
    """Counts of a graph's operators; raises `ValueError` when built with a negative one."""

    operators: int
    """All of them, constants excepted."""
    products: int
    """Matrix products and convolutions with weights."""
    wide: int
    """Those of them that multiply in float32."""
    attention: int
    """Attentions recognised: one operator each, one fused kernel."""
    softmax: int
    """Attentions left in pieces."""
    norms: int
    transposes: int
    casts: int
    shapes: int
    """Operators that compute sizes only."""

    def __post_init__(self) -> None:
        for f in fields(self):
            if getattr(self, f.name) < 0:
                raise ValueError(f"audit {f.name} is negative")
