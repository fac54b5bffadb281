"""What an animation costs: operations, which are exact, and memory, which is an estimate."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from ..engines import NETWORKS, FlopModel, Manifest
from ..errors import LimitError
from ..limits import Limits
from ..settings import Settings, resolve_settings
from .schedule import steps_of
from .segments import cut_segments

CONTROL_GROUP = Path("/sys/fs/cgroup")
"""Of this process, in a container."""
UNET_TENSORS = 16
"""Tensors as wide as the U-Net's first level that are alive at its peak: the feed-forward of the last
block (4 each for value, gate and their product), its input, norm and residual, and one skip connection."""
DECODER_TENSORS = 6
"""The same for the decoder's last block, at full size: twice as wide before and after its upsampler's convolution,
then the block's own two."""
ON_CPU = 2
"""Memory of activations on a CPU, as a multiple of those alive: convolutions need scratch memory. Measured on the
small bundle, where it was 1.6 to 2.1 (docs/log.md)."""


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


def latent_pixels(settings: Settings) -> int:
    """Latent pixels of a frame, under settings with a size."""
    assert settings.size is not None
    width, height = settings.size
    return width // 8 * (height // 8)


def cost_of(model: ModelStats, settings: Settings, frames: int) -> Cost:
    """What a video of `frames` frames costs, or several for `settings.seeds`; the picture's own frame comes on top.

    `settings` have a size and a segment; those that reuse features need the networks for it.
    """
    assert settings.segment is not None
    videos = len(settings.each_seed)
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
        denoise=videos
        * sum(
            count * works[network].total(rows=some, frames=length, pixels=pixels)
            for (some, length, network), count in calls.items()
        ),
        decode=videos * works["vae_decoder"].total(frames=every, pixels=pixels),
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

    activations = bytes max(rows N pixels 16 width, chunk 64 pixels 6 decoder_width), on a CPU twice that, with N
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


def check_memory(
    model: ModelStats, settings: Settings, frames: int, rows: int, limits: Limits, *, loads: int = 0
) -> None:
    """Raise `LimitError` for a clip that needs more memory on a CPU than `limits` allow or is free now.

    What it needs is `memory_of` without the weights, which are loaded: 2 max(U-Net, decoder) + state. `settings` need
    a size and a segment; `rows` is how many the U-Net computes at the same time, `loads` the bytes of weights that
    have to be loaded.
    """
    needed = memory_of(model, settings, frames, min(rows, cost_of(model, settings, frames).rows))
    most, free = limits.memory_bytes, free_memory()
    total = needed.activations + needed.state + loads
    if total > min(most, free):
        where = "are free here now" if free < most else "are allowed here"
        raise LimitError(
            f"the job takes about {total / 1e9:.2g} GB of memory, and"
            f" {min(most, free) / 1e9:.2g} GB {where}.",
            remedy="Ask for a smaller size, a smaller decode_chunk or fewer frames.",
            field="settings.size",
        )


def free_memory() -> int:
    """Bytes that this process may still take, within the bound of its container if it is in one."""
    free = psutil.virtual_memory().available
    with suppress(OSError, ValueError):  # no control group, or none with a bound ("max")
        most = int((CONTROL_GROUP / "memory.max").read_text())
        used = int((CONTROL_GROUP / "memory.current").read_text())
        lines = (CONTROL_GROUP / "memory.stat").read_text().splitlines()
        cache = next(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
        free = min(free, most - used + cache)
    return max(0, free)
