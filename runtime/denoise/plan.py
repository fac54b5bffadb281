"""The plan of a clip: everything about its denoising that is known before the first step.

A row is one branch (conditional or not) of one segment, and one item of the U-Net's batch. A step gathers its rows
from the latents, runs the U-Net on batches of them, and updates the latents. Fusion of the segments, guidance and
the Euler step are all linear in the predictions, so the update is one weighted sum:

    latents <- keep latents + push sum_rows share[row] prediction[row]

share is the fusion weight times g in conditional rows, and times 1 - g in unconditional rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..engines import FEATURE_CACHE_NETWORKS
from ..errors import Cancelled, EngineError
from ..settings import Settings
from .kernels import not_finite
from .schedule import Step, VariantKey, steps_of
from .segments import Segments, cut_segments, fusion_weights
from .shapes import EngineShapes, LatentSize

Float = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Row:
    """One row of a step."""

    frames: NDArray[np.intp]
    """[N]: the frames of its segment."""
    conditional: bool
    share: Float
    """[N]: the weight of its prediction for each of these frames."""


@dataclass(frozen=True, eq=False)
class StepVariant:
    """What some of a plan's steps run. Most plans have one variant; options such as `shifted` make more."""

    segments: Segments
    """[S,N]."""
    weights: Float
    """[S,N]: fusion weights; they sum to 1 over a frame."""
    guidance: Float
    """[F]: g of each frame."""
    guided: bool
    """False: no guidance, only conditional rows run; g is 1 everywhere."""
    rows: tuple[Row, ...]
    """The conditional and the unconditional row of each segment. A branch that guidance multiplies by 0 in every
    frame is left out."""
    batches: tuple[int, ...]
    """How many rows each call of the U-Net has, in order. The last call may be larger than needed: its spare rows
    have weight 0."""

    @property
    def branches(self) -> tuple[bool, ...]:
        """The branches that each segment has, in order: (True, False), or one of them. True is conditional."""
        return tuple(row.conditional for row in self.rows[: len(self.rows) // len(self.segments)])


@dataclass(frozen=True, eq=False)
class DenoisePlan:
    """Made once by `make_plan`; the loops of the CPU and of the GPU only execute it."""

    frames: int
    """F, the reference picture's own and `padding` included."""
    latent_size: LatentSize
    guidance: Float
    """[F]: g of each frame in guided steps."""
    steps: tuple[Step, ...]
    variants: Mapping[VariantKey, StepVariant]
    """What the steps run, by their key. The segments of all variants have the same N."""
    batching: Batching
    segment: int
    """The longest segment that the settings and the engines allow; those of the `compact` layout may be shorter."""
    caches_features: bool = False
    """Whether some steps run the shallow U-Net on cached features."""
    padding: int = 0
    """Frames at the end of F that were added because compiled engines take no clip so short: they hold the last pose,
    run like the others and are dropped."""

    @property
    def kept(self) -> int:
        """Frames that are not padding."""
        return self.frames - self.padding

    @property
    def first(self) -> StepVariant:
        """The variant of the first step."""
        return self.variants[self.steps[0].variant]

    @property
    def segment_frames(self) -> int:
        """N."""
        return int(self.first.segments.shape[1])

    @property
    def segment_count(self) -> int:
        """S of the first step; progress is counted in these."""
        return len(self.first.segments)

    def variant(self, step: Step) -> StepVariant:
        """What a step runs."""
        return self.variants[step.variant]

    def failure(self, step: Step, conditions: Conditions, dtype: np.dtype[Any]) -> EngineError:
        """The error of a step after which the latents are not finite; `dtype` is that of the U-Net's answer.

        PoseNet's features are large, so whether they are finite is only looked at here.
        """
        if not np.isfinite(conditions.pose).all():
            return not_finite("pose_net", "for the pose pictures", conditions.pose.dtype)
        caching, shallow = FEATURE_CACHE_NETWORKS
        network = "unet" if not self.caches_features else caching if step.full else shallow
        return not_finite(network, f"in step {self.steps.index(step) + 1} of {len(self.steps)}", dtype)


@dataclass(frozen=True)
class Batching:
    """How rows are put into calls of the U-Net."""

    sizes: tuple[int, ...] = ()
    """The only numbers of rows that a call may have, ascending; empty: any number up to `most`."""
    most: int = 1
    workers: int = 1
    """Calls that run at the same time."""

    def split(self, rows: int) -> tuple[int, ...]:
        """Rows of each call; with `sizes`, the last call may have more rows than are left."""
        if self.sizes:
            return split_rows(rows, self.sizes)
        size = even_size(rows, self.most, self.workers)
        return tuple(part.stop - part.start for part in slices(rows, size))


@dataclass(frozen=True, eq=False)
class Conditions:
    """What the networks are told in every step of a clip of F frames."""

    embedding: Float
    """CLIP's token [1,D], times the settings' `image_strength`."""
    image_latents: Float
    """[4,h,w], not multiplied by the scaling factor."""
    pose: NDArray[Any]
    """PoseNet's features [F,C,h,w], times the settings' `pose_strength`, in the dtype of the U-Net."""
    time_ids: tuple[float, float, float]
    """(fps - 1, motion bucket, noise_aug)."""

    @property
    def latent_size(self) -> LatentSize:
        """(height, width)."""
        _, height, width = self.image_latents.shape
        return height, width


class Denoiser(Protocol):
    """Executes a plan for one clip, on any device."""

    plan: DenoisePlan

    @property
    def latents(self) -> Float:
        """float32 [F,4,h,w] after the last step."""

    def run(self, step: Step) -> Iterator[int]:
        """Run one step. Yields the number of finished segments, at least once."""

    def denoised(self, frame: int, step: Step) -> Float:
        """x0 [4,h,w] of a frame as the step just made predicts it."""

    def close(self, *, broken: bool = False) -> None:
        """Give back what it holds; `broken`: something failed on it, so it must not be used again."""


@contextmanager
def closing(denoiser: Denoiser) -> Iterator[None]:
    """Close a denoiser at the end: as broken after an error, normally after a cancel."""
    try:
        yield
    except (Cancelled, GeneratorExit):
        denoiser.close()
        raise
    except BaseException:
        denoiser.close(broken=True)
        raise
    denoiser.close()


def make_plan(
    settings: Settings,
    frames: int,
    latent_size: LatentSize,
    shapes: EngineShapes,
    choose_batching: Callable[[int], Batching],
) -> DenoisePlan:
    """The plan of a clip of `frames` frames (the reference picture's own included) under resolved settings.

    Where the engines take no such clip, it is padded at its end (`EngineShapes.fit`).

    `choose_batching(N)` says how the rows of segments of N frames are put into calls. Raises `InputError` where the
    bundle's engines do not take these segments.
    """
    steps, (segment, padded) = steps_of(settings), shapes.fit(settings, frames, latent_size)
    guidance = guidance_ramp(settings.guidance, frames)
    guidance = np.pad(guidance, (0, padded - frames), mode="edge")
    segments_by_variant = {
        (shift, guided): cut_segments(padded, segment, settings.overlap, settings.layout, shift)
        for shift, guided in dict.fromkeys(step.variant for step in steps)
    }
    batching = choose_batching(next(iter(segments_by_variant.values())).shape[1])
    variants = {
        (shift, guided): make_variant(
            segments,
            fusion_weights(segments, settings.fusion),
            guidance if guided else np.ones_like(guidance),
            batching,
            guided=guided,
        )
        for (shift, guided), segments in segments_by_variant.items()
    }
    return DenoisePlan(
        padded,
        latent_size,
        guidance,
        tuple(steps),
        variants,
        batching,
        segment,
        caches_features=settings.reuse_interval > 1,
        padding=padded - frames,
    )


def make_variant(
    segments: Segments, weights: Float, guidance: Float, batching: Batching, *, guided: bool = True
) -> StepVariant:
    """A variant of segments [S,N] with weights [S,N] and guidance [F].

    Guidance is uncond + g (cond - uncond), which is g cond + (1 - g) uncond: the shares are g and 1 - g.
    """
    rows = []
    for frames, weight in zip(segments, weights, strict=True):
        for conditional, part in ((True, guidance), (False, 1 - guidance)):
            if np.any(part):
                rows.append(Row(frames, conditional, weight * part[frames]))
    return StepVariant(segments, weights, guidance, guided, tuple(rows), batching.split(len(rows)))


def guidance_ramp(guidance: tuple[float, float], frames: int) -> Float:
    """Guidance of each frame [F], linear from the first to the last."""
    return np.linspace(*guidance, frames, dtype=np.float32)


def split_rows(rows: int, sizes: Sequence[int]) -> tuple[int, ...]:
    """Calls of some `sizes`, ascending, that hold so many rows: 7 rows in 1, 2 or 4 are 4, 2 and 1.

    Fewer rows than the smallest size still take one call of that size.
    """
    calls = []
    while rows > 0:
        calls.append(max((size for size in sizes if size <= rows), default=sizes[0]))
        rows -= calls[-1]
    return tuple(calls)


def even_size(rows: int, most: int, workers: int) -> int:
    """Rows of a call, at most `most`: the number with the smallest total time for so many workers.

    A call takes time in proportion to its rows. Of equally good numbers the larger one is taken.
    """

    def total_time(size: int) -> int:
        sizes = [part.stop - part.start for part in slices(rows, size)]
        return sum(max(sizes[start : start + workers]) for start in range(0, len(sizes), workers))

    return min(range(min(most, rows), 0, -1), key=total_time)


def slices(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover `count`."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
