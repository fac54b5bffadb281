"""The step program on a GPU: the whole step is one graph, captured once for a shape and replayed for each sigma.

What changes from step to step (timestep, scale, keep, push; which rows run, where steps are of several kinds)
and from job to job (latents, poses, picture, guidance) lies in the device's memory, so that the graph never
changes. Nothing is allocated between jobs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..denoise import Conditions
from ..engines import Engine
from ..schedule import Step
from . import launches
from .device import Device, Replay

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
        """What the kernels read of them, padded to the rows of all batches."""
        plan, weights = np.array(self.plan), np.array(self.weights, np.float32)
        return padded(launches.make_tables(plan, weights, self.branches), sum(self.batches))


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


class StepProgram:
    """Arrays, bindings and graphs of one layout. One job at a time: `start`, then `step` for each sigma.

    If `layout.deep`, `unet` also answers its deep features and `outer` is the U-Net's first level alone.
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
        cells, frames, empty = layout.cells, layout.frames, device.empty
        most = max(size for rows in layout.kinds for size in rows.batches)
        rows, slots = max(sum(rows.batches) for rows in layout.kinds), len(layout.kinds[0].plan[0])
        self.latents = empty((frames, 4, *cells), np.float32)
        """float32 [F,4,h,w] on the device."""
        self.previous = empty((frames, 4, *cells), np.float32)
        """The latents before the last step."""
        self.image = empty((4, *cells), np.float32)
        self.pose = empty((frames, channels, *cells), dtypes["pose"])
        self.embedding = empty((1, 1, token), dtypes["embedding"])
        self.guidance = {guided: self.put(np.ones(frames, np.float32)) for guided in (True, False)}
        """Of the job, and 1 for steps without it."""
        self.numbers = empty((4,), np.float32)
        self.first_frame = self.put(np.zeros(most, np.int32))
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
        self._tables = [kind.tables() for kind in layout.kinds]
        self._form_of: dict[tuple[Any, ...], Form] = {}
        for kind, (of, tables) in enumerate(zip(layout.kinds, self._tables, strict=True)):
            if of.form not in self._form_of:
                self._form_of[of.form] = Form(self, device, layout, kind, tables, unet, outer, graphs)

    @property
    def rows(self) -> int:
        """Rows in a step of the first kind."""
        return sum(self._layout.kinds[0].batches)

    @property
    def calls(self) -> list[Any]:
        """The U-Net bound for each batch of a step of the first kind, in order."""
        return self._form_of[self._layout.kinds[0].form].calls

    def start(self, conditions: Conditions, guidance: Float, noise: Float) -> None:
        """Load a job: its conditions, guidance [F], and latents [F,4,h,w] at the first sigma."""
        ids = self.inputs["time_ids"]
        for values, array in (
            (conditions.image_latents, self.image),
            (conditions.pose, self.pose),
            (conditions.embedding[None], self.embedding),
            (guidance, self.guidance[True]),
            (noise, self.latents),
            (np.tile(np.array(conditions.time_ids, np.float32), (ids.shape[0], 1)), ids),
        ):
            self._device.upload(np.ascontiguousarray(values, array.dtype), array)

    def step(self, step: Step, kind: int = 0) -> None:
        """Bring the latents to the next sigma by the rows of one kind of the layout's."""
        form = self._form_of[self._layout.kinds[kind].form]
        form.hold(kind, self._tables[kind])
        self._device.upload(launches.step_numbers([step])[0], self.numbers)
        self._device.copy(self.latents, self.previous)
        (form.whole if step.whole or form.outer is None else form.outer)()

    def read(self, array: Any) -> Float:
        """The values of `latents` or `previous`, once the steps asked for are done."""
        return self._device.download(array)

    def put(self, values: NDArray[Any]) -> Any:
        """Values of the host in an array of the device."""
        array = self._device.empty(values.shape, values.dtype)
        self._device.upload(values, array)
        return array


