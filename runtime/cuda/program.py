"""The step program on a GPU: the whole step is one graph, captured once for a shape and replayed for each sigma.

What changes from step to step (timestep, scale, keep, push; which rows run, where steps are of several kinds)
and from job to job (latents, poses, picture, guidance) lies in the device's memory, so that the graph never
changes. Nothing is allocated between jobs.

A program may have slots for several jobs of equal shape. Each is at a step of its own; those that go on at the same
time share a graph and the U-Net's batches, and the others' latents stand still.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..denoise import Conditions
from ..engines import Engine
from ..schedule import Step
from . import launches
from .forms import Arrays, Form, Running
from .launches import STILL, Device

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Rows:
    """What the steps of one kind run."""

    plan: tuple[tuple[int, ...], ...]
    """Frames of each segment [S][N]."""
    weights: tuple[tuple[float, ...], ...]
    """Their weights in the fusion [S][N]."""
    branches: tuple[bool, ...]
    """Conditional (True) and not conditional (False) rows of each segment."""
    batches: tuple[int, ...]
    """Rows in each of the U-Net's calls, in order."""
    guided: bool = True
    """Whether the job's guidance counts; else it is 1."""

    @property
    def form(self) -> tuple[Any, ...]:
        """Rows of equal form run on the same graph."""
        return len(self.plan), self.branches, self.batches, self.guided

    def tables(self) -> launches.Tables:
        """What the kernels read of them."""
        plan, weights = np.array(self.plan), np.array(self.weights, np.float32)
        return launches.make_tables(plan, weights, self.branches)


@dataclass(frozen=True)
class Layout:
    """What a program is captured for; equal layouts can run on one program."""

    kinds: tuple[Rows, ...]
    """The rows of each kind of steps; all segments are of equally many frames."""
    frames: int
    cells: tuple[int, int]
    """(high, wide)."""
    deep: bool = False
    """Whether steps may run the U-Net's first level alone, around kept features."""
    together: tuple[tuple[int, ...], ...] = ()
    """Batches of the U-Net for 2, 3, … jobs at once, whose rows are all of the one kind; empty for one job alone."""

    @property
    def jobs(self) -> int:
        """How many jobs a program has slots for."""
        return 1 + len(self.together)


