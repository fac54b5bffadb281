"""Figures of a network: what a call costs, and what its graph is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class FlopModel:
    """Floating point operations of the matrix products and convolutions of one network; a multiply-add is two.

    A call has `rows` rows of `frames` frames of `pixels` latent pixels each (height/8 * width/8). Networks
    without rows have one; a batch of pictures counts as frames. Raises `ValueError` when built with a
    coefficient that is negative or no finite number.
    """

    fixed: float
    """A row: embeddings of its timestep and ids, and its token through the folded cross-attention."""
    frame: float
    """A frame, whatever its size: its time embedding; all of the image encoder."""
    linear: float
    """A latent pixel: convolutions and linear layers."""
    spatial: float
    """A pair of pixels of one frame: attention over space."""
    temporal: float
    """A pair of frames at one pixel: attention over time."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"work {f.name} is {value}, not a number of operations")

    def flops(self, *, rows: float = 1, frames: float = 1, pixels: float = 0) -> float:
        """rows (fixed + frames (frame + pixels (linear + pixels spatial + frames temporal)))."""
        of_a_pixel = self.linear + pixels * self.spatial + frames * self.temporal
        return rows * (self.fixed + frames * (self.frame + pixels * of_a_pixel))


@dataclass(frozen=True, slots=True)
class GraphStats:
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
