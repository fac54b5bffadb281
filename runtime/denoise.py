"""The denoising loop: one step program, run once for each sigma, on memory that is taken once.

A row is one branch (conditional or not) of one segment. A step *gathers* rows from the latents, runs the
*U-Net* on each batch of rows, and *blends, guides and steps* the latents. Since fusion, guidance and
the Euler step are all linear in the predictions, the last three are one weighted sum:

    latents <- keep latents + push sum_rows share[row] prediction[row]

with share = fusion weight times g (conditional row) or 1 - g (unconditional row).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .engines import Call, Engine
from .errors import Cancelled
from .kernels import blend, gather
from .schedule import Kind, Step
from .segments import Plan

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Conditions:
    """What stays the same over all steps of a clip of F frames."""

    embedding: Float
    """CLIP's token [1,D]."""
    image_latents: Float
    """[4,h,w], not multiplied by the scaling factor."""
    pose: NDArray[Any]
    """PoseNet's features [F,C,h,w], in the dtype of the engines."""
    time_ids: tuple[float, float, float]
    """(fps - 1, motion bucket, noise_aug)."""

    @property
    def cells(self) -> tuple[int, int]:
        """(height, width) in latent cells."""
        _, high, wide = self.image_latents.shape
        return high, wide


@dataclass(frozen=True)
class Row:
    """One row: which frames, whether it is conditional, and how much each of its predictions counts [N]."""

    frames: NDArray[np.intp]
    conditional: bool
    share: Float


def make_rows(plan: Plan, weights: Float, guidance: Float) -> list[Row]:
    """Rows of every segment; `guidance` [F] of exactly 1 everywhere needs no unconditional rows.

    Unconditional prediction plus g times the difference is (1-g) unconditional + g conditional.
    """
    rows = []
    for frames, weight in zip(plan, weights, strict=True):
        for conditional, part in ((True, guidance), (False, 1 - guidance)):
            if np.any(part):
                rows.append(Row(frames, conditional, weight * part[frames]))
    return rows


def batch_size(rows: int, most: int, lanes: int) -> int:
    """Rows in a batch, at most `most`, so that `lanes` batches at a time take the fewest turns; larger if equal."""

    def turns(size: int) -> int:
        sizes = [part.stop - part.start for part in batches(rows, size)]
        return sum(max(sizes[start : start + lanes]) for start in range(0, len(sizes), lanes))

    return min(range(min(most, rows), 0, -1), key=turns)


def split_rows(rows: int, sizes: Sequence[int]) -> list[int]:
    """Rows of each batch, where an engine takes only batches of some `sizes`: 7 rows in 1, 2 or 4 are 4, 2 and 1.

    The last batch may have fewer than any of them; it is run with rows that count nothing.
    """
    parts = []
    while rows > 0:
        parts.append(min(max((size for size in sizes if size <= rows), default=rows), rows))
        rows -= parts[-1]
    return parts