class StepProgram:
    """Arrays, bindings and graphs of one layout. For each job: `start`, then `step` for each sigma.

    If `layout.deep`, `unet` also answers its deep features and `outer` is the U-Net's first level alone. With
    slots for several jobs, `advance` steps some of them at once.
    """

    def __init__(
        self,
        device: Device,
        unet: Engine,
        layout: Layout,
        *,
        graphs: bool = True,
        outer: Engine | None = None,
    ) -> None:
        self._device, self._layout = device, layout
        if layout.jobs > 1 and (layout.deep or len(layout.kinds) > 1):
            raise ValueError("jobs share steps of one kind only, that run the whole U-Net")
        self._arrays: Arrays | None = Arrays.take(device, unet, layout)
        self._tables: dict[Running, launches.Tables] = {}
        self._form_of: dict[tuple[Any, ...], Form] = {}
        try:
            self._record(unet, outer, graphs)
        except BaseException:
            self.close()  # there may have been room for half of it
            raise

    def _record(self, unet: Engine, outer: Engine | None, graphs: bool) -> None:
        layout = self._layout
        for kind, of in enumerate(layout.kinds):
            for count in range(1, layout.jobs + 1):
                if (of.form, count) not in self._form_of:
                    running = (kind, tuple(range(count)))
                    self._form_of[of.form, count] = Form(
                        self._device, layout, running, self.batches(kind, count), self.tables(running),
                        self.arrays, unet, outer, graphs=graphs,
                    )  # fmt: skip

    @property
    def arrays(self) -> Arrays:
        """Its memory on the device; raises `ValueError` once the program is closed."""
        if self._arrays is None:
            raise ValueError("the step program was closed")
        return self._arrays

    @property
    def latents(self) -> Any:
        """float32 [jobs*F,4,h,w] on the device."""
        return self.arrays.latents

    @property
    def previous(self) -> Any:
        """The latents before the last step."""
        return self.arrays.previous

    @property
    def rows(self) -> int:
        """Rows in a step of the first kind."""
        return sum(self._layout.kinds[0].batches)

    @property
    def calls(self) -> list[Any]:
        """The U-Net bound for each batch of a step of the first kind, in order."""
        return self._form_of[self._layout.kinds[0].form, 1].calls

    def start(self, conditions: Conditions, guidance: Float, noise: Float, slot: int = 0) -> None:
        """Load a job into a slot: its conditions, guidance [F], and latents [F,4,h,w] at the first sigma."""
        arrays = self.arrays
        for values, array, size in (
            (conditions.image_latents[None], arrays.image, 1),
            (conditions.pose, arrays.pose, self._layout.frames),
            (conditions.embedding[None], arrays.embedding, 1),
            (np.array([conditions.time_ids]), arrays.time_ids, 1),
            (guidance, arrays.guidance[True], self._layout.frames),
            (noise, arrays.latents, self._layout.frames),
        ):
            into = self._device.part(array, slot * size, (slot + 1) * size)
            self._device.upload(np.ascontiguousarray(values, array.dtype), into)

    def step(self, step: Step, kind: int = 0) -> None:
        """Bring the first slot's latents to the next sigma by the rows of one kind of the layout's."""
        self.advance({0: step}, kind)

    def advance(self, steps: Mapping[int, Step], kind: int = 0) -> None:
        """Bring the latents of some slots to their next sigmas at once; those of the others stand still."""
        slots, arrays = tuple(sorted(steps)), self.arrays
        form = self._form_of[self._layout.kinds[kind].form, len(slots)]
        form.hold((kind, slots), self.tables((kind, slots)))
        numbers = np.tile(STILL, (self._layout.jobs, 1))
        numbers[list(slots)] = launches.step_numbers([steps[slot] for slot in slots])
        self._device.upload(numbers, arrays.numbers)
        for slot in slots:
            self._device.copy(self.of(slot, arrays.latents), self.of(slot, arrays.previous))
        whole = all(step.whole for step in steps.values())
        (form.whole if whole or form.outer is None else form.outer)()

    def mark(self) -> Callable[[], None]:
        """What waits until all steps that were asked for by now are done."""
        return self._device.mark()

    def tables(self, running: Running) -> launches.Tables:
        """What the kernels read when these slots run steps of this kind."""
        if running not in self._tables:
            kind, slots = running
            joined = launches.join_tables(self._layout.kinds[kind].tables(), slots, self._layout.jobs)
            self._tables[running] = padded(joined, sum(self.batches(kind, len(slots))))
        return self._tables[running]

    def batches(self, kind: int, jobs: int) -> tuple[int, ...]:
        """Rows in each of the U-Net's calls when so many jobs run steps of this kind."""
        return self._layout.kinds[kind].batches if jobs == 1 else self._layout.together[jobs - 2]

    def of(self, slot: int, array: Any) -> Any:
        """One job's frames of an array of all jobs' frames."""
        return self._device.part(array, slot * self._layout.frames, (slot + 1) * self._layout.frames)

    def read(self, array: Any, slot: int = 0, frame: int | None = None) -> Float:
        """The values of one job in `latents` or `previous`, or of one frame, once the steps asked for are done."""
        own = self.of(slot, array)
        if frame is None:
            return self._device.download(own)
        values: Float = self._device.download(self._device.part(own, frame, frame + 1))[0]
        return values

    def close(self) -> None:
        """Give graphs, bindings and memory back once the steps asked for are done; no call may follow."""

        def release() -> None:
            for form in self._form_of.values():
                form.close()
            self._form_of, self._arrays = {}, None

        self._device.release_after(release)


def padded(tables: launches.Tables, rows: int) -> launches.Tables:
    """The same with rows of the first job that are not conditional and cover no frame, up to `rows` in all."""
    more = rows - len(tables.frames)
    if more < 0:
        raise ValueError(f"{len(tables.frames)} rows do not fit into {rows}")
    frames = np.pad(tables.frames, ((0, more), (0, 0)))
    return replace(
        tables,
        frames=frames,
        conditional=np.pad(tables.conditional, (0, more)),
        jobs=np.pad(tables.jobs, (0, more)),
    )
