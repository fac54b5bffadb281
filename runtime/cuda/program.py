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
from .device import Device, Replay
from .launches import STILL

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
        specs = {tensor.name: tensor for tensor in (*unet.spec.inputs, *unet.spec.outputs)}
        dtypes = {name: np.dtype(spec.dtype) for name, spec in specs.items()}
        token, channels = specs["embedding"].shape[2], specs["pose"].shape[2]
        assert isinstance(token, int)
        assert isinstance(channels, int)
        if layout.jobs > 1 and (layout.deep or len(layout.kinds) > 1):
            raise ValueError("jobs share steps of one kind only, that run the whole U-Net")
        cells, jobs, empty = layout.cells, layout.jobs, device.empty
        frames, plans = jobs * layout.frames, [*(rows.batches for rows in layout.kinds), *layout.together]
        most = max(size for batches in plans for size in batches)
        rows, slots = max(map(sum, plans)), len(layout.kinds[0].plan[0])
        self.latents = empty((frames, 4, *cells), np.float32)
        """float32 [jobs*F,4,h,w] on the device."""
        self.previous = empty((frames, 4, *cells), np.float32)
        """The latents before the last step."""
        self.image = empty((jobs, 4, *cells), np.float32)
        self.pose = empty((frames, channels, *cells), dtypes["pose"])
        self.embedding = empty((jobs, 1, token), dtypes["embedding"])
        self.time_ids = empty((jobs, 3), np.float32)
        self.guidance = {guided: self.put(np.ones(frames, np.float32)) for guided in (True, False)}
        """Of the jobs, and 1 for steps without it."""
        self.numbers = empty((jobs, 4), np.float32)
        self.inputs = {
            "latents": empty((most, slots, 8, *cells), dtypes["latents"]),
            "timestep": empty((most,), dtypes["timestep"]),
            "embedding": empty((most, 1, token), dtypes["embedding"]),
            "time_ids": empty((most, 3), dtypes["time_ids"]),
            "pose": empty((most, slots, channels, *cells), dtypes["pose"]),
        }
        self.answers = {"prediction": empty((rows, slots, 4, *cells), dtypes["prediction"])}
        if layout.deep:
            width = specs["deep"].shape[2]
            assert isinstance(width, int)
            self.answers["deep"] = empty((rows, slots, width, *cells), dtypes["deep"])
        if jobs > 1:  # a slot without a job holds numbers, too
            device.upload(np.zeros(self.latents.shape, np.float32), self.latents)
        self._tables: dict[Running, launches.Tables] = {}
        self._form_of: dict[tuple[Any, ...], Form] = {}
        for kind, of in enumerate(layout.kinds):
            for count in range(1, jobs + 1):
                if (of.form, count) not in self._form_of:
                    running = (kind, tuple(range(count)))
                    self._form_of[of.form, count] = Form(self, device, layout, running, unet, outer, graphs)

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
        for values, array, size in (
            (conditions.image_latents[None], self.image, 1),
            (conditions.pose, self.pose, self._layout.frames),
            (conditions.embedding[None], self.embedding, 1),
            (np.array([conditions.time_ids]), self.time_ids, 1),
            (guidance, self.guidance[True], self._layout.frames),
            (noise, self.latents, self._layout.frames),
        ):
            into = self._device.part(array, slot * size, (slot + 1) * size)
            self._device.upload(np.ascontiguousarray(values, array.dtype), into)

    def step(self, step: Step, kind: int = 0) -> None:
        """Bring the first slot's latents to the next sigma by the rows of one kind of the layout's."""
        self.advance({0: step}, kind)

    def advance(self, steps: Mapping[int, Step], kind: int = 0) -> None:
        """Bring the latents of some slots to their next sigmas at once; those of the others stand still."""
        slots = tuple(sorted(steps))
        form = self._form_of[self._layout.kinds[kind].form, len(slots)]
        form.hold((kind, slots))
        numbers = np.tile(STILL, (self._layout.jobs, 1))
        numbers[list(slots)] = launches.step_numbers([steps[slot] for slot in slots])
        self._device.upload(numbers, self.numbers)
        for slot in slots:
            self._device.copy(self.of(slot, self.latents), self.of(slot, self.previous))
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

    def read(self, array: Any, slot: int = 0) -> Float:
        """The values of one job in `latents` or `previous`, once the steps asked for are done."""
        return self._device.download(self.of(slot, array))

    def put(self, values: NDArray[Any]) -> Any:
        """Values of the host in an array of the device."""
        array = self._device.empty(values.shape, values.dtype)
        self._device.upload(values, array)
        return array


