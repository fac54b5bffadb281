"""One step of a program: its memory on the device, and the graph that runs on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..denoise.plan import DenoisePlan
from ..denoise.schedule import VariantKey
from ..engines import Engine, call_sizes
from ..engines.cuda_device import CudaDevice, Replay
from . import launches

Selection = tuple[VariantKey, tuple[int, ...], tuple[int, ...]]
"""Which variant of the plan a step runs, the slots that take part in it, and those of them that take their pose."""


@dataclass(frozen=True)
class Arrays:
    """A program's memory on the device; the arrays of its slots are stored one after another."""

    latents: Any
    """float32 [slots*F,4,h,w]."""
    previous: Any
    """The latents before the last step."""
    image: Any
    """float32 [slots,4,h,w]."""
    pose: Any
    """[slots*F,C,h,w]."""
    embedding: Any
    """[slots,1,D]."""
    time_ids: Any
    """float32 [slots,3]."""
    guidance: Mapping[bool, Any]
    """float32 [slots*F]: the jobs' own, and 1 for steps that are not guided."""
    numbers: Any
    """float32 [slots,4]: timestep, scale, keep and push of each slot's step."""
    broken: Any
    """int32 [slots]: 1 where the latents of a slot's job are no longer finite."""
    inputs: Mapping[str, Any]
    """The U-Net's inputs for its largest batch; every call uses the same ones."""
    outputs: Mapping[str, Any]
    """The U-Net's outputs for all rows, since they are read together at the end of a step: `prediction`, and
    `cached_features` where the plan caches them."""

    @classmethod
    def allocate(cls, device: CudaDevice, unet: Engine, plan: DenoisePlan, slots: int) -> Arrays:
        """Those of a plan for so many slots; raises `OutOfMemory`."""
        batches = [variant.batches for variant in plan.variants.values()]
        batches += [shared_batches(plan, jobs) for jobs in range(2, slots + 1)]
        sizes = call_sizes(plan.segment_frames, plan.latent_size, rows=max(map(max, batches)))
        all_rows = {**sizes, "rows": max(map(sum, batches))}
        inputs = {t.name: device.empty(t.sized(sizes), t.dtype) for t in unet.spec.inputs}
        outputs = {t.name: device.empty(t.sized(all_rows), t.dtype) for t in unet.spec.outputs}
        pose, embedding, frames = inputs["pose"], inputs["embedding"], slots * plan.frames
        arrays = cls(
            latents=device.empty((frames, 4, *plan.latent_size), np.float32),
            previous=device.empty((frames, 4, *plan.latent_size), np.float32),
            image=device.empty((slots, 4, *plan.latent_size), np.float32),
            pose=device.empty((frames, *pose.shape[2:]), pose.dtype),
            embedding=device.empty((slots, *embedding.shape[1:]), embedding.dtype),
            time_ids=device.empty((slots, 3), np.float32),
            guidance={guided: uploaded(device, np.ones(frames, np.float32)) for guided in (True, False)},
            numbers=device.empty((slots, 4), np.float32),
            broken=device.empty((slots,), np.int32),
            inputs=inputs,
            outputs=outputs,
        )
        if slots > 1:  # empty slots are read too, so they must not hold NaN
            device.upload(np.zeros(arrays.latents.shape, np.float32), arrays.latents)
        device.upload(np.tile(launches.STILL, (slots, 1)), arrays.numbers)
        return arrays


def shared_batches(plan: DenoisePlan, jobs: int) -> tuple[int, ...]:
    """Rows of each call of the U-Net in a step of so many jobs."""
    return plan.first.batches if jobs == 1 else plan.batching.split(jobs * len(plan.first.rows))


def uploaded(device: CudaDevice, values: np.ndarray[Any, Any]) -> Any:
    """Values of the host in a new array of the device."""
    array = device.empty(values.shape, values.dtype)
    device.upload(values, array)
    return array


