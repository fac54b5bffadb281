"""Executes a plan on a GPU: each step is one graph, captured once for each variant shape and number of jobs.

What changes from step to step (timestep, scale, keep, push; which rows take their pose; which rows run, where a plan
has several variants) and from job to job (latents, poses, picture, guidance) lies in the device's memory, so that a
graph never changes. A new job allocates no GPU memory.

A program has slots for one or several jobs of equal shape. Each job is at a step of its own. Jobs that take a step at
the same time share a graph and the U-Net's batches; the latents of the others stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..denoise.plan import Conditions, DenoisePlan, StepVariant
from ..denoise.schedule import Step, VariantKey
from ..engines import Engine
from ..engines.cuda_device import CudaDevice
from . import launches
from .launches import STILL
from .step_graph import Arrays, Selection, StepGraph, shared_batches

Float = NDArray[np.float32]
GraphKey = tuple[Hashable, int]
"""Steps of equal graph key run on one graph: the shape of their variant, and how many jobs run."""


def shareable_slots(plan: DenoisePlan, most: int) -> int:
    """How many jobs can share a program of this plan: several only if all steps are full and of one variant."""
    return 1 if plan.caches_features or len(plan.variants) > 1 else most


def program_key(plan: DenoisePlan, slots: int) -> Hashable:
    """Plans of equal key can run on one program; jobs may differ in steps, guidance, conditions and latents."""
    variants = tuple((key, _content(variant)) for key, variant in plan.variants.items())
    return plan.frames, plan.latent_size, plan.caches_features, plan.batching, slots, variants


def _content(variant: StepVariant) -> Hashable:
    segments = variant.segments
    return graph_signature(variant), segments.shape, segments.tobytes(), variant.weights.tobytes()


def graph_signature(variant: StepVariant) -> Hashable:
    """Variants of equal signature can use one graph; the tables of the variant are uploaded first."""
    return len(variant.segments), variant.branches, variant.batches, variant.guided


class StepProgram:
    """Arrays, bindings and graphs of one plan's shape. For each job: `start`, then `step` for each sigma.

    If the plan caches features, `unet` also gives them and `shallow` is the U-Net that takes them. With several
    slots, `advance` steps some of the jobs at once.
    """

    def __init__(
        self,
        device: CudaDevice,
        unet: Engine,
        plan: DenoisePlan,
        *,
        slots: int = 1,
        graphs: bool = True,
        shallow: Engine | None = None,
    ) -> None:
        if slots > shareable_slots(plan, slots):
            raise ValueError("several slots need a plan with one variant and without cached features")
        self._device, self._plan, self.slots = device, plan, slots
        self._arrays: Arrays | None = Arrays.allocate(device, unet, plan, slots)
        self._tables: dict[Selection, launches.Tables] = {}
        self._graphs: dict[GraphKey, StepGraph] = {}
        try:
            self._capture(unet, shallow, graphs)
        except BaseException:
            self.close()  # some of the graphs may have been captured before memory ran out
            raise

    def _capture(self, unet: Engine, shallow: Engine | None, graphs: bool) -> None:
        """A graph for each shape of a variant and each number of jobs."""
        for key, variant in self._plan.variants.items():
            for jobs in range(1, self.slots + 1):
                graph_key = graph_signature(variant), jobs
                if graph_key not in self._graphs:
                    selection = (key, tuple(range(jobs)), tuple(range(jobs)))
                    self._graphs[graph_key] = StepGraph(
                        self._device, self._plan, self.slots, selection, self.batches(key, jobs),
                        self.tables(selection), self.arrays, unet, shallow, graphs=graphs,
                    )  # fmt: skip

    @property
    def arrays(self) -> Arrays:
        """Its memory on the device; raises `ValueError` once the program is closed."""
        if self._arrays is None:
            raise ValueError("the step program was closed")
        return self._arrays

    def start(self, plan: DenoisePlan, conditions: Conditions, latents: Float, slot: int = 0) -> None:
        """Load a job into a slot: a plan of this program's key, and latents [F,4,h,w] at the first sigma."""
        arrays, frames = self.arrays, plan.frames
        for values, array, size in (
            (conditions.image_latents[None], arrays.image, 1),
            (conditions.pose, arrays.pose, frames),
            (conditions.embedding[None], arrays.embedding, 1),
            (np.array([conditions.time_ids]), arrays.time_ids, 1),
            (plan.guidance, arrays.guidance[True], frames),
            (latents, arrays.latents, frames),
            (np.zeros(1), arrays.broken, 1),
        ):
            target = self._device.part(array, slot * size, (slot + 1) * size)
            self._device.upload(np.ascontiguousarray(values, array.dtype), target)

    def step(self, step: Step) -> None:
        """Bring the latents of the first slot to the next sigma."""
        self.advance({0: step})

    def advance(self, steps: Mapping[int, Step]) -> None:
        """Bring the latents of some slots to their next sigmas at once; all steps are of one variant."""
        running, arrays = tuple(sorted(steps)), self.arrays
        first = steps[running[0]]
        graph = self._graphs[graph_signature(self._plan.variant(first)), len(running)]
        posed = tuple(slot for slot in running if steps[slot].posed)
        selection = (first.variant, running, posed)
        graph.select(selection, self.tables(selection))
        numbers = np.tile(STILL, (self.slots, 1))
        numbers[list(running)] = launches.step_numbers([steps[slot] for slot in running])
        self._device.upload(numbers, arrays.numbers)
        for slot in running:
            self._device.copy(self.of(slot, arrays.latents), self.of(slot, arrays.previous))
        full = graph.shallow is None or all(step.full for step in steps.values())
        replay = graph.full if full else graph.shallow
        assert replay is not None
        replay()

    def broken(self) -> Callable[[], NDArray[np.int32]]:
        """What waits until all steps that were asked for by now are done, and tells of each slot whether its
        latents are no longer finite: int32 [slots], 1 or 0."""
        return self._device.read(self.arrays.broken)

    def tables(self, selection: Selection) -> launches.Tables:
        """What the kernels read in a step of this selection."""
        if selection not in self._tables:
            key, running, posed = selection
            rows = sum(self.batches(key, len(running)))
            variant = self._plan.variants[key]
            self._tables[selection] = launches.make_tables(
                variant, running, self.slots, posed=posed, rows=rows
            )
        return self._tables[selection]

    def batches(self, key: VariantKey, jobs: int) -> tuple[int, ...]:
        """Rows of each call of the U-Net when so many jobs run a variant."""
        return self._plan.variants[key].batches if jobs == 1 else shared_batches(self._plan, jobs)

    def of(self, slot: int, array: Any) -> Any:
        """One slot's frames of an array of all slots' frames."""
        frames = self._plan.frames
        return self._device.part(array, slot * frames, (slot + 1) * frames)

    def latents(self, slot: int = 0) -> Float:
        """float32 [F,4,h,w] of a slot, once the steps asked for are done."""
        values: Float = self._device.download(self.of(slot, self.arrays.latents))
        return values

    def frame(self, frame: int, slot: int = 0) -> tuple[Float, Float]:
        """Latents [4,h,w] of one frame before and after the last step."""
        before, after = (
            self._device.download(self._device.part(self.of(slot, array), frame, frame + 1))[0]
            for array in (self.arrays.previous, self.arrays.latents)
        )
        return before, after

    def close(self) -> None:
        """Give graphs, bindings and memory back once the steps asked for are done; no call may follow."""

        def release() -> None:
            for graph in self._graphs.values():
                graph.close()
            self._graphs, self._arrays = {}, None

        self._device.release_after(release)
