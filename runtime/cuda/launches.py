"""What the kernels of `kernels.cu` are launched with: a plan's tables, grids, scalars; and the device they run on.

A `Launch` is run as `launch(stream, LaunchConfig(grid=blocks, block=threads), kernels[kernel],
*pointers, *scalars)`; the pointers are those that its function's docstring names, in that order, each aligned
to 16 bytes. `REAL` stands for the dtype that the kernels were compiled for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..denoise.plan import StepVariant
from ..denoise.schedule import Step
from ..engines.cuda import Gpu
from ..engines.cuda_device import CudaDevice, Launch
from .compiler import compile_kernels

Float = NDArray[np.float32]

THREADS = 256
"""Threads in a block."""
KERNELS = (
    "gather",
    "gather_conditions",
    "gather_conditions_narrow",
    "timesteps",
    "time_ids",
    "blend_step",
    "decoder_input",
    "to_pictures",
    "to_pictures_narrow",
)
COVER = np.dtype([("prediction", np.int32), ("conditional", np.int32), ("weight", np.float32)])
"""One row's prediction for one frame: row * N + index in the segment, whether the row is conditional, its weight."""


STILL = np.array([0, 1, 1, 0], np.float32)
"""The numbers of a job that stands still: keep 1, push 0."""


@dataclass(frozen=True)
class Tables:
    """The rows of a step and which of them hold each frame, as the kernels read them: a plan's upload.

    Rows stand in the order of `StepVariant.rows`, job after job; a batch of rows reads its slice of `frames`,
    `conditional`, `posed` and `jobs`. Guidance is not in here: the kernels read it from the device's memory.
    """

    frames: NDArray[np.int32]
    """[R,N]: the frames of each row."""
    conditional: NDArray[np.int32]
    """[R]: 1 or 0."""
    posed: NDArray[np.int32]
    """[R]: 1 in conditional rows of jobs whose step takes pose features, else 0."""
    jobs: NDArray[np.int32]
    """[R]: the slot of the row's job."""
    first: NDArray[np.int32]
    """[slots*F+1]: frame f has the predictions covers[first[f]:first[f+1]]."""
    covers: NDArray[np.void]
    """COVER [R*N], by frame, then by row; none for padding rows, so that their weight is 0."""


