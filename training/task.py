"""What the loop needs to know of a stage, and which stage a config asks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .config import Config

Batch = dict[str, Tensor]
Measures = Mapping[str, float | None]
Report = Callable[[int, int], None]


class Task(Protocol):
    """One stage of training.

    Positions number the clips of a run from 0; all that chance decides is a function of the seed and the
    position, so that a resumed run goes on as if it had never stopped.
    """

    @property
    def network(self) -> nn.Module:
        """Holds everything that trains; called by `loss` through whatever accelerate has wrapped around it."""

    @property
    def beginning(self) -> str:
        """What its networks were before training, in words."""

    def prepare(self, positions: Iterable[int], report: Report) -> None:
        """Make what the coming batches read."""

    def batch(self, positions: Sequence[int]) -> Batch:
        """The clips at these positions, on the CPU."""

    def loss(self, network: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and parts of it to be logged; the batch is on the device."""

    def validate(self) -> tuple[Measures, NDArray[np.uint8]]:
        """Measures on clips never trained on, and a contact sheet uint8 [H,W,3]; uses `network` as it is.

        Raises `MotionError` if none of those clips can be used.
        """

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write the final weights: `state` is the network's."""

    def skipped(self) -> Counter[str]:
        """Why clips of the data set and of those held out cannot be used, and how many, as far as it is known."""


def make_task(config: Config, device: torch.device, output: Path) -> Task:
    """The stage that the config names."""
    if config.stage == "vae":
        from .vae_task import VaeTask

        return VaeTask(config, device, output)
    if config.stage == "image_encoder":
        from .colour_task import ColourTask

        return ColourTask(config, device, output)
    if config.stage == "decoder":
        from .decoder_task import DecoderTask

        return DecoderTask(config, device, output)
    if config.stage == "together":
        from .together_task import TogetherTask

        return TogetherTask(config, device, output)
    from .motion_task import MotionTask

    return MotionTask(config, device, output)


def generator_at(seed: int, position: int) -> torch.Generator:
    """Chance for the clip at a position; on the CPU, so that every device draws the same."""
    state = np.random.SeedSequence([seed, position]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


def fingerprint(*parts: object) -> str:
    """A short name for prepared data that depends on all `parts`: values, tensors, or files by their content."""
    import hashlib

    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, torch.Tensor):
            digest.update(part.cpu().numpy().tobytes())
        else:
            digest.update(part.read_bytes() if isinstance(part, Path) else repr(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def cache_folder(config: Config, output: Path) -> Path:
    """Where prepared clips lie."""
    return Path(config.data.cache) if config.data.cache else output / "cache"
