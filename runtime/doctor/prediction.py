"""What an animation will cost, before it runs: operations, memory and seconds, from what its networks cost.

Operations are exact. Memory is an estimate, and seconds are operations over a throughput that the caller gives.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from ..cuda.batch_sizes import MOST_ELEMENTS, too_wide
from ..cuda.decoder import DECODER_CHANNELS
from ..denoise.schedule import steps_of
from ..denoise.segments import cut_segments
from ..denoise.shapes import EngineShapes, LatentSize
from ..engines import NETWORKS, FlopModel, Manifest
from ..errors import SettingsError
from ..settings import Settings, resolve_settings

UNET_TENSORS = 16
"""Tensors as wide as the U-Net's first level that are alive at its peak: the feed-forward of the last
block (4 each for value, gate and their product), its input, norm and residual, and one skip connection."""
DECODER_TENSORS = 6
"""The same for the decoder's last block, at full size: twice as wide before and after its upsampler's convolution,
then the block's own two."""
ON_CPU = 3
"""Memory of activations on a CPU, as a multiple of those alive: ONNX Runtime's arena grows by doubling, and
convolutions need scratch memory. Measured on the small bundle (docs/scaling.md), where it was 1.7 to 4.7."""
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
        unit, size = ("T", 1e12) if self.flops >= 1e12 else ("G", 1e9)
        return f"{self.flops / size:.3g} {unit}FLOP/s: {self.source}"


