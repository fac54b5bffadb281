"""In which ways an animation can run on a device: what fits into its memory, and how fast it would be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ..cuda.batch_sizes import MOST_ELEMENTS, too_wide
from ..cuda.decoder import DECODER_CHANNELS
from ..denoise.cost import Cost, MemoryEstimate, ModelStats, cost_of, latent_pixels, memory_of
from ..denoise.shapes import EngineShapes, LatentSize
from ..settings import Settings

OTHER_SEGMENTS: tuple[int, ...] = (72, 36, 16)
"""Shorter segments that are tried besides a bundle's own."""
OTHER_CHUNKS = (8, 4, 2, 1)
"""Frames decoded at a time that are tried where the settings' own number does not fit into memory."""


@dataclass(frozen=True, slots=True)
class Throughput:
    """Floating point operations per second, and how that is known."""

    flops: float
    source: str

    def __str__(self) -> str:
        unit, size = ("trillion", 1e12) if self.flops >= 1e12 else ("billion", 1e9)
        return f"{self.flops / size:.3g} {unit} operations a second, {self.source}"


@dataclass(frozen=True, slots=True)
class Prediction:
    """One way to run an animation, and what it needs."""

    segment: int
    rows: int
    """Rows in one call of the U-Net."""
    decode_chunk: int
    """Frames decoded at a time."""
    memory: MemoryEstimate
    cost: Cost
    fits: bool
    why: str
    """Why it does not fit; empty if it does."""


def predict(
    model: ModelStats, settings: Settings, frames: int, rows: Iterable[int], free: int | None,
    jobs: int = 1, *, gpu: bool = False, shapes: EngineShapes | None = None,
) -> list[Prediction]:  # fmt: skip
    """Ways to run `jobs` of it at once, the best first: the settings' own segment and chunk, most rows.

    Smaller chunks follow where they fit and the settings' own does not. `free` is the memory in bytes, None if
    unknown. With the `shapes` of compiled plans only what these take is predicted; raises `InputError` if they do not
    take the settings themselves.
    """
    assert settings.segment is not None
    width, height = settings.size or (0, 0)
    latent_size, pixels = (height // 8, width // 8), latent_pixels(settings)
    own, others = settings.segment, OTHER_SEGMENTS
    if shapes is not None:
        own = shapes.fit(settings, frames + 1, latent_size).segment
        others = shapes.segment_lengths(latent_size)[::-1]
    found = []
    for segment in (own, *(other for other in others if other < min(own, frames + 1))):
        way, driven = replace(settings, segment=segment, overlap=min(settings.overlap, segment - 1)), frames
        if shapes is not None:  # a clip that plans do not take is padded
            length, every = shapes.fit(way, frames + 1, latent_size)
            way, driven = replace(way, segment=length, overlap=min(way.overlap, length - 1)), every - 1
        cost = cost_of(model, way, driven)
        batches = {min(count, cost.rows) for count in rows}
        if shapes is not None:  # the last batch is filled up with padding rows of weight 0
            compiled = shapes.rows(cost.segment_frames, latent_size)
            batches = {count for count in compiled if count <= cost.rows} or {compiled[0]}
        for chunk in _chunks(settings, frames, latent_size, shapes):
            way = replace(way, decode_chunk=chunk)
            made = []
            for count in sorted(batches, reverse=True):
                memory = memory_of(model, way, driven, count, jobs, gpu=gpu)
                decoder = min(chunk, frames + 1) * 64 * pixels * DECODER_CHANNELS
                wide = too_wide(model.width, count, cost.segment_frames, pixels)
                why = "" if free is None or memory.total <= free else "more memory than is free"
                if wide or (gpu and decoder > MOST_ELEMENTS):  # more than kernels can count
                    why = "a tensor of over 2^31 elements"
                made.append(Prediction(segment, count, chunk, memory, cost, not why, why))
            found += [choice for choice in made if choice.fits or chunk == settings.decode_chunk]
            if best(made):
                break
    return found


def best(found: Sequence[Prediction]) -> Prediction | None:
    """The first that fits."""
    return next((choice for choice in found if choice.fits), None)


def _chunks(
    settings: Settings, frames: int, latent_size: LatentSize, shapes: EngineShapes | None
) -> Iterator[int]:
    """Frames to decode at a time, the settings' own first, then fewer; only what compiled plans take."""
    own = settings.decode_chunk
    yield own
    for chunk in OTHER_CHUNKS:
        if chunk < min(own, frames + 1) and (shapes is None or shapes.chunk(chunk, latent_size) == chunk):
            yield chunk
