"""What a compiled plan is judged by where its GPU is here: calls at the shapes that it was compiled for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from ..engines import EngineSpec, Profile
from .proof import Case, example_inputs, record_case
from .trajectory import CELLS

MOST_TOKENS = 2**18
"""Rows x frames x cells that PyTorch computes for one network, all profiles together: 16 frames of 576x1024 in one
row are 147456. Larger profiles are left to what ONNX Runtime says of the graph."""
Trajectory = Callable[[tuple[int, int], int, int], list[Case]]
"""Records a denoising of a size (width, height), a number of frames and of steps, a case for each row."""


def record_plan_cases(
    name: str,
    spec: EngineSpec,
    original: Callable[..., Any],
    profiles: Iterable[Profile],
    trajectory: Trajectory,
) -> list[Case]:
    """The original's answers at the usual shape of each profile, the smallest first, as far as a CPU computes them.

    The U-Net's rows are those of a denoising, from the first sigma to the last. Pictures that are a single cell
    at its deepest level judge no plan: norms there magnify rounding (`trajectory.FEWEST_CELLS`).
    """
    cases, left = [], MOST_TOKENS
    for seed, shape in enumerate(sorted(map(usual_shape, profiles), key=_tokens)):
        if name.startswith("unet") and shape[2] * shape[3] <= CELLS:
            continue
        left -= _tokens(shape)
        if left < 0:
            break
        rows, frames, high, wide = shape
        if name == "unet":
            cases.append(stack(trajectory((wide * 8, high * 8), frames, rows), rows))
        else:
            cases.append(record_case(original, example_inputs(name, spec, shape, seed)))
    return cases


def usual_shape(profile: Profile) -> tuple[int, int, int, int]:
    """(rows, frames, cells high, cells wide); 1 where a network has no such dimension."""
    usual = {name: size for name, (_, size, _) in profile.dims.items()}
    rows, frames = usual.get("rows", usual.get("batch", 1)), usual.get("frames", 1)
    high, wide = usual.get("height", 8) // 8, usual.get("width", 8) // 8
    return rows, frames, usual.get("latent_height", high), usual.get("latent_width", wide)


def stack(cases: list[Case], rows: int) -> Case:
    """One case of `rows` rows out of cases of one row each, spread over them evenly."""
    chosen = [cases[index * len(cases) // rows] for index in range(rows)]
    inputs = {name: torch.cat([case.inputs[name] for case in chosen]) for name in chosen[0].inputs}
    return Case(inputs, tuple(map(torch.cat, zip(*(case.answers for case in chosen), strict=True))))


def _tokens(shape: tuple[int, int, int, int]) -> int:
    rows, frames, high, wide = shape
    return rows * frames * high * wide
