"""A small network learns to find landmarks of faces and hands, on cuts of frames; the VAE compares its features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ...denoise.kernels import to_signed
from ...media.sheet import contact_sheet
from ..config import Config, VaeConfig
from ..data.samples import Sample, with_reference
from ..data.store import Arrays
from ..landmarks import NEAR, PARTS, LandmarkNet, find_landmarks, heatmaps, located
from .base import Batch, Losses, Measures, TrainingStage, generator_at


class Cut(NamedTuple):
    """Where a clip's pictures are cut: T frames, rows and columns."""

    frames: slice
    rows: slice
    columns: slice


class LandmarkStage(TrainingStage):
    """The result is `landmarks.safetensors`."""

    def __init__(self, config: Config, device: torch.device, output: Path) -> None:
        super().__init__(config, device, output)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.finder = LandmarkNet()
        nn.init.constant_(self.finder.heat[-1].bias, -4.0)  # type: ignore[arg-type]  # most places hold nothing
        self.network = self.finder.to(device)
        self.marked = self.open_store("marked", store_marked)

    def batch(self, positions: Sequence[int]) -> Batch:
        """Pictures [N,3,S,S], and heatmaps of their landmarks [N,20,S/2,S/2]."""
        pictures, heat = [], []
        for position in positions:
            clip = self.marked[self.order[position]]
            cut = choose_cut(clip, self.config.vae, generator_at(self.config.seed, position))
            pictures.append(to_signed(clip["frames"][cut]))
            height, width = pictures[-1].shape[-2:]
            points = clip["points"][cut.frames] - np.array([cut.columns.start, cut.rows.start], np.float32)
            inside = ((points >= 0) & (points < (width, height))).all(axis=-1)
            seen = torch.from_numpy(clip["seen"][cut.frames] & inside)
            heat.append(heatmaps(torch.from_numpy(points), seen, height, width))
        return {"pictures": torch.from_numpy(np.concatenate(pictures)), "heat": torch.cat(heat)}

    def loss(self, network: nn.Module, batch: Batch) -> Losses:
        """Cross-entropy of the heatmaps."""
        return F.binary_cross_entropy_with_logits(network(batch["pictures"]).float(), batch["heat"]), {}

    @torch.inference_mode()
    def validate(self) -> tuple[Measures, NDArray[np.uint8]]:
        """The share of landmarks found in whole held-out pictures, and heatmaps over the pictures."""
        near, rows = [], []
        self.finder.eval()
        for index, sample in enumerate(self.held_out.samples()):
            clip = store_marked(sample)
            heat = self.finder(torch.from_numpy(to_signed(clip["frames"])).to(self.device)).float().cpu()
            away = (located(heat)[0] - torch.from_numpy(clip["points"])).norm(dim=-1).numpy()
            near.append((away < NEAR * clip["frames"].shape[1])[clip["seen"]])
            glow = heat.sigmoid().amax(dim=1).mul(255).byte().numpy().repeat(2, axis=1).repeat(2, axis=2)
            shown = np.maximum(clip["frames"] // 2, glow[..., None])
            rows.append((f"clip {index}: pictures, then what is found", [*clip["frames"], *shown]))
        self.finder.train()
        return {"found": float(np.concatenate(near).mean())}, contact_sheet(rows)

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write `landmarks.safetensors`."""
        from safetensors.torch import save_file

        save_file(
            {key: value.cpu().contiguous() for key, value in state.items()}, folder / "landmarks.safetensors"
        )

    def next_step(self, final: Path) -> str:
        """The VAE's stage compares its features."""
        return f"train a VAE with `vae: {{landmarks: {final / 'landmarks.safetensors'}}}`"


def store_marked(sample: Sample) -> Arrays:
    """All pictures of a clip, uint8 [1+F,H,W,3], the reference first, and their landmarks (see `find_landmarks`)."""
    frames, observed = with_reference(sample)
    truth = with_reference({**sample, "observed": sample["truth"]})[1] if "truth" in sample else observed
    points, seen = find_landmarks(truth)
    return {"frames": frames, "points": points, "seen": seen}


def choose_cut(clip: Arrays, settings: VaeConfig, generator: torch.Generator, multiple: int = 1) -> Cut:
    """`settings.frames` consecutive frames, and a square anywhere in them, or on a head or a hand of the first.

    The square's sides lie at multiples of `multiple` pixels.
    """
    frames = clip["frames"]

    def below(most: int) -> int:
        return int(torch.randint(most + 1, (), generator=generator))

    count = min(settings.frames, len(frames))
    first = below(len(frames) - count)
    sizes = (settings.crop, settings.crop) if settings.crop else frames.shape[1:3]
    free = [whole - size for whole, size in zip(frames.shape[1:3], sizes, strict=True)]
    start = [below(most) for most in free]
    if settings.focus:
        wanted, which = torch.rand((), generator=generator), below(2**16)
        centres = _centres(clip["points"][first], clip["seen"][first])
        if wanted < settings.focus and centres:
            x, y = centres[which % len(centres)]
            for axis, (middle, size, most) in enumerate(zip((y, x), sizes, free, strict=True)):
                start[axis] = int(np.clip(round(middle) - size // 2 + below(size // 2) - size // 4, 0, most))
    start = [at // multiple * multiple for at in start]
    rows, columns = (slice(at, at + size) for at, size in zip(start, sizes, strict=True))
    return Cut(slice(first, first + count), rows, columns)


def _centres(points: NDArray[np.float32], seen: NDArray[np.bool_]) -> list[tuple[float, float]]:
    """The middles of the face and of the hands of which something is seen, in pixels."""
    found = [points[part][seen[part]] for part in PARTS if seen[part].any()]
    return [(float(x), float(y)) for x, y in (one.mean(axis=0) for one in found)]