class Form:
    """Kinds of steps that differ in nothing but their tables: bindings and graphs on a program's arrays."""

    def __init__(
        self,
        program: StepProgram,
        device: Device,
        layout: Layout,
        kind: int,
        tables: launches.Tables,
        unet: Engine,
        outer: Engine | None,
        graphs: bool,
    ) -> None:
        self._program, self._device, self._layout = program, device, layout
        self._rows, self._held = layout.kinds[kind], kind
        self._tables = {name: program.put(values) for name, values in vars(tables).items()}
        self.calls = self._bind(unet, {}, program.answers)
        self.whole = device.record(lambda stream: self._work(self.calls, stream), graphs=graphs)
        self.outer: Replay | None = None
        if layout.deep:
            assert outer is not None
            kept = {"deep": program.answers["deep"]}
            first = self._bind(outer, kept, {"prediction": program.answers["prediction"]})
            self.outer = device.record(lambda stream: self._work(first, stream), graphs=graphs)

    def hold(self, kind: int, tables: launches.Tables) -> None:
        """Have the tables of a kind of this form where the graph reads them."""
        if self._held != kind:
            for name, values in vars(tables).items():
                self._device.upload(values, self._tables[name])
            self._held = kind

    def _bind(self, engine: Engine, kept: Mapping[str, Any], answers: Mapping[str, Any]) -> list[Any]:
        part, calls, row = self._device.part, [], 0
        for size in self._rows.batches:
            inputs = {name: part(array, 0, size) for name, array in self._program.inputs.items()}
            inputs |= {name: part(array, row, row + size) for name, array in kept.items()}
            outputs = {name: part(array, row, row + size) for name, array in answers.items()}
            calls.append(engine.bind(inputs, outputs))
            row += size
        return calls

    def _work(self, calls: list[Any], stream: Any) -> None:
        """One step: gather, U-Net for each batch; then blend, guide and step."""
        row, program = 0, self._program
        for size, call in zip(self._rows.batches, calls, strict=True):
            self._gather(row, size, stream)
            self._device.call(call, stream)
            row += size
        high, wide = self._layout.cells
        self._device.launch(
            launches.blend_step(self._layout.frames, high * wide),
            program.answers["prediction"], self._tables["first"], self._tables["covers"],
            program.guidance[self._rows.guided], program.numbers, program.latents,
            stream=stream,
        )  # fmt: skip

    def _gather(self, row: int, size: int, stream: Any) -> None:
        device, program, inputs = self._device, self._program, self._program.inputs
        (high, wide), slots = self._layout.cells, len(self._rows.plan[0])
        frames = device.part(self._tables["frames"], row, row + size)
        conditional = device.part(self._tables["conditional"], row, row + size)
        pose, embedding = program.pose, program.embedding
        device.launch(
            launches.gather(size, slots, high * wide),
            program.latents, program.image, frames, conditional, program.numbers, inputs["latents"],
            stream=stream,
        )  # fmt: skip
        device.launch(
            launches.gather_conditions(size, slots, pose.shape[1] * high * wide, pose.dtype),
            pose, frames, conditional, inputs["pose"],
            stream=stream,
        )  # fmt: skip
        device.launch(
            launches.gather_conditions(size, 1, embedding.shape[2], pose.dtype),
            embedding, program.first_frame, conditional, inputs["embedding"],
            stream=stream,
        )  # fmt: skip
        device.launch(launches.timesteps(size), program.numbers, inputs["timestep"], stream=stream)


def padded(tables: launches.Tables, rows: int) -> launches.Tables:
    """The same with rows that are not conditional and cover no frame, up to `rows` in all."""
    more = rows - len(tables.frames)
    if more < 0:
        raise ValueError(f"{len(tables.frames)} rows do not fit into {rows}")
    frames = np.pad(tables.frames, ((0, more), (0, 0)))
    return replace(tables, frames=frames, conditional=np.pad(tables.conditional, (0, more)))
