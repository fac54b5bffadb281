"""The graphs of a step program, and the memory that they run on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engines import Engine
from ..engines.cuda_device import Replay
from . import launches
from .launches import Device

if TYPE_CHECKING:
    from .program import Layout

Running = tuple[int, tuple[int, ...]]
"""A kind of steps, and the slots that run one."""


@dataclass(frozen=True)
class Arrays:
    """A program's memory on the device, for all its jobs one behind the other."""

    latents: Any
    """float32 [jobs*F,4,h,w]."""
    previous: Any
    """The latents before the last step."""
    image: Any
    pose: Any
    embedding: Any
    time_ids: Any
    guidance: Mapping[bool, Any]
    """[jobs*F]: of the jobs, and 1 for steps without it."""
    numbers: Any
    """Sigma's numbers of each job's step [jobs,4]."""
    inputs: Mapping[str, Any]
    """The U-Net's, for its largest batch."""
    answers: Mapping[str, Any]
    """Of all rows: `prediction`, and `cached_features` where the layout is deep."""

    @classmethod
    def take(cls, device: Device, unet: Engine, layout: Layout) -> Arrays:
        """Those of a layout."""
        specs = {tensor.name: tensor for tensor in (*unet.spec.inputs, *unet.spec.outputs)}
        dtypes = {name: np.dtype(spec.dtype) for name, spec in specs.items()}
        token, channels = specs["embedding"].shape[2], specs["pose"].shape[2]
        assert isinstance(token, int)
        assert isinstance(channels, int)
        cells, jobs, empty = layout.cells, layout.jobs, device.empty
        frames, plans = jobs * layout.frames, [*(rows.batches for rows in layout.kinds), *layout.together]
        most = max(size for batches in plans for size in batches)
        rows, slots = max(map(sum, plans)), len(layout.kinds[0].plan[0])
        answers = {"prediction": empty((rows, slots, 4, *cells), dtypes["prediction"])}
        if layout.deep:
            width = specs["cached_features"].shape[2]
            assert isinstance(width, int)
            answers["cached_features"] = empty((rows, slots, width, *cells), dtypes["cached_features"])
        made = cls(
            latents=empty((frames, 4, *cells), np.float32),
            previous=empty((frames, 4, *cells), np.float32),
            image=empty((jobs, 4, *cells), np.float32),
            pose=empty((frames, channels, *cells), dtypes["pose"]),
            embedding=empty((jobs, 1, token), dtypes["embedding"]),
            time_ids=empty((jobs, 3), np.float32),
            guidance={guided: put(device, np.ones(frames, np.float32)) for guided in (True, False)},
            numbers=empty((jobs, 4), np.float32),
            inputs={
                "latents": empty((most, slots, 8, *cells), dtypes["latents"]),
                "timestep": empty((most,), dtypes["timestep"]),
                "embedding": empty((most, 1, token), dtypes["embedding"]),
                "time_ids": empty((most, 3), dtypes["time_ids"]),
                "pose": empty((most, slots, channels, *cells), dtypes["pose"]),
            },
            answers=answers,
        )
        if jobs > 1:  # a slot without a job holds numbers, too
            device.upload(np.zeros(made.latents.shape, np.float32), made.latents)
        return made


def put(device: Device, values: np.ndarray[Any, Any]) -> Any:
    """Values of the host in an array of the device."""
    array = device.empty(values.shape, values.dtype)
    device.upload(values, array)
    return array


