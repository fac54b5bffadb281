"""What an animation will cost, before it runs: operations, memory and seconds, from a bundle's own `FlopModel`.

Operations are exact (see `engines/work.py`). Memory is an estimate, and seconds are operations over a
throughput that the caller states. The service's estimate (`service/rates.py`) learns from finished jobs instead.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from ..cuda.batch_sizes import MOST_ELEMENTS
from ..cuda.batch_sizes import too_wide as too_wide  # builds ask here which rows fit
from ..cuda.decoder import WIDEST
from ..denoise.schedule import steps_of
from ..denoise.segments import cut_segments
from ..denoise.shapes import EngineShapes
from ..engines import NETWORKS, FlopModel, Manifest
from ..errors import SettingsError
from ..settings import Settings

UNET_TENSORS = 16
"""Tensors as wide as the U-Net's first level that are alive at its worst moment: the feed-forward of the last
block (4 each for value, gate and their product), its input, norm and residual, and one skip connection."""
DECODER_TENSORS = 6
"""The same for the decoder's last block, in full pixels: twice as wide before its upsampler's convolution and
behind it, then the block's own two."""
ON_CPU = 3
"""What activations take on a CPU, times what is alive of them: ONNX Runtime's arena grows by doubling, and
convolutions want scratch memory. Measured on the small bundle (docs/scaling.md), where it was 1.7 to 4.7."""
OTHER_SEGMENTS = (72, 36, 16)
"""Lengths of segments that are looked at besides a bundle's own, if shorter."""
OTHER_CHUNKS = (8, 4, 2, 1)
"""Frames decoded at a time that are looked at besides the settings' own, if fewer and if that does not fit."""