def make_tables(
    variant: StepVariant,
    running: Sequence[int] = (0,),
    slots: int = 1,
    *,
    posed: Sequence[int] | None = None,
    rows: int | None = None,
) -> Tables:
    """The tables of a step in which the jobs in the slots `running` (ascending, of `slots`) run a variant.

    Those in the slots `posed`, or all of them, take their pose features. With `rows`, unconditional padding rows of
    the first frame are added up to so many.
    """
    frames = np.array([row.frames for row in variant.rows], np.int32)
    conditional = np.array([row.conditional for row in variant.rows], np.int32)
    weights = np.repeat(variant.weights, len(variant.branches), axis=0)
    order = np.argsort(frames, axis=None, kind="stable")  # by frame, then by row
    covers = np.empty(frames.size, COVER)
    covers["prediction"] = order
    covers["conditional"] = conditional[order // frames.shape[1]]
    covers["weight"] = weights.ravel()[order]
    covers = np.tile(covers, (len(running), 1))
    covers["prediction"] += (np.arange(len(running)) * frames.size).astype(np.int32)[:, None]
    in_frame = np.bincount(frames.ravel())
    counts = np.zeros((slots, len(in_frame)), np.int32)
    counts[list(running)] = in_frame
    with_pose = np.isin(running, running if posed is None else posed).astype(np.int32)
    used = len(running) * len(frames)
    padding = used if rows is None else rows
    if padding < used:
        raise ValueError(f"{used} rows do not fit into {rows}")
    return Tables(
        frames=_padded(
            np.concatenate([frames + np.int32(slot * len(in_frame)) for slot in running]), padding
        ),
        conditional=_padded(np.tile(conditional, len(running)), padding),
        posed=_padded(np.outer(with_pose, conditional).ravel(), padding),
        jobs=_padded(np.repeat(np.array(running, np.int32), len(frames)), padding),
        first=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        covers=covers.ravel(),
    )


def _padded(values: NDArray[np.int32], rows: int) -> NDArray[np.int32]:
    """The same with zeros up to so many rows."""
    return np.pad(values, [(0, rows - len(values)), *[(0, 0)] * (values.ndim - 1)])


def step_numbers(steps: Sequence[Step]) -> Float:
    """[steps,4]: timestep, scale, keep and push of each step; the kernels read a row for each job."""
    return np.array([(s.timestep, s.scale, s.keep, s.push) for s in steps], np.float32).reshape(-1, 4)


def open_device(gpu: Gpu, dtype: Any) -> CudaDevice:
    """A GPU with the kernels for one dtype of engine tensors.

    Raises `KernelError` if the kernels do not compile or load there.
    """
    arch = gpu.capability.lower().replace("sm", "sm_")
    return CudaDevice(gpu, compile_kernels(arch, np.dtype(dtype).name), KERNELS)


def gather(rows: int, segment_frames: int, pixels: int) -> Launch:
    """latents f32 [J*F,4,h,w], images f32 [J,4,h,w], frames, conditional, jobs, steps -> out REAL [rows,N,8,h,w].

    N is `segment_frames`, `pixels` h*w, and J how many jobs there are.
    """
    return _launch("gather", rows * segment_frames, pixels, np.int32(segment_frames), np.uint32(pixels))


def gather_conditions(rows: int, segment_frames: int, size: int, dtype: Any) -> Launch:
    """source REAL [F,size], frames, conditional -> out REAL [rows,N,size]: poses; N is `segment_frames`.

    With one frame a row and jobs for frames, it gathers the embeddings: source [jobs,size].
    """
    name, packs = _packs("gather_conditions", size, dtype)
    return _launch(name, rows * segment_frames, packs, np.int32(segment_frames), np.uint32(packs))


def timesteps(rows: int) -> Launch:
    """jobs, steps -> out f32 [rows]."""
    return _launch("timesteps", 1, rows, np.uint32(rows))


def time_ids(rows: int) -> Launch:
    """ids f32 [jobs,3], jobs -> out f32 [rows,3]."""
    return _launch("time_ids", 1, rows, np.uint32(rows))


def blend_step(frames: int, pixels: int, jobs: int = 1) -> Launch:
    """predictions REAL [R,N,4,h,w], first, covers, guidance f32 [J*F], steps -> broken i32 [J], latents
    f32 [J*F,4,h,w], in place.

    `frames` is F, of each of `jobs` jobs. A job whose latents are no longer finite gets 1 in `broken`.
    """
    return _launch("blend_step", jobs * frames, pixels, np.uint32(pixels), np.uint32(frames))


def decoder_input(frames: int, pixels: int, scaling_factor: float) -> Launch:
    """latents f32 [frames,4,h,w] -> out REAL [frames,4,h,w]."""
    return _launch("decoder_input", frames, pixels, np.float32(scaling_factor), np.uint32(pixels))


def to_pictures(count: int, pixels: int, dtype: Any) -> Launch:
    """planes REAL [count,3,H,W] in [-1, 1] -> broken i32 [1], out uint8 [count,H,W,3]; pixels is H*W.

    `broken` gets 1 if a plane is not finite.
    """
    name, packs = _packs("to_pictures", pixels, dtype)
    return _launch(name, count, packs, np.uint32(packs))


def _launch(kernel: str, items: int, packs: int, *scalars: np.generic) -> Launch:
    """A thread for each pack; every item has blocks of its own."""
    return Launch(kernel, items * -(-packs // THREADS), THREADS, scalars)


def _packs(kernel: str, size: int, dtype: Any) -> tuple[str, int]:
    """The wide kernel and its packs of 16 bytes where these fill `size` elements, or the narrow one."""
    wide = 16 // np.dtype(dtype).itemsize
    return (kernel, size // wide) if size % wide == 0 else (f"{kernel}_narrow", size)
