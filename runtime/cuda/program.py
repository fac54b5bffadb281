"""The step program on a GPU: the whole step is one graph, captured once for a shape and replayed for each sigma.

What changes from step to step (timestep, scale, keep, push) and from job to job (latents, poses, picture,
guidance) lies in the device's memory, so that the graph never changes. Nothing is allocated between jobs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..denoise import Conditions
from ..engines import Engine
from ..schedule import Step
from . import launches
from .device import Device

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Layout:
    """What a program is captured for; equal layouts can run on one program."""

    plan: tuple[tuple[int, ...], ...]
    """Frames of each segment [S][N]."""
    weights: tuple[tuple[float, ...], ...]
    """Their weights in the fusion [S][N]."""
    branches: tuple[bool, ...]
    """Conditional (True) and not conditional (False) rows of each segment."""
    batches: tuple[int, ...]
    """Rows in each of the U-Net's calls, in order."""
    frames: int
    cells: tuple[int, int]
    """(high, wide)."""


class StepProgram:
    """Arrays, bindings and the graph of one layout. One job at a time: `start`, then `step` for each sigma."""

    def __init__(self, device: Device, unet: Engine, layout: Layout, *, graphs: bool = True) -> None:
        self._device, self._layout = device, layout
        tables = launches.make_tables(
            np.array(layout.plan), np.array(layout.weights, np.float32), layout.branches
        )
        rows, slots = sum(layout.batches), tables.frames.shape[1]
        tables = padded(tables, rows)
        specs = {tensor.name: tensor for tensor in (*unet.spec.inputs, *unet.spec.outputs)}
        kinds = {name: np.dtype(spec.dtype) for name, spec in specs.items()}
        token, channels = specs["embedding"].shape[2], specs["pose"].shape[2]
        assert isinstance(token, int)
        assert isinstance(channels, int)
        cells, frames, most = layout.cells, layout.frames, max(layout.batches)
        empty = device.empty
        self.latents = empty((frames, 4, *cells), np.float32)
        """float32 [F,4,h,w] on the device."""
        self.previous = empty((frames, 4, *cells), np.float32)
        """The latents before the last step."""
        self._image = empty((4, *cells), np.float32)
        self._pose = empty((frames, channels, *cells), kinds["pose"])
        self._embedding = empty((1, 1, token), kinds["embedding"])
        self._guidance = empty((frames,), np.float32)
        self._numbers = empty((4,), np.float32)
        self._tables = {name: self._put(values) for name, values in vars(tables).items()}
        self._first_frame = self._put(np.zeros(most, np.int32))
        self._inputs = {
            "latents": empty((most, slots, 8, *cells), kinds["latents"]),
            "timestep": empty((most,), kinds["timestep"]),
            "embedding": empty((most, 1, token), kinds["embedding"]),
            "time_ids": empty((most, 3), kinds["time_ids"]),
            "pose": empty((most, slots, channels, *cells), kinds["pose"]),
        }
        self._predictions = empty((rows, slots, 4, *cells), kinds["prediction"])
        self.calls = self._bind(unet)
        """The U-Net bound for each batch, in order."""
        self._replay = device.record(self._work, graphs=graphs)

    @property
    def rows(self) -> int:
        """Rows in a step."""
        return sum(self._layout.batches)

    def start(self, conditions: Conditions, guidance: Float, noise: Float) -> None:
        """Load a job: its conditions, guidance [F], and latents [F,4,h,w] at the first sigma."""
        device, inputs = self._device, self._inputs
        most = max(self._layout.batches)
        for values, array in (
            (conditions.image_latents, self._image),
            (conditions.pose, self._pose),
            (conditions.embedding[None], self._embedding),
            (guidance, self._guidance),
            (noise, self.latents),
            (np.tile(np.array(conditions.time_ids, np.float32), (most, 1)), inputs["time_ids"]),
        ):
            device.upload(np.ascontiguousarray(values, array.dtype), array)

    def step(self, step: Step) -> None:
        """Bring the latents to the next sigma."""
        self._device.upload(launches.step_numbers([step])[0], self._numbers)
        self._device.copy(self.latents, self.previous)
        self._replay()

    def read(self, array: Any) -> Float:
        """The values of `latents` or `previous`, once the steps asked for are done."""
        return self._device.download(array)

    def _put(self, values: NDArray[Any]) -> Any:
        array = self._device.empty(values.shape, values.dtype)
        self._device.upload(values, array)
        return array

    def _bind(self, unet: Engine) -> list[Any]:
        part, calls, row = self._device.part, [], 0
        for size in self._layout.batches:
            inputs = {name: part(array, 0, size) for name, array in self._inputs.items()}
            prediction = part(self._predictions, row, row + size)
            calls.append(unet.bind(inputs, {"prediction": prediction}))
            row += size
        return calls

    def _work(self, stream: Any) -> None:
        """One step: gather, U-Net for each batch; then blend, guide and step."""
        row = 0
        for size, call in zip(self._layout.batches, self.calls, strict=True):
            self._gather(row, size, stream)
            self._device.call(call, stream)
            row += size
        high, wide = self._layout.cells
        tables = self._tables
        self._device.launch(
            launches.blend_step(self._layout.frames, high * wide),
            self._predictions, tables["first"], tables["covers"], self._guidance, self._numbers, self.latents,
            stream=stream,
        )  # fmt: skip

    def _gather(self, row: int, size: int, stream: Any) -> None:
        device, inputs = self._device, self._inputs
        (high, wide), slots = self._layout.cells, len(self._layout.plan[0])
        frames = device.part(self._tables["frames"], row, row + size)
        conditional = device.part(self._tables["conditional"], row, row + size)
        kind, (_, channels, *_), token = self._pose.dtype, self._pose.shape, self._embedding.shape[2]
        device.launch(
            launches.gather(size, slots, high * wide),
            self.latents, self._image, frames, conditional, self._numbers, inputs["latents"],
            stream=stream,
        )  # fmt: skip
        device.launch(
            launches.gather_conditions(size, slots, channels * high * wide, kind),
            self._pose, frames, conditional, inputs["pose"],
            stream=stream,
        )  # fmt: skip
        device.launch(
            launches.gather_conditions(size, 1, token, kind),
            self._embedding, self._first_frame, conditional, inputs["embedding"],
            stream=stream,
        )  # fmt: skip
        device.launch(launches.timesteps(size), self._numbers, inputs["timestep"], stream=stream)


def padded(tables: launches.Tables, rows: int) -> launches.Tables:
    """The same with rows that are not conditional and cover no frame, up to `rows` in all."""
    more = rows - len(tables.frames)
    if more < 0:
        raise ValueError(f"{len(tables.frames)} rows do not fit into {rows}")
    frames = np.pad(tables.frames, ((0, more), (0, 0)))
    return replace(tables, frames=frames, conditional=np.pad(tables.conditional, (0, more)))
