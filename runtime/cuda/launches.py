"""What the kernels of `kernels.cu` are launched with: tables of the segments, grids, and scalars.

Numpy only. A `Launch` is run as `launch(stream, LaunchConfig(grid=blocks, block=threads), kernels[kernel],
*pointers, *scalars)`; the pointers are those that its function's docstring names, in that order, each aligned
to 16 bytes. `REAL` stands for the dtype that the kernels were compiled for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..schedule import Step
from ..segments import Plan

Float = NDArray[np.float32]

THREADS = 256
"""Threads in a block."""
KERNELS = (
    "gather",
    "gather_conditions",
    "gather_conditions_narrow",
    "timesteps",
    "blend_step",
    "decoder_input",
    "to_pictures",
    "to_pictures_narrow",
)
COVER = np.dtype([("prediction", np.int32), ("conditional", np.int32), ("weight", np.float32)])
"""One row's prediction for one frame: row * N + slot, whether the row is conditional, its fusion weight."""


@dataclass(frozen=True)
class Tables:
    """The rows of a step and what covers each frame, as the kernels read them.

    Rows stand in the order of `denoise.make_rows`; a batch of rows reads its slice of `frames` and
    `conditional`. Guidance is not in here: the kernels read it from memory.
    """

    frames: NDArray[np.int32]
    """[R,N]: the frames of each row."""
    conditional: NDArray[np.int32]
    """[R]: 1 or 0."""
    first: NDArray[np.int32]
    """[F+1]: frame f is covered by covers[first[f]:first[f+1]]."""
    covers: NDArray[np.void]
    """COVER [R*N], by frame, then by row."""


def branches_of(guidance: Float) -> tuple[bool, ...]:
    """The branches that guidance [F] needs: conditional (True), not conditional (False)."""
    return tuple(
        branch for branch, part in ((True, guidance), (False, np.float32(1) - guidance)) if np.any(part)
    )


def make_tables(plan: Plan, weights: Float, branches: Sequence[bool] = (True, False)) -> Tables:
    """Tables of a plan [S,N] with its fusion weights [S,N]; each segment has one row a branch."""
    frames = np.repeat(plan, len(branches), axis=0).astype(np.int32)
    conditional = np.tile(np.array(branches, np.int32), len(plan))
    order = np.argsort(frames, axis=None, kind="stable")
    covers = np.empty(frames.size, COVER)
    covers["prediction"] = order
    covers["conditional"] = conditional[order // frames.shape[1]]
    covers["weight"] = np.repeat(weights, len(branches), axis=0).ravel()[order]
    first = np.concatenate([[0], np.cumsum(np.bincount(frames.ravel()))]).astype(np.int32)
    return Tables(frames, conditional, first, covers)


def step_numbers(steps: Sequence[Step]) -> Float:
    """[steps,4]: timestep, scale, keep and push of each step; the kernels read one row of it."""
    return np.array([(s.timestep, s.scale, s.keep, s.push) for s in steps], np.float32).reshape(-1, 4)


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel, but for its pointers."""

    kernel: str
    blocks: int
    scalars: tuple[np.generic, ...]
    threads: int = THREADS


def gather(rows: int, slots: int, cells: int) -> Launch:
    """latents f32 [F,4,h,w], image f32 [4,h,w], frames, conditional, step -> out REAL [rows,slots,8,h,w].

    cells is h*w.
    """
    return _launch("gather", rows * slots, cells, np.int32(slots), np.uint32(cells))


def gather_conditions(rows: int, slots: int, size: int, dtype: Any) -> Launch:
    """source REAL [F,size], frames, conditional -> out REAL [rows,slots,size]: poses.

    With one slot a row and frames of zero, the embedding: source [1,size].
    """
    name, packs = _packs("gather_conditions", size, dtype)
    return _launch(name, rows * slots, packs, np.int32(slots), np.uint32(packs))


def timesteps(rows: int) -> Launch:
    """step -> out f32 [rows]."""
    return _launch("timesteps", 1, rows, np.uint32(rows))


def blend_step(frames: int, cells: int) -> Launch:
    """predictions REAL [R,N,4,h,w], first, covers, guidance f32 [F], step -> latents f32 [F,4,h,w], in place."""
    return _launch("blend_step", frames, cells, np.uint32(cells))


def decoder_input(frames: int, cells: int, scaling_factor: float) -> Launch:
    """latents f32 [frames,4,h,w] -> out REAL [frames,4,h,w]."""
    return _launch("decoder_input", frames, cells, np.float32(scaling_factor), np.uint32(cells))


def to_pictures(count: int, pixels: int, dtype: Any) -> Launch:
    """planes REAL [count,3,H,W] in [-1, 1] -> out uint8 [count,H,W,3]; pixels is H*W."""
    name, packs = _packs("to_pictures", pixels, dtype)
    return _launch(name, count, packs, np.uint32(packs))


def _launch(kernel: str, items: int, packs: int, *scalars: np.generic) -> Launch:
    """A thread for each pack; every item has blocks of its own."""
    return Launch(kernel, items * -(-packs // THREADS), scalars)


def _packs(kernel: str, size: int, dtype: Any) -> tuple[str, int]:
    """The wide kernel and its packs of 16 bytes where these fill `size` elements, or the narrow one."""
    wide = 16 // np.dtype(dtype).itemsize
    return (kernel, size // wide) if size % wide == 0 else (f"{kernel}_narrow", size)