Running = tuple[int, tuple[int, ...]]
"""A kind of steps, and the slots that run one."""


class Form:
    """Steps that differ in nothing but their tables: bindings and graphs on a program's arrays."""

    def __init__(
        self,
        program: StepProgram,
        device: Device,
        layout: Layout,
        running: Running,
        unet: Engine,
        outer: Engine | None,
        graphs: bool,
    ) -> None:
        self._program, self._device, self._layout = program, device, layout
        kind, slots = running
        self._rows, self._batches, self._held = layout.kinds[kind], program.batches(kind, len(slots)), running
        self._tables = {name: program.put(values) for name, values in vars(program.tables(running)).items()}
        self.calls = self._bind(unet, {}, program.answers)
        self.whole = device.record(lambda stream: self._work(self.calls, stream), graphs=graphs)
        self.outer: Replay | None = None
        if layout.deep:
            assert outer is not None
            kept = {"deep": program.answers["deep"]}
            first = self._bind(outer, kept, {"prediction": program.answers["prediction"]})
            self.outer = device.record(lambda stream: self._work(first, stream), graphs=graphs)

    def hold(self, running: Running) -> None:
        """Have the tables of steps of this form where the graph reads them."""
        if self._held != running:
            for name, values in vars(self._program.tables(running)).items():
                self._device.upload(values, self._tables[name])
            self._held = running

    def _bind(self, engine: Engine, kept: Mapping[str, Any], answers: Mapping[str, Any]) -> list[Any]:
        part, calls, row = self._device.part, [], 0
        for size in self._batches:
            inputs = {name: part(array, 0, size) for name, array in self._program.inputs.items()}
            inputs |= {name: part(array, row, row + size) for name, array in kept.items()}
            outputs = {name: part(array, row, row + size) for name, array in answers.items()}
            calls.append(engine.bind(inputs, outputs))
            row += size
        return calls

    def _work(self, calls: list[Any], stream: Any) -> None:
        """One step: gather, U-Net for each batch; then blend, guide and step."""
        row, program = 0, self._program
        for size, call in zip(self._batches, calls, strict=True):
            self._gather(row, size, stream)
            self._device.call(call, stream)
            row += size
        high, wide = self._layout.cells
        self._device.launch(
            launches.blend_step(self._layout.frames, high * wide, self._layout.jobs),
            program.answers["prediction"], self._tables["first"], self._tables["covers"],
            program.guidance[self._rows.guided], program.numbers, program.latents,
            stream=stream,
        )  # fmt: skip

    def _gather(self, row: int, size: int, stream: Any) -> None:
        device, program, inputs = self._device, self._program, self._program.inputs
        (high, wide), slots = self._layout.cells, len(self._rows.plan[0])
        frames = device.part(self._tables["frames"], row, row + size)
        conditional = device.part(self._tables["conditional"], row, row + size)
        jobs = device.part(self._tables["jobs"], row, row + size)
        pose, embedding = program.pose, program.embedding
        device.launch(
            launches.gather(size, slots, high * wide),
            program.latents, program.image, frames, conditional, jobs, program.numbers, inputs["latents"],
            stream=stream,
        )  # fmt: skip
        device.launch(
            launches.gather_conditions(size, slots, pose.shape[1] * high * wide, pose.dtype),
            pose, frames, conditional, inputs["pose"],
            stream=stream,
        )  # fmt: skip
        device.launch(
            launches.gather_conditions(size, 1, embedding.shape[2], pose.dtype),
            embedding, jobs, conditional, inputs["embedding"],
            stream=stream,
        )  # fmt: skip
        device.launch(launches.timesteps(size), jobs, program.numbers, inputs["timestep"], stream=stream)
        device.launch(launches.time_ids(size), program.time_ids, jobs, inputs["time_ids"], stream=stream)


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
