"""The denoising loop: one step program, run once for each sigma, on memory that is taken once.

A row is one branch (conditional or not) of one segment. A step *gathers* rows from the latents, runs the
*U-Net* on each batch of rows, and *blends, guides and steps* the latents. Since fusion, guidance and
the Euler step are all linear in the predictions, the last three are one weighted sum:

    latents <- keep latents + push sum_rows share[row] prediction[row]

with share = fusion weight times g (conditional row) or 1 - g (unconditional row).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .engines import Call, Engine
from .kernels import blend, gather
from .schedule import Step
from .segments import Plan

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Conditions:
    """What stays the same over all steps of a clip of F frames."""

    embedding: Float
    """CLIP's token [1,D]."""
    image_latents: Float
    """[4,h,w], not multiplied by the scaling factor."""
    pose: Float
    """PoseNet's features [F,C,h,w]."""
    time_ids: tuple[float, float, float]
    """(fps - 1, motion bucket, noise_aug)."""


@dataclass(frozen=True)
class Row:
    """One row: which frames, whether it is conditional, and how much each of its predictions counts [N]."""

    frames: NDArray[np.intp]
    conditional: bool
    share: Float


def make_rows(plan: Plan, weights: Float, guidance: Float) -> list[Row]:
    """Rows of every segment; `guidance` [F] of exactly 1 everywhere needs no unconditional rows.

    Unconditional prediction plus g times the difference is (1-g) unconditional + g conditional.
    """
    rows = []
    for frames, weight in zip(plan, weights, strict=True):
        for conditional, part in ((True, guidance), (False, 1 - guidance)):
            if np.any(part):
                rows.append(Row(frames, conditional, weight * part[frames]))
    return rows


class Denoiser:
    """The step program of one clip, bound to its arrays."""

    def __init__(self, unet: Engine, conditions: Conditions, rows: list[Row], batch: int) -> None:
        self._conditions = conditions
        self._batches = [rows[start : start + batch] for start in range(0, len(rows), batch)]
        frames, slots = len(conditions.pose), len(rows[0].frames)
        cells = conditions.image_latents.shape[1:]
        size = min(batch, len(rows))
        self._inputs = {
            "latents": np.zeros((size, slots, 8, *cells), np.float32),
            "timestep": np.zeros(size, np.float32),
            "embedding": np.zeros((size, 1, conditions.embedding.shape[-1]), np.float32),
            "time_ids": np.tile(np.array(conditions.time_ids, np.float32), (size, 1)),
            "pose": np.zeros((size, slots, *conditions.pose.shape[1:]), np.float32),
        }
        self._prediction = np.empty((size, slots, 4, *cells), np.float32)
        self._share = np.empty(slots, np.float32)
        self._scratch = np.empty((slots, 4, *cells), np.float32)
        self._calls = {len(rows): self._bind(unet, len(rows)) for rows in self._batches}
        self.latents = np.zeros((frames, 4, *cells), np.float32)
        """float32 [F,4,h,w]: set before the first step, read after any."""
        self.previous = np.zeros_like(self.latents)
        """The latents before the last step."""

    @property
    def segments(self) -> int:
        """Segments in the clip."""
        return sum(row.conditional for batch in self._batches for row in batch) or self.rows

    @property
    def rows(self) -> int:
        """Rows in a step."""
        return sum(map(len, self._batches))

    def step(self, step: Step) -> None:
        """Bring the latents to the next sigma."""
        for _ in self.run(step):
            pass

    def run(self, step: Step) -> Iterator[int]:
        """The same, yielding the number of segments done after every batch; until the end, latents stay."""
        self._inputs["timestep"][:] = step.timestep
        following = np.multiply(self.latents, np.float32(step.keep), out=self.previous)
        done = 0
        for batch in self._batches:
            for index, row in enumerate(batch):
                self._gather(index, row, step.scale)
            self._calls[len(batch)]()
            for index, row in enumerate(batch):
                np.multiply(row.share, np.float32(step.push), out=self._share)
                blend(self._prediction[index], self._share, row.frames, following, self._scratch)
            done += len(batch)
            yield done * self.segments // self.rows
        self.latents, self.previous = following, self.latents

    def finished(self, frame: int, step: Step) -> Float:
        """Frame [4,h,w] as the step just made sees it without noise: x0 = x - sigma d."""
        x, following = self.previous[frame], self.latents[frame]
        x0: Float = x - np.float32(step.sigma / (step.next - step.sigma)) * (following - x)
        return x0

    def _gather(self, index: int, row: Row, scale: float) -> None:
        latents, pose = self._inputs["latents"][index], self._inputs["pose"][index]
        gather(self.latents, row.frames, scale, latents[:, :4])
        if row.conditional:
            latents[:, 4:] = self._conditions.image_latents
            np.take(self._conditions.pose, row.frames, axis=0, out=pose, mode="clip")
            self._inputs["embedding"][index] = self._conditions.embedding
        else:
            latents[:, 4:] = 0
            pose[:] = 0
            self._inputs["embedding"][index] = 0

    def _bind(self, unet: Engine, rows: int) -> Call:
        inputs = {name: array[:rows] for name, array in self._inputs.items()}
        return unet.bind(inputs, {"prediction": self._prediction[:rows]})


def guidance_ramp(guidance: tuple[float, float], frames: int) -> Float:
    """Guidance of each frame [F], linear from the first to the last."""
    return np.linspace(*guidance, frames, dtype=np.float32)


def batches(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover `count`."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
