"""Denoising on a GPU with the face of `denoise.Denoiser`, on step programs that are kept from job to job."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..denoise import Conditions, split_rows
from ..engines import Engine
from ..errors import OutOfMemory
from ..schedule import Kind, Step
from ..segments import Plan
from .buckets import Buckets
from .crew import Crew
from .launches import branches_of, open_device
from .program import Layout, Rows, StepProgram

Float = NDArray[np.float32]
Make = Callable[[Layout, Engine, Engine | None], StepProgram]
"""A program of a layout on the U-Net, and on its first level alone where the layout is deep."""


class ProgramCache:
    """Step programs with the jobs on them, the last used last; at most `most` idle ones are kept, graphs and all.

    Where memory runs out, the idle ones go first.
    """

    def __init__(self, make: Make, most: int = 4, buckets: Buckets | None = None) -> None:
        self._make, self._most = make, most
        self.buckets = buckets
        """Which batches pay; None: all that the engine takes."""
        self._crews: list[Crew] = []
        self._lock, self._making = threading.Lock(), threading.Lock()
        self.made = 0
        """How many programs were captured so far."""

    def join(self, layout: Layout, unet: Engine, outer: Engine | None = None) -> tuple[Crew, int]:
        """A slot in a program of this layout, a new one on these engines if none has a free one; until `leave`."""
        found = self._find(layout)
        if found is not None:
            return found
        with self._making:  # of two jobs that come at once, the second finds what the first has made
            found = self._find(layout)
            if found is not None:
                return found
            crew = Crew(self._made(layout, unet, outer), layout)
            slot = crew.join()
            assert slot is not None
            with self._lock:
                self._crews.append(crew)
            return crew, slot

    def leave(self, crew: Crew, slot: int, *, broken: bool = False) -> None:
        """A job is over; what a broken one left on the device is unknown, so nobody else gets its program.

        The program unused for longest is closed where there are too many, and a broken one after its last job.
        """
        with self._lock:
            crew.leave(slot)
            if crew in self._crews:
                self._crews.remove(crew)
                if not (broken or crew.broken):
                    self._crews.append(crew)
            idle = [one for one in self._crews if one.idle]
            over = idle[: max(0, len(idle) - self._most)]
            self._crews = [one for one in self._crews if one not in over]
            if crew.idle and crew not in self._crews and crew not in over:
                over.append(crew)
        for one in over:
            one.program.close()

    def free_unused(self) -> bool:
        """Close all idle programs; whether there were any."""
        with self._lock:
            idle = [one for one in self._crews if one.idle]
            self._crews = [one for one in self._crews if one not in idle]
        for one in idle:
            one.program.close()
        return bool(idle)

    def close(self) -> None:
        """Give back all that is held; no job may be under way, and none may follow."""
        self.free_unused()
        if self.buckets is not None:
            self.buckets.device.close()

    def __len__(self) -> int:
        return sum(crew.idle for crew in self._crews)

    def _made(self, layout: Layout, unet: Engine, outer: Engine | None) -> StepProgram:
        self.made += 1
        try:
            return self._make(layout, unet, outer)
        except OutOfMemory:
            if not self.free_unused():
                raise
        return self._make(layout, unet, outer)  # out of the handler, which keeps half of the first one alive

    def _find(self, layout: Layout) -> tuple[Crew, int] | None:
        with self._lock:
            for crew in reversed(self._crews):
                if crew.layout == layout and (slot := crew.join()) is not None:
                    return crew, slot
        return None


def open_programs(unet: Engine, build: str, *, graphs: bool) -> ProgramCache | None:
    """Step programs on the GPU on which an engine runs; None if it runs on none of ours.

    `build` is the bundle's, under which it is kept which batches pay.
    Raises `KernelError` if the kernels do not compile or load there.
    """
    gpu = unet.gpu
    if gpu is None:
        return None
    device = open_device(gpu, unet.spec.dtypes["latents"])

    def make(layout: Layout, whole: Engine, outer: Engine | None) -> StepProgram:
        return StepProgram(device, whole, layout, graphs=graphs, outer=outer)

    programs = ProgramCache(make, buckets=Buckets(device, unet, f"{build} {gpu.name} {gpu.capability}"))
    gpu.reclaimable.add(programs)
    return programs


def make_batches(
    plan: Plan, weights: Float, guidance: Float, sizes: Sequence[int], *, guided: bool = True
) -> Rows:
    """The rows of a plan [S,N] with fusion weights [S,N], guidance [F], in batches of `sizes` rows.

    The last batch may hold rows that count nothing, where the rows are no sum of the sizes.
    """
    branches = branches_of(guidance)
    batches = batch_sizes(len(plan) * len(branches), sizes)
    return Rows(
        tuple(map(tuple, plan.tolist())), tuple(map(tuple, weights.tolist())), branches, batches, guided
    )


def batch_sizes(rows: int, sizes: Sequence[int]) -> tuple[int, ...]:
    """The batches, each of one of `sizes`, that hold so many rows."""
    return tuple(min(size for size in sizes if size >= part) for part in split_rows(rows, sizes))


def make_layout(
    rows: Mapping[Kind, Rows],
    frames: int,
    cells: tuple[int, int],
    sizes: Sequence[int],
    jobs: int,
    *,
    deep: bool,
) -> Layout:
    """What a program is made for; up to `jobs` jobs share it, in batches of `sizes`, if steps are of one kind."""
    kinds = tuple(rows.values())
    alone = deep or len(kinds) > 1
    each = len(kinds[0].plan) * len(kinds[0].branches)
    counts = range(2, 1 if alone else jobs + 1)
    return Layout(kinds, frames, cells, deep, tuple(batch_sizes(count * each, sizes) for count in counts))


class CudaDenoiser:
    """One clip in a step program. Its latents are on the GPU; `latents` and `previous` fetch them."""

    def __init__(
        self,
        programs: ProgramCache,
        layout: Layout,
        kinds: Sequence[Kind],
        conditions: Conditions,
        guidance: Float,
        noise: Float,
        unet: Engine,
        outer: Engine | None = None,
    ) -> None:
        self._programs, self._kinds = programs, list(kinds)
        crew, self._slot = programs.join(layout, unet, outer)
        self._crew: Crew | None = crew
        self.segments, self.frames = len(layout.kinds[0].plan), layout.frames
        self.rows = crew.program.rows
        try:
            crew.program.start(conditions, guidance, noise, self._slot)
        except BaseException:
            self.close(broken=True)
            raise

    @property
    def latents(self) -> Float:
        """float32 [F,4,h,w]: a copy."""
        program = self._opened().program
        return program.read(program.latents, self._slot)

    @property
    def previous(self) -> Float:
        """The latents before the last step: a copy."""
        program = self._opened().program
        return program.read(program.previous, self._slot)

    def step(self, step: Step) -> None:
        """Bring the latents to the next sigma; returns when the work is put on the GPU's stream."""
        self._opened().step(self._slot, step, self._kinds.index(step.kind))

    def run(self, step: Step) -> Iterator[int]:
        """The same; a step is one graph, so there is nothing to tell before its end."""
        self.step(step)
        yield self.segments

    def finished(self, frame: int, step: Step) -> Float:
        """Frame [4,h,w] as the step just made sees it without noise: x0 = x - sigma d."""
        program = self._opened().program
        x, following = (
            program.read(array, self._slot, frame) for array in (program.previous, program.latents)
        )
        x0: Float = x - np.float32(step.sigma / (step.next - step.sigma)) * (following - x)
        return x0

    def close(self, *, broken: bool = False) -> None:
        """Leave the program to the next job, or to nobody if something failed: what is left behind is unknown."""
        if self._crew is not None:
            self._programs.leave(self._crew, self._slot, broken=broken)
            self._crew = None

    def _opened(self) -> Crew:
        if self._crew is None:
            raise ValueError("this denoiser was closed")
        return self._crew
