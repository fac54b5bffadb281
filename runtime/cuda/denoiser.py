"""Denoising on a GPU with the face of `denoise.Denoiser`, on step programs that are kept from job to job."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..denoise import Conditions, split_rows
from ..engines import Engine
from ..schedule import Kind, Step
from ..segments import Plan
from .buckets import Buckets
from .device import CudaDevice
from .launches import branches_of
from .program import Layout, Rows, StepProgram

Float = NDArray[np.float32]
Make = Callable[[Layout, Engine, Engine | None], StepProgram]
"""A program of a layout on the U-Net, and on its first level alone where the layout is deep."""


class ProgramCache:
    """Idle step programs, the last used last; at most `most` are kept, each with its memory and its graphs."""

    def __init__(self, make: Make, most: int = 4, buckets: Buckets | None = None) -> None:
        self._make, self._most = make, most
        self.buckets = buckets
        """Which batches pay; None: all that the engine takes."""
        self._idle: OrderedDict[int, tuple[Layout, StepProgram]] = OrderedDict()
        self._lock = threading.Lock()
        self.made = 0
        """How many programs were captured so far."""

    def take(self, layout: Layout, unet: Engine, outer: Engine | None = None) -> StepProgram:
        """An idle program of this layout, or a new one on these engines; the caller's until `give`."""
        with self._lock:
            for key, (found, program) in reversed(self._idle.items()):
                if found == layout:
                    del self._idle[key]
                    return program
            self.made += 1
        return self._make(layout, unet, outer)

    def give(self, layout: Layout, program: StepProgram) -> None:
        """Put a program back; the one unused for longest goes where there are too many."""
        with self._lock:
            self._idle[id(program)] = (layout, program)
            while len(self._idle) > self._most:
                self._idle.popitem(last=False)

    def __len__(self) -> int:
        return len(self._idle)


def open_programs(unet: Engine, build: str, *, graphs: bool) -> ProgramCache | None:
    """Step programs on the GPU on which an engine runs; None if it runs on none of ours.

    `build` is the bundle's, under which it is kept which batches pay.
    Raises `KernelError` if the kernels do not compile or load there.
    """
    gpu = getattr(unet, "gpu", None)
    if gpu is None:
        return None
    device = CudaDevice(gpu, unet.spec.dtypes["latents"])

    def make(layout: Layout, whole: Engine, outer: Engine | None) -> StepProgram:
        return StepProgram(device, whole, layout, graphs=graphs, outer=outer)

    return ProgramCache(make, buckets=Buckets(device, unet, f"{build} {gpu.name} {gpu.capability}"))


def make_batches(
    plan: Plan, weights: Float, guidance: Float, sizes: Sequence[int], *, guided: bool = True
) -> Rows:
    """The rows of a plan [S,N] with fusion weights [S,N], guidance [F], in batches of `sizes` rows.

    The last batch may hold rows that count nothing, where the rows are no sum of the sizes.
    """
    branches = branches_of(guidance)
    parts = split_rows(len(plan) * len(branches), sizes)
    batches = tuple(min(size for size in sizes if size >= part) for part in parts)
    return Rows(
        tuple(map(tuple, plan.tolist())), tuple(map(tuple, weights.tolist())), branches, batches, guided
    )


class CudaDenoiser:
    """The step program of one clip. Its latents are on the GPU; `latents` and `previous` fetch them."""

    def __init__(
        self,
        programs: ProgramCache,
        rows: Mapping[Kind, Rows],
        conditions: Conditions,
        guidance: Float,
        noise: Float,
        unet: Engine,
        outer: Engine | None = None,
    ) -> None:
        frames, (high, wide) = len(conditions.pose), conditions.image_latents.shape[1:]
        self._programs, self._kinds = programs, list(rows)
        self._layout = Layout(tuple(rows.values()), frames, (high, wide), outer is not None)
        self._program: StepProgram | None = programs.take(self._layout, unet, outer)
        self.segments = len(self._layout.kinds[0].plan)
        self.rows = self._program.rows
        self._program.start(conditions, guidance, noise)

    @property
    def latents(self) -> Float:
        """float32 [F,4,h,w]: a copy."""
        return self._opened().read(self._opened().latents)

    @property
    def previous(self) -> Float:
        """The latents before the last step: a copy."""
        return self._opened().read(self._opened().previous)

    def step(self, step: Step) -> None:
        """Bring the latents to the next sigma; returns when the work is put on the GPU's stream."""
        self._opened().step(step, self._kinds.index(step.kind))

    def run(self, step: Step) -> Iterator[int]:
        """The same; a step is one graph, so there is nothing to tell before its end."""
        self.step(step)
        yield self.segments

    def finished(self, frame: int, step: Step) -> Float:
        """Frame [4,h,w] as the step just made sees it without noise: x0 = x - sigma d."""
        x, following = self.previous[frame], self.latents[frame]
        x0: Float = x - np.float32(step.sigma / (step.next - step.sigma)) * (following - x)
        return x0

    def close(self) -> None:
        """Give the program back for the next job; a failed job must not: what it left behind is unknown."""
        if self._program is not None:
            self._programs.give(self._layout, self._program)
            self._program = None

    def _opened(self) -> StepProgram:
        if self._program is None:
            raise ValueError("this denoiser was closed")
        return self._program