@dataclass(frozen=True, slots=True)
class ModelStats:
    """What predictions need to know of a bundle's networks."""

    works: Mapping[str, FlopModel]
    weights: int
    """Values in all weights."""
    width: int
    """Channels of the U-Net's first level."""
    value_bytes: int
    """Bytes of one weight or activation: 2 where the networks compute in fp16, else 4."""
    streamable: int = 0
    """Values of `weights` that may stay in the host's memory: those of plans built with --weight-streaming."""

    @classmethod
    def of(cls, manifest: Manifest) -> ModelStats:
        """The networks of a bundle; all bytes of its files count as weights."""
        size = 4 if manifest.precision == "fp32" else 2  # of fp8 too: all but some weights take 2
        networks = {name: manifest.networks[name] for name in NETWORKS}
        files = {name: sum(file.bytes for file in network.files) for name, network in networks.items()}
        streamable = sum(files[name] for name, n in networks.items() if n.plan and n.plan.streamable)
        width = next(t.shape[2] for t in manifest.networks["unet"].spec.inputs if t.name == "pose")
        works = {name: network.flops for name, network in manifest.networks.items()}
        return cls(works, sum(files.values()) // size, int(width), size, streamable // size)

    @property
    def decoder_width(self) -> float:
        """Channels of the decoder's last level: operations grow with its square, and SVD's has 128."""
        return 128 * math.sqrt(self.works["vae_decoder"].linear / MIMICMOTION.works["vae_decoder"].linear)


MIMICMOTION = ModelStats(
    works={
        "unet": FlopModel(161628160.0, 249856000.0, 266411520.0, 7301.25, 11280.0),
        "pose_net": FlopModel(0.0, 0.0, 674816.0, 0.0, 0.0),
        "vae_encoder": FlopModel(0.0, 0.0, 264233088.0, 2048.0, 0.0),
        "vae_decoder": FlopModel(0.0, 0.0, 734485888.0, 2048.0, 0.0),
        "image_encoder": FlopModel(0.0, 334590279680.0, 0.0, 0.0, 0.0),
    },
    weights=2_204_000_000,
    width=320,
    value_bytes=2,
)
"""SVD-XT with MimicMotion's U-Net, in fp16: `export.stats` on the published configs (tests/export/test_stats.py)."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Floating point operations of one animation by stage."""

    encode: float
    denoise: float
    decode: float
    steps: int
    rows: int
    """Rows of the U-Net in a step, in the longest where steps differ."""
    segment_frames: int
    """Frames of a row."""

    @property
    def total(self) -> float:
        """All stages. Pose estimation, media and the arithmetic between networks are not counted."""
        return self.encode + self.denoise + self.decode

    def seconds(self, flops_per_second: float) -> float:
        """How long it takes at a throughput."""
        return self.total / flops_per_second


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes, estimated."""

    weights: int
    activations: int
    """The larger of the U-Net's and the decoder's; attention is assumed to be fused (no matrix of all pairs)."""
    state: int
    """Latents, PoseNet's features of every frame, and the rows' inputs and outputs."""
    streamed: int = 0
    """Further weights, in the host's memory unless the GPU has room for them; not in the total."""

    @property
    def total(self) -> int:
        return self.weights + self.activations + self.state


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


def latent_pixels(settings: Settings) -> int:
    """Latent pixels of a frame, under settings with a size."""
    assert settings.size is not None
    width, height = settings.size
    return width // 8 * (height // 8)


def cost_of(model: ModelStats, settings: Settings, frames: int) -> Cost:
    """What a video of `frames` frames costs; the reference picture's own frame comes on top.

    `settings` have a size and a segment; those that reuse features need the networks for it.
    """
    assert settings.segment is not None
    pixels, every, works = latent_pixels(settings), frames + 1, model.works
    both = settings.guidance not in ((1.0, 1.0), (0.0, 0.0))
    calls: Counter[tuple[int, int, str]] = Counter()  # (rows, segment frames, network) -> steps like that
    steps = steps_of(resolve_settings(settings, {}))
    for ((shift, guided), full), count in Counter((step.variant, step.full) for step in steps).items():
        segments = cut_segments(every, settings.segment, settings.overlap, settings.layout, shift)
        rows = len(segments) * (1 + (both and guided))
        calls[rows, segments.shape[1], "unet" if full else "unet_shallow"] += count
    encode = works["image_encoder"].total() + works["vae_encoder"].total(pixels=pixels)
    rows, segment_frames, _ = max(calls)
    return Cost(
        encode=encode + works["pose_net"].total(frames=every, pixels=pixels),
        denoise=sum(
            count * works[network].total(rows=some, frames=length, pixels=pixels)
            for (some, length, network), count in calls.items()
        ),
        decode=works["vae_decoder"].total(frames=every, pixels=pixels),
        steps=settings.steps,
        rows=rows,
        segment_frames=segment_frames,
    )


def unet_values(model: ModelStats, rows: int, segment_frames: int, pixels: int) -> tuple[int, int]:
    """Values alive at the U-Net's peak, and those of its inputs and outputs."""
    row = rows * segment_frames * pixels
    return row * UNET_TENSORS * model.width, row * (8 + model.width + 4)


def memory_of(
    model: ModelStats, settings: Settings, frames: int, rows: int, jobs: int = 1, *, gpu: bool = False
) -> MemoryEstimate:
    """Peak memory with `rows` rows at once: weights, and what grows with frames and pixels.

    activations = bytes max(rows N pixels 16 width, chunk 64 pixels 6 decoder_width), on a CPU 3 times that, with N
    frames in a segment; state = latents (two float32 copies), features and rows. With several jobs, a GPU denoises
    some while it decodes another one, so both activations are added; a CPU computes the jobs side by side, each with
    its own. Weights that a plan streams are not counted. An estimate: engines differ in what they keep and reuse.
    """
    pixels = latent_pixels(settings)
    chunk = min(settings.decode_chunk, frames + 1)
    unet, inputs = unet_values(model, rows, cost_of(model, settings, frames).segment_frames, pixels)
    decoder = chunk * 64 * pixels * DECODER_TENSORS * model.decoder_width
    latents = (frames + 1) * pixels * 4 * 2 * 4
    features = (frames + 1) * pixels * model.width
    activations = unet + decoder if gpu and jobs > 1 else max(unet, decoder) * (1 if gpu else ON_CPU * jobs)
    streamed = model.streamable if gpu else 0
    return MemoryEstimate(
        weights=(model.weights - streamed) * model.value_bytes,
        activations=round(activations) * model.value_bytes,
        state=jobs * (latents + (features + inputs) * model.value_bytes),
        streamed=streamed * model.value_bytes,
    )


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
        own = shapes.segment(settings, frames + 1, latent_size)
        others = shapes.segment_lengths(latent_size)[::-1]
    found = []
    for segment in (own, *(other for other in others if other < min(own, frames + 1))):
        way = replace(settings, segment=segment, overlap=min(settings.overlap, segment - 1))
        cost = cost_of(model, way, frames)
        batches = {min(count, cost.rows) for count in rows}
        if shapes is not None:  # the last batch is filled up with padding rows of weight 0
            compiled = shapes.rows(cost.segment_frames, latent_size)
            batches = {count for count in compiled if count <= cost.rows} or {compiled[0]}
        for chunk in _chunks(settings, frames, latent_size, shapes):
            way = replace(way, decode_chunk=chunk)
            made = []
            for count in sorted(batches, reverse=True):
                memory = memory_of(model, way, frames, count, jobs, gpu=gpu)
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
        if chunk < min(own, frames + 1):
            with suppress(SettingsError):
                if shapes is not None:
                    shapes.check_chunk(chunk, frames + 1, latent_size)
                yield chunk
