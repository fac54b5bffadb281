"""The denoising loop on a CPU: executes a plan with numpy around the U-Net. All memory is allocated at the start."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, wait
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines import Call, Engine, call_sizes
from .kernels import blend, gather
from .plan import Conditions, DenoisePlan, Row, StepVariant
from .schedule import Step

Float = NDArray[np.float32]
Arrays = Mapping[str, NDArray[Any]]


class CpuDenoiser:
    """Executes a plan for one clip.

    If the plan's batching has two workers, two calls run at a time, the second one in `executor`: on a CPU that is
    faster than one call after the other. If the plan caches features, `unet` must be the network that
    also gives them (`unet_caching`), and `shallow` the one that takes them (`unet_shallow`).
    """

    def __init__(
        self,
        unet: Engine,
        plan: DenoisePlan,
        conditions: Conditions,
        latents: Float,
        *,
        executor: Executor | None = None,
        shallow: Engine | None = None,
    ) -> None:
        """`latents`: float32 [F,4,h,w] at the first sigma; they are copied."""
        self.plan = plan
        self.latents = latents.astype(np.float32)
        """float32 [F,4,h,w] after the last step."""
        self.previous = np.zeros_like(self.latents)
        """The latents before the last step."""
        self._finite = np.empty(self.latents.shape, np.bool_)
        self._conditions = conditions
        self._executor = executor if plan.batching.workers > 1 else None
        variants = plan.variants.values()
        calls_at_once = min(plan.batching.workers, max(len(variant.batches) for variant in variants))
        sizes = {size for variant in variants for size in variant.batches}
        self._workers = [Worker(unet, plan, conditions, sizes, shallow) for _ in range(calls_at_once)]
        self._batches = {key: self._place(variant) for key, variant in plan.variants.items()}
        self._share = np.empty(plan.segment_frames, np.float32)
        self._scratch = np.empty((plan.segment_frames, 4, *plan.latent_size), np.float32)

    def run(self, step: Step) -> Iterator[int]:
        """Run one step. Yields the number of finished segments; `latents` change only when the step is complete.

        Raises `EngineError` if the next latents are not finite.
        """
        # The two buffers swap roles: the next latents are written where the previous ones were.
        following = np.multiply(self.latents, np.float32(step.keep), out=self.previous)
        batches, rows, done = self._batches[step.variant], len(self.plan.variant(step).rows), 0
        for start in range(0, len(batches), len(self._workers)):
            together = batches[start : start + len(self._workers)]
            for batch in together:
                batch.worker.gather(self.latents, batch.rows, step)
            self._call([batch.call(step) for batch in together])
            for batch in together:  # always in the order of the rows: the last bits of the sum depend on it
                self._blend(batch.worker.prediction, batch.rows, step, following)
                done += len(batch.rows)
            yield done * self.plan.segment_count // rows  # rows done, in segments
        if not np.isfinite(following, out=self._finite).all():
            raise self.plan.failure(step, self._conditions, self._workers[0].prediction.dtype)
        self.latents, self.previous = following, self.latents

    def step(self, step: Step) -> None:
        """Run one step and ignore its progress."""
        for _ in self.run(step):
            pass

    def denoised(self, frame: int, step: Step) -> Float:
        """x0 [4,h,w] of a frame as the step just made predicts it: x - sigma d."""
        return denoised(self.previous[frame], self.latents[frame], step)

    def close(self, *, broken: bool = False) -> None:
        """Nothing to do: it holds only its own memory."""

    def _place(self, variant: StepVariant) -> list[RowBatch]:
        """The variant's batches, given to the workers in turn."""
        ends = accumulate(variant.batches, initial=0)
        return [
            self._workers[index % len(self._workers)].batch(variant.rows[start:end], end - start)
            for index, (start, end) in enumerate(pairwise(ends))
        ]

    def _call(self, calls: list[Call]) -> None:
        others = [self._executor.submit(call) for call in calls[1:]] if self._executor else []
        try:
            calls[0]()
        finally:
            wait(others)  # before an error leaves, nobody may still be writing
        for other in others:
            other.result()

    def _blend(self, prediction: Float, rows: tuple[Row, ...], step: Step, following: Float) -> None:
        for index, row in enumerate(rows):
            np.multiply(row.share, np.float32(step.push), out=self._share)
            blend(prediction[index], self._share, row.frames, following, self._scratch)


class Worker:
    """Arrays that one call at a time uses, and the engines bound to them."""

    def __init__(
        self,
        unet: Engine,
        plan: DenoisePlan,
        conditions: Conditions,
        sizes: set[int],
        shallow: Engine | None,
    ) -> None:
        self._conditions, self._unet, self._shallow = conditions, unet, shallow
        self._sizes = call_sizes(plan.segment_frames, plan.latent_size, rows=max(sizes))
        self._inputs = {t.name: np.zeros(t.sized(self._sizes), t.dtype) for t in unet.spec.inputs}
        self._inputs["time_ids"][:] = conditions.time_ids
        prediction, *self._features = unet.spec.outputs
        self.prediction = np.empty(prediction.sized(self._sizes), prediction.dtype)
        self._calls = {} if shallow else {size: self._bind(unet, size, {}, {}) for size in sizes}

    def batch(self, rows: tuple[Row, ...], size: int) -> RowBatch:
        """A batch of `size` rows on these arrays, of which the first are `rows`."""
        if self._shallow is None:
            return RowBatch(rows, self, self._calls[size], None)
        sizes = {**self._sizes, "rows": size}
        # Of this batch alone: later steps read them.
        features = {tensor.name: np.zeros(tensor.sized(sizes), tensor.dtype) for tensor in self._features}
        full = self._bind(self._unet, size, {}, features)
        return RowBatch(rows, self, full, self._bind(self._shallow, size, features, {}))

    def _bind(self, engine: Engine, size: int, inputs: Arrays, outputs: Arrays) -> Call:
        given = {name: array[:size] for name, array in self._inputs.items()}
        return engine.bind({**given, **inputs}, {"prediction": self.prediction[:size], **outputs})

    def gather(self, latents: Float, rows: tuple[Row, ...], step: Step) -> None:
        """Fill the engine's inputs for a batch."""
        self._inputs["timestep"][:] = step.timestep
        for index, row in enumerate(rows):
            into, pose = self._inputs["latents"][index], self._inputs["pose"][index]
            gather(latents, row.frames, step.scale, into[:, :4])
            if row.conditional:
                into[:, 4:] = self._conditions.image_latents
                self._inputs["embedding"][index] = self._conditions.embedding
            else:
                into[:, 4:] = 0
                self._inputs["embedding"][index] = 0
            if row.conditional and step.posed:
                np.take(self._conditions.pose, row.frames, axis=0, out=pose, mode="clip")
            else:
                pose[:] = 0


@dataclass(frozen=True)
class RowBatch:
    """Rows that run in one call."""

    rows: tuple[Row, ...]
    worker: Worker
    full: Callable[[], None]
    shallow: Callable[[], None] | None
    """The shallow U-Net on the features that `full` cached for this batch."""

    def call(self, step: Step) -> Callable[[], None]:
        """What the step runs."""
        return self.full if step.full or self.shallow is None else self.shallow


def denoised(before: Float, after: Float, step: Step) -> Float:
    """x0 from the latents before and after a step: d = (after - before) / (next - sigma), x0 = before - sigma d."""
    x0: Float = before - np.float32(step.sigma / (step.next - step.sigma)) * (after - before)
    return x0