class Lane:
    """The arrays that one batch of rows runs on, and the engine bound to them."""

    def __init__(
        self,
        unet: Engine,
        conditions: Conditions,
        sizes: set[int],
        slots: int,
        outer: Engine | None = None,
    ) -> None:
        self._conditions, self._unet, self._outer, self._sizes = conditions, unet, outer, sorted(sizes)
        cells = conditions.cells
        most, dtypes = max(sizes), unet.spec.dtypes
        self._inputs = {
            "latents": np.zeros((most, slots, 8, *cells), dtypes["latents"]),
            "timestep": np.zeros(most, dtypes["timestep"]),
            "embedding": np.zeros((most, 1, conditions.embedding.shape[-1]), dtypes["embedding"]),
            "time_ids": np.tile(np.array(conditions.time_ids, dtypes["time_ids"]), (most, 1)),
            "pose": np.zeros((most, slots, *conditions.pose.shape[1:]), dtypes["pose"]),
        }
        self.prediction = np.empty((most, slots, 4, *cells), dtypes["prediction"])
        self._calls: dict[int, Call] = {} if outer else {size: self._bind(unet, size) for size in self._sizes}

    def batch(self, rows: list[Row]) -> Batch:
        """A batch that runs on these arrays, on as many rows as it has or as few more as the engine can."""
        size = next(size for size in self._sizes if size >= len(rows))
        if self._outer is None:
            return Batch(rows, self, self._calls[size], None)
        spec = next(tensor for tensor in self._unet.spec.outputs if tensor.name == "cached_features")
        deep = np.zeros(
            (size, self.prediction.shape[1], spec.shape[2], *self.prediction.shape[3:]), spec.dtype
        )
        whole = self._bind(self._unet, size, outputs={"cached_features": deep})
        return Batch(rows, self, whole, self._bind(self._outer, size, inputs={"cached_features": deep}))

    def _bind(
        self,
        engine: Engine,
        size: int,
        inputs: Mapping[str, NDArray[Any]] | None = None,
        outputs: Mapping[str, NDArray[Any]] | None = None,
    ) -> Call:
        given = {name: array[:size] for name, array in self._inputs.items()}
        return engine.bind(
            {**given, **(inputs or {})}, {"prediction": self.prediction[:size], **(outputs or {})}
        )

    def gather(self, latents: Float, batch: list[Row], step: Step) -> None:
        """Fill the engine's inputs for a batch."""
        self._inputs["timestep"][:] = step.timestep
        for index, row in enumerate(batch):
            into, pose = self._inputs["latents"][index], self._inputs["pose"][index]
            gather(latents, row.frames, step.scale, into[:, :4])
            if row.conditional:
                into[:, 4:] = self._conditions.image_latents
                np.take(self._conditions.pose, row.frames, axis=0, out=pose, mode="clip")
                self._inputs["embedding"][index] = self._conditions.embedding
            else:
                into[:, 4:] = 0
                pose[:] = 0
                self._inputs["embedding"][index] = 0


@dataclass(frozen=True)
class Batch:
    """Rows that run at once, where, and by which call."""

    rows: list[Row]
    lane: Lane
    whole: Call
    outer: Call | None
    """The U-Net's first level, around the deep features that `whole` left in memory of this batch's own."""

    def call(self, step: Step) -> Call:
        """What the step runs."""
        return self.whole if step.whole or self.outer is None else self.outer