class Form:
    """Steps that differ in nothing but their tables: bindings and graphs on a program's arrays.

    `tables` are those of `running`, with as many rows as there are in `batches`.
    """

    def __init__(
        self,
        device: Device,
        layout: Layout,
        running: Running,
        batches: tuple[int, ...],
        tables: launches.Tables,
        arrays: Arrays,
        unet: Engine,
        outer: Engine | None,
        *,
        graphs: bool,
    ) -> None:
        self._device, self._held = device, running
        self._tables = {name: put(device, values) for name, values in vars(tables).items()}
        work = StepWork(device, layout, layout.kinds[running[0]].guided, batches, self._tables, arrays)
        self.calls = _bind(device, unet, batches, arrays.inputs, {}, arrays.answers)
        self.whole = device.record(partial(work.put, self.calls), graphs=graphs)
        self.outer: Replay | None = None
        if layout.deep:
            assert outer is not None
            try:
                self.outer = device.record(partial(work.put, _first(outer, work)), graphs=graphs)
            except BaseException:
                self.close()
                raise

    def hold(self, running: Running, tables: launches.Tables) -> None:
        """Have the tables of steps of this form where the graph reads them."""
        if self._held != running:
            for name, values in vars(tables).items():
                self._device.upload(values, self._tables[name])
            self._held = running

    def close(self) -> None:
        """Give back graphs and bindings; no step may be under way."""
        for replay in (self.whole, self.outer):
            if replay is not None:
                replay.close()
        self.calls = []
        self._tables = {}


def _first(outer: Engine, work: StepWork) -> list[Any]:
    """The U-Net's first level bound around the features that the whole one left."""
    arrays = work.arrays
    kept, answers = (
        {"cached_features": arrays.answers["cached_features"]},
        {"prediction": arrays.answers["prediction"]},
    )
    return _bind(work.device, outer, work.batches, arrays.inputs, kept, answers)


def _bind(
    device: Device,
    engine: Engine,
    batches: tuple[int, ...],
    inputs: Mapping[str, Any],
    kept: Mapping[str, Any],
    answers: Mapping[str, Any],
) -> list[Any]:
    """The engine bound for each batch: on the same inputs, and on rows of its own of `kept` and `answers`."""
    part, calls, row = device.part, [], 0
    for size in batches:
        given = {name: part(array, 0, size) for name, array in inputs.items()}
        given |= {name: part(array, row, row + size) for name, array in kept.items()}
        outputs = {name: part(array, row, row + size) for name, array in answers.items()}
        calls.append(engine.bind(given, outputs))
        row += size
    return calls


@dataclass(frozen=True)
class StepWork:
    """What a step puts on the stream. It refers to no program and no graph, so that nothing refers in a circle."""

    device: Device
    layout: Layout
    guided: bool
    """Whether the job's guidance counts."""
    batches: tuple[int, ...]
    tables: Mapping[str, Any]
    arrays: Arrays

    def put(self, calls: list[Any], stream: Any) -> None:
        """One step: gather, U-Net for each batch; then blend, guide and step."""
        row, arrays = 0, self.arrays
        for size, call in zip(self.batches, calls, strict=True):
            self._gather(row, size, stream)
            self.device.call(call, stream)
            row += size
        high, wide = self.layout.cells
        self.device.launch(
            launches.blend_step(self.layout.frames, high * wide, self.layout.jobs),
            arrays.answers["prediction"], self.tables["first"], self.tables["covers"],
            arrays.guidance[self.guided], arrays.numbers, arrays.latents,
            stream=stream,
        )  # fmt: skip

    def _gather(self, row: int, size: int, stream: Any) -> None:
        device, arrays, inputs = self.device, self.arrays, self.arrays.inputs
        (high, wide), slots = self.layout.cells, len(self.layout.kinds[0].plan[0])
        frames = device.part(self.tables["frames"], row, row + size)
        conditional = device.part(self.tables["conditional"], row, row + size)
        jobs = device.part(self.tables["jobs"], row, row + size)
        pose, embedding = arrays.pose, arrays.embedding
        device.launch(
            launches.gather(size, slots, high * wide),
            arrays.latents, arrays.image, frames, conditional, jobs, arrays.numbers, inputs["latents"],
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
        device.launch(launches.timesteps(size), jobs, arrays.numbers, inputs["timestep"], stream=stream)
        device.launch(launches.time_ids(size), arrays.time_ids, jobs, inputs["time_ids"], stream=stream)