class StepGraph:
    """The graph of all steps that differ only in their tables, and the engine bound for each batch.

    It starts with the tables of `selection`; `select` replaces them.
    """

    def __init__(
        self,
        device: CudaDevice,
        plan: DenoisePlan,
        slots: int,
        selection: Selection,
        batches: tuple[int, ...],
        tables: launches.Tables,
        arrays: Arrays,
        unet: Engine,
        shallow: Engine | None,
        *,
        graphs: bool,
    ) -> None:
        self._device, self._selection = device, selection
        self._tables = {name: uploaded(device, values) for name, values in vars(tables).items()}
        guided = plan.variants[selection[0]].guided
        work = StepWork(device, plan, slots, guided, batches, self._tables, arrays)
        calls = bind(device, unet, batches, arrays)
        self.full = device.record(partial(work.enqueue, calls), graphs=graphs)
        self.shallow: Replay | None = None
        if plan.caches_features:
            assert shallow is not None
            calls = bind(device, shallow, batches, arrays)
            try:
                self.shallow = device.record(partial(work.enqueue, calls), graphs=graphs)
            except BaseException:
                self.close()
                raise

    def select(self, selection: Selection, tables: launches.Tables) -> None:
        """Upload the tables of the next step where the graph reads them, unless they are there."""
        if self._selection != selection:
            for name, values in vars(tables).items():
                self._device.upload(values, self._tables[name])
            self._selection = selection

    def close(self) -> None:
        """Give back graphs and bindings; no step may be under way."""
        for replay in (self.full, self.shallow):
            if replay is not None:
                replay.close()
        self._tables = {}


def bind(device: CudaDevice, engine: Engine, batches: tuple[int, ...], arrays: Arrays) -> list[Any]:
    """The engine bound for each batch: all on the same inputs, each on its own rows of the outputs.

    The cached features are among the outputs; the shallow U-Net reads them.
    """
    calls, row = [], 0
    for size in batches:
        rows: dict[str, Any] = {name: device.part(array, 0, size) for name, array in arrays.inputs.items()}
        rows |= {name: device.part(array, row, row + size) for name, array in arrays.outputs.items()}
        inputs = {tensor.name: rows[tensor.name] for tensor in engine.spec.inputs}
        calls.append(engine.bind(inputs, {tensor.name: rows[tensor.name] for tensor in engine.spec.outputs}))
        row += size
    return calls


@dataclass(frozen=True)
class StepWork:
    """What a step puts on the stream.

    It holds no program and no graph: a reference cycle would keep GPU memory alive.
    """

    device: CudaDevice
    plan: DenoisePlan
    slots: int
    guided: bool
    batches: tuple[int, ...]
    tables: Mapping[str, Any]
    arrays: Arrays

    def enqueue(self, calls: list[Any], stream: Any) -> None:
        """One step: gather and run the U-Net for each batch; then one kernel blends, guides and steps."""
        row, arrays = 0, self.arrays
        for size, call in zip(self.batches, calls, strict=True):
            self._gather(row, size, stream)
            self.device.call(call, stream)
            row += size
        height, width = self.plan.latent_size
        self.device.launch(
            launches.blend_step(self.plan.frames, height * width, self.slots),
            arrays.outputs["prediction"], self.tables["first"], self.tables["covers"],
            arrays.guidance[self.guided], arrays.numbers, arrays.broken, arrays.latents,
            stream=stream,
        )  # fmt: skip

    def _gather(self, row: int, size: int, stream: Any) -> None:
        """Fill the U-Net's inputs for the rows from `row` on."""
        device, arrays, inputs = self.device, self.arrays, self.arrays.inputs
        (height, width), segment = self.plan.latent_size, self.plan.segment_frames
        pixels, pose, embedding = height * width, arrays.pose, arrays.embedding
        frames, conditional, posed, jobs = (
            device.part(self.tables[name], row, row + size)
            for name in ("frames", "conditional", "posed", "jobs")
        )
        device.launch(
            launches.gather(size, segment, pixels),
            arrays.latents, arrays.image, frames, conditional, jobs, arrays.numbers, inputs["latents"],
            stream=stream,
        )  # fmt: skip
        device.launch(
            launches.gather_conditions(size, segment, pose.shape[1] * pixels, pose.dtype),
            pose, frames, posed, inputs["pose"],
            stream=stream,
        )  # fmt: skip
        device.launch(
            launches.gather_conditions(size, 1, embedding.shape[2], pose.dtype),
            embedding, jobs, conditional, inputs["embedding"],
            stream=stream,
        )  # fmt: skip
        device.launch(launches.timesteps(size), jobs, arrays.numbers, inputs["timestep"], stream=stream)
        device.launch(launches.time_ids(size), arrays.time_ids, jobs, inputs["time_ids"], stream=stream)