class Denoiser:
    """The step program of one clip, bound to its arrays.

    With an `executor` two batches run at a time, one of them on its thread: on a CPU two batches on half
    the threads each are faster than one after the other on all. `compiled` are the only numbers of rows that
    the U-Net takes, where that is so; else it takes any, up to `most_rows`.

    A step runs `rows`, or those of `others` if its kind is one of them; all are of equally many frames. With an
    engine `outer`, the U-Net's first level alone, `unet` must be the one that also answers its deep feature;
    steps that are not whole then take it from the last one of their kind that was.
    """

    def __init__(
        self,
        unet: Engine,
        conditions: Conditions,
        rows: list[Row],
        most_rows: int,
        executor: Executor | None = None,
        compiled: Sequence[int] = (),
        *,
        others: Mapping[Kind, list[Row]] | None = None,
        outer: Engine | None = None,
    ) -> None:
        lanes = 1 if executor is None else 2
        self._executor = executor
        plain = in_batches(rows, most_rows, lanes, compiled)
        kinds = {kind: in_batches(some, most_rows, lanes, compiled) for kind, some in (others or {}).items()}
        programs = [plain, *kinds.values()]
        counts = {len(batch) for program in programs for batch in program}
        sizes = {min(size for size in compiled or counts if size >= count) for count in counts}
        slots, used = len(rows[0].frames), min(lanes, max(map(len, programs)))
        self._lanes = [Lane(unet, conditions, sizes, slots, outer) for _ in range(used)]
        self._plain, self._others = self._place(plain), {k: self._place(some) for k, some in kinds.items()}
        cells = conditions.cells
        self._share = np.empty(slots, np.float32)
        self._scratch = np.empty((slots, 4, *cells), np.float32)
        self.segments = len({int(row.frames[-1]) for row in rows})
        self.frames = len(conditions.pose)
        self.latents = np.zeros((len(conditions.pose), 4, *cells), np.float32)
        """float32 [F,4,h,w]: set before the first step, read after any."""
        self.previous = np.zeros_like(self.latents)
        """The latents before the last step."""

    @property
    def rows(self) -> int:
        """Rows in a step, of those without a kind of their own."""
        return _count(self._plain)

    def step(self, step: Step) -> None:
        """Bring the latents to the next sigma."""
        for _ in self.run(step):
            pass

    def run(self, step: Step) -> Iterator[int]:
        """The same, yielding the number of segments done now and then; until the end, latents stay."""
        following = np.multiply(self.latents, np.float32(step.keep), out=self.previous)
        program = self._others.get(step.kind, self._plain)
        done, rows = 0, _count(program)
        for start in range(0, len(program), len(self._lanes)):
            group = program[start : start + len(self._lanes)]
            for batch in group:
                batch.lane.gather(self.latents, batch.rows, step)
            self._call([batch.call(step) for batch in group])
            for batch in group:  # always in the order of the rows: the sum's last bits depend on it
                self._blend(batch.lane.prediction, batch.rows, step, following)
                done += len(batch.rows)
            yield done * self.segments // rows
        self.latents, self.previous = following, self.latents

    def finished(self, frame: int, step: Step) -> Float:
        """Frame [4,h,w] as the step just made sees it without noise: x0 = x - sigma d."""
        x, following = self.previous[frame], self.latents[frame]
        x0: Float = x - np.float32(step.sigma / (step.next - step.sigma)) * (following - x)
        return x0

    def _place(self, program: list[list[Row]]) -> list[Batch]:
        return [self._lanes[index % len(self._lanes)].batch(rows) for index, rows in enumerate(program)]

    def close(self, *, broken: bool = False) -> None:
        """Nothing but its own memory is held; a `CudaDenoiser` leaves its program here."""

    def _call(self, calls: list[Call]) -> None:
        others = [self._executor.submit(call) for call in calls[1:]] if self._executor else []
        try:
            calls[0]()
        finally:
            wait(others)  # nobody may still write when this one leaves
        for other in others:
            other.result()

    def _blend(self, prediction: Float, batch: list[Row], step: Step, following: Float) -> None:
        for index, row in enumerate(batch):
            np.multiply(row.share, np.float32(step.push), out=self._share)
            blend(prediction[index], self._share, row.frames, following, self._scratch)


class Closes(Protocol):
    """A denoiser of any device."""

    def close(self, *, broken: bool = False) -> None:
        """Give back what it holds; `broken`: something failed on it."""


@contextmanager
def closed(denoiser: Closes) -> Iterator[None]:
    """Close a denoiser at the end, as broken after any error but one that only stops the job."""
    try:
        yield
    except (Cancelled, GeneratorExit):
        denoiser.close()
        raise
    except BaseException:
        denoiser.close(broken=True)
        raise
    denoiser.close()


def in_batches(rows: list[Row], most: int, lanes: int, compiled: Sequence[int]) -> list[list[Row]]:
    """The batches of a step: of the sizes in `compiled`, if there are any; else of at most `most` rows."""
    if compiled:
        ends = list(accumulate(split_rows(len(rows), compiled), initial=0))
        return [rows[start:end] for start, end in pairwise(ends)]
    return [rows[part] for part in batches(len(rows), batch_size(len(rows), most, lanes))]


def _count(program: list[Batch]) -> int:
    return sum(len(batch.rows) for batch in program)


def guidance_ramp(guidance: tuple[float, float], frames: int) -> Float:
    """Guidance of each frame [F], linear from the first to the last."""
    return np.linspace(*guidance, frames, dtype=np.float32)


def batches(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover `count`."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