@dataclass(frozen=True, slots=True)
class Model:
    """What predictions need to know of five networks."""

    works: Mapping[str, FlopModel]
    weights: int
    """Values in all weights."""
    width: int
    """Channels of the U-Net's first level."""
    value_bytes: int
    """Bytes of one weight or activation: 4, or 2 for fp16 where it is computed in."""
    streamable: int = 0
    """Values of `weights` that need not lie on the GPU: of plans built with --weight-streaming."""

    @classmethod
    def of(cls, manifest: Manifest) -> Model:
        """The networks of a bundle; what its files weigh is taken for weights."""
        size = 4 if manifest.precision == "fp32" else 2  # of fp8, too, all but some weights takes 2
        networks = {name: manifest.networks[name] for name in NETWORKS}
        files = {name: sum(file.bytes for file in network.files) for name, network in networks.items()}
        streamable = sum(files[name] for name, n in networks.items() if n.plan and n.plan.streamable)
        width = next(t.shape[2] for t in manifest.networks["unet"].spec.inputs if t.name == "pose")
        works = {name: network.work for name, network in manifest.networks.items()}
        return cls(works, sum(files.values()) // size, int(width), size, streamable // size)

    def halved(self) -> Model:
        """The same networks in fp16."""
        return replace(self, value_bytes=2)

    def widened(self) -> Model:
        """The same in float32, which ONNX Runtime's CPU provider makes of float16, weights and activations alike."""
        return replace(self, value_bytes=4)

    @property
    def decoder_width(self) -> float:
        """Channels of the decoder's last level: operations grow with its square; SVD's has 128."""
        return 128 * math.sqrt(self.works["vae_decoder"].linear / MIMICMOTION.works["vae_decoder"].linear)


MIMICMOTION = Model(
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
"""SVD-XT with MimicMotion's U-Net, in fp16: `export.work` on the published configs (tests/export/test_work.py)."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Floating point operations of one animation by stage."""

    encode: float
    denoise: float
    decode: float
    steps: int
    rows: int
    """Rows of the U-Net in a step, in the longest where steps differ."""
    slots: int
    """Frames of a row."""

    @property
    def total(self) -> float:
        """Of all stages; finding poses, media and the arithmetic between networks are not counted."""
        return self.encode + self.denoise + self.decode

    def seconds(self, flops_per_second: float) -> float:
        """How long it takes at a throughput."""
        return self.total / flops_per_second


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes, estimated."""

    weights: int
    activations: int
    """The larger of the U-Net's and the decoder's; attention is taken to be fused (no matrix of all pairs)."""
    state: int
    """Latents, PoseNet's features of every frame, and the rows' inputs and outputs."""
    streamed: int = 0
    """Further weights, in the host's memory unless the GPU has room for them; not of the total."""

    @property
    def total(self) -> int:
        return self.weights + self.activations + self.state


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to run an animation."""

    segment: int
    rows: int
    """Rows at once."""
    decode_chunk: int
    """Frames decoded at a time."""
    memory: Memory
    cost: Cost
    fits: bool
    why: str
    """What is in the way; empty if it fits."""


def cells_of(settings: Settings) -> int:
    """Latent cells of a frame; raises `SettingsError` without a size."""
    if settings.size is None:
        raise SettingsError(
            "a prediction needs a size.", remedy="Give --size WIDTHxHEIGHT.", field="settings.size"
        )
    width, height = settings.size
    return width // 8 * (height // 8)


def cost_of(model: Model, settings: Settings, frames: int) -> Cost:
    """What a video of `frames` frames costs; the reference picture's own frame comes on top.

    `settings` need size and segment. Raises `SettingsError`.
    """
    if settings.segment is None or frames < 1:
        raise SettingsError(
            f"a prediction needs a segment and frames, not {settings.segment} and {frames}.",
            remedy="Give at least one frame.",
            field="settings.segment" if settings.segment is None else "settings.frames",
        )
    cells, every, works = cells_of(settings), frames + 1, model.works
    if settings.reuse_interval > 1 and "unet_shallow" not in works:
        raise SettingsError(
            "a prediction of reused features needs the networks for it.",
            remedy="Choose reuse_interval 1, or a bundle built with --deep-cache.",
            field="settings.reuse_interval",
        )
    both = settings.guidance not in ((1.0, 1.0), (0.0, 0.0))
    steps: Counter[tuple[int, int, str]] = Counter()  # (rows, slots, network) of each
    for ((shift, guided), full), count in Counter((s.variant, s.full) for s in steps_of(settings)).items():
        plan = cut_segments(every, settings.segment, settings.overlap, settings.layout, shift)
        network = "unet" if full else "unet_shallow"
        steps[len(plan) * (1 + (both and guided)), plan.shape[1], network] += count
    rows, slots, _ = max(steps)
    encode = works["image_encoder"].flops() + works["vae_encoder"].flops(cells=cells)
    return Cost(
        encode=encode + works["pose_net"].flops(frames=every, cells=cells),
        denoise=sum(
            count * works[network].flops(rows=some, frames=slots, cells=cells)
            for (some, slots, network), count in steps.items()
        ),
        decode=works["vae_decoder"].flops(frames=every, cells=cells),
        steps=settings.steps,
        rows=rows,
        slots=slots,
    )


def unet_values(model: Model, rows: int, slots: int, cells: int) -> tuple[int, int]:
    """Values alive at the U-Net's worst moment, and those of its inputs and outputs."""
    row = rows * slots * cells
    return row * UNET_TENSORS * model.width, row * (8 + model.width + 4)


def memory_of(
    model: Model, settings: Settings, frames: int, rows: int, jobs: int = 1, *, gpu: bool = False
) -> Memory:
    """Peak memory with `rows` rows at once: weights, and what grows with frames and cells.

    activations = bytes max(rows slots cells 16 width, chunk 64 cells 6 decoder_width), on a CPU 3 times that;
    state = latents (two float32 copies), features and rows. Of several jobs at once a GPU denoises some beside one
    that it decodes, so that both lie there; a CPU computes them side by side. Weights that a plan streams need not
    lie on the GPU. An estimate: engines differ in what they keep and reuse.
    """
    cells, slots = cells_of(settings), cost_of(model, settings, frames).slots
    chunk = min(settings.decode_chunk, frames + 1)
    unet, inputs = unet_values(model, rows, slots, cells)
    decoder = chunk * 64 * cells * DECODER_TENSORS * model.decoder_width
    latents = (frames + 1) * cells * 4 * 2 * 4
    features = (frames + 1) * cells * model.width
    activations = unet + decoder if gpu and jobs > 1 else max(unet, decoder) * (1 if gpu else ON_CPU * jobs)
    streamed = model.streamable if gpu else 0
    return Memory(
        weights=(model.weights - streamed) * model.value_bytes,
        activations=round(activations) * model.value_bytes,
        state=jobs * (latents + (features + inputs) * model.value_bytes),
        streamed=streamed * model.value_bytes,
    )


def choices(
    model: Model,
    settings: Settings,
    frames: int,
    rows: Iterable[int],
    free: int | None,
    jobs: int = 1,
    *,
    gpu: bool = False,
    shapes: EngineShapes | None = None,
) -> list[Choice]:
    """Ways to run `jobs` of it at once, the best first: the settings' own segment and chunk, most rows.

    Smaller chunks follow where they fit and the settings' own does not.
    `free` is the bytes of memory, if known. With the `shapes` of plans these take all that is chosen; raises
    `InputError` where they do not take the settings themselves.
    """
    own, size = settings.segment or OTHER_SEGMENTS[0], settings.size or (0, 0)
    others: Iterable[int] = OTHER_SEGMENTS
    cells = (size[1] // 8, size[0] // 8)
    if shapes is not None:
        own = shapes.segment(settings, frames + 1, cells)
        others = reversed(shapes.segment_lengths(cells))
    found = []
    for segment in (own, *(other for other in others if other < min(own, frames + 1))):
        tried = replace(settings, segment=segment, overlap=min(settings.overlap, segment - 1))
        cost = cost_of(model, tried, frames)
        takes = {min(many, cost.rows) for many in rows}
        if shapes is not None:  # what is left of a batch runs with rows that count nothing
            compiled = shapes.rows(cost.slots, cells)
            takes = {count for count in compiled if count <= cost.rows} or {compiled[0]}
        for chunk in _chunks(settings, frames, cells, shapes):
            made = []
            for count in sorted(takes, reverse=True):
                way = replace(tried, decode_chunk=chunk)
                memory = memory_of(model, way, frames, count, jobs, gpu=gpu)
                why = "" if free is None or memory.total <= free else "more memory than is free"
                if _too_wide(model, way, frames, count, cost.slots, gpu):
                    why = "a tensor of over 2^31 elements"
                made.append(Choice(segment, count, chunk, memory, cost, not why, why))
            found += [choice for choice in made if choice.fits or chunk == settings.decode_chunk]
            if best(made):
                break
    return found


def _chunks(
    settings: Settings, frames: int, cells: tuple[int, int], shapes: EngineShapes | None
) -> list[int]:
    """Frames to decode at a time, the settings' own first, then fewer; of plans what they take."""
    own = settings.decode_chunk

    def taken(chunk: int) -> bool:
        with suppress(SettingsError):
            if shapes is not None:
                shapes.check_chunk(chunk, frames + 1, cells)
            return True
        return False

    return [own, *(chunk for chunk in OTHER_CHUNKS if chunk < min(own, frames + 1) and taken(chunk))]


def _too_wide(model: Model, settings: Settings, frames: int, rows: int, slots: int, gpu: bool) -> bool:
    """Whether U-Net or, on a GPU, decoder have a tensor with more elements than kernels count."""
    cells, chunk = cells_of(settings), min(settings.decode_chunk, frames + 1)
    return too_wide(model.width, rows, slots, cells) or (gpu and chunk * 64 * cells * WIDEST > MOST_ELEMENTS)


def best(found: Sequence[Choice]) -> Choice | None:
    """The first that fits."""
    return next((choice for choice in found if choice.fits), None)
