"""Counts the floating point operations of a network: exact coefficients of `FlopModel` from six small calls."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from ..engines import EngineSpec, FlopModel
from ..errors import ExportError

Shape = tuple[int, int, int, int]
"""(rows, frames, cells high, cells wide)."""

# Five unknowns, five calls: frames vary at one size, sizes at one frame. The sixth only checks.
SHAPES: tuple[Shape, ...] = ((1, 1, 8, 16), (1, 2, 8, 16), (1, 3, 8, 16), (1, 1, 16, 16), (1, 1, 24, 16))
CHECK: Shape = (1, 5, 16, 32)
_DYADIC = 2.0**12
"""Coefficients are whole multiples of 1 over this: a pair of cells at the U-Net's deepest level is 1/64**2."""


def measure_work(network: str, module: nn.Module, spec: EngineSpec) -> FlopModel:
    """The coefficients of one network in the form that is exported (single-token cross-attention folded).

    Nothing is computed: the calls run on PyTorch's meta device, on shapes alone, so that it costs the same for
    any width of network. Exact for one row; positions in time, which the rows of a batch share, count once a
    row (3e-5 of the whole at 576x1024). Raises `ExportError` if the operations do not grow as `FlopModel` says.
    """
    meta = {
        name: torch.empty_like(tensor, device="meta")
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }
    counted = [count_flops(module, meta, spec, shape) for shape in SHAPES]
    columns = [[1, f, f * h * w, f * (h * w) ** 2, f * f * h * w] for _, f, h, w in SHAPES]
    solved = np.linalg.solve(np.array(columns, np.float64), np.array(counted, np.float64))
    # A coefficient below zero is no network of this form either: without it the check fails.
    work = FlopModel(*(max(float(value), 0.0) for value in np.round(solved * _DYADIC) / _DYADIC))
    rows, frames, high, wide = CHECK
    expected = count_flops(module, meta, spec, CHECK)
    found = work.flops(rows=rows, frames=frames, cells=high * wide)
    if found != expected:
        raise ExportError(
            f"the operations of {network} do not grow as expected: {found:.4g} instead of {expected:.4g}.",
            remedy="The network is none that this exporter knows; please report it.",
        )
    return work


def count_flops(module: nn.Module, weights: dict[str, Any], spec: EngineSpec, shape: Shape) -> int:
    """Operations of one call, as PyTorch's `FlopCounterMode` counts them, with `weights` on the meta device."""
    rows, frames, high, wide = shape
    sizes = {"rows": rows, "frames": frames, "batch": frames, "latent_height": high, "latent_width": wide}
    sizes |= {"height": high * 8, "width": wide * 8}
    inputs = tuple(
        torch.empty([sizes[d] if isinstance(d, str) else d for d in tensor.shape], device="meta")
        for tensor in spec.inputs
    )
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        functional_call(module, weights, inputs)
    return int(counter.get_total_flops())
