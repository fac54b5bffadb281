"""What all stages share: the base folder, clips prepared once and kept, and what the training loop asks for."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..checkpoints import describe_base, open_base, replace_part
from ..config import Config
from ..data.samples import HeldOut, Sample, clips_key, open_dataset
from ..data.store import Arrays, ClipOrder, Store

Batch = dict[str, Tensor]
Losses = tuple[Tensor, dict[str, Tensor]]
"""What is minimized, and parts of it to be logged."""
Measures = Mapping[str, float | None]


class TrainingStage(ABC):
    """One stage of training: the networks that learn, the clips that they see, and the loss.

    Positions number the clips of a run from 0. Every random choice is a function of the seed and the position, so
    that a resumed run goes on as if it had never stopped.
    """

    network: nn.Module
    """Holds all that trains. `loss` calls it through what accelerate has wrapped around it."""
    parts: Sequence[Any] = ()
    """What else changes with every step; it has `state_dict` and `load_state_dict`, and is kept in snapshots."""

    def __init__(self, config: Config, device: torch.device, output: Path) -> None:
        self.config, self.device, self.output = config, device, output
        self.base, self.base_found = open_base(config, output)
        self.start = describe_base(config, self.base_found)
        """What the networks were before training, in words."""
        self.dataset = open_dataset(config.data)
        self.order = ClipOrder(config.seed, len(self.dataset))
        self.held_out = HeldOut(config)
        self._cache = Path(config.data.cache) if config.data.cache else output / "cache"
        self._stores: list[Store] = []

    def open_store(self, kind: str, make: Callable[[Sample], Arrays], *parts: object) -> Store:
        """What `make` gives of each clip, kept on disk; `parts` are what it depends on besides the clips."""
        key = fingerprint(clips_key(self.config.data, self.dataset), *parts)
        store = Store(self._cache / f"{kind}-{key}", self.dataset, make)
        self._stores.append(store)
        return store

    def prepare(self, positions: Iterable[int], report: Callable[[int, int], None]) -> None:
        """Make what the coming batches read and is not stored yet; `report(done, of)` after each clip."""
        indices = [self.order[position] for position in positions]
        for store in self._stores:
            store.fill(indices, self.config.data.workers, report)

    @abstractmethod
    def batch(self, positions: Sequence[int]) -> Batch:
        """The clips at these positions, on the CPU."""

    @abstractmethod
    def loss(self, network: nn.Module, batch: Batch) -> Losses:
        """The loss of a batch that is on the device."""

    @abstractmethod
    def validate(self) -> tuple[Measures, NDArray[np.uint8]]:
        """Measures on clips never trained on, and a contact sheet uint8 [H,W,3]; uses `network` as it is.

        Raises `MotionError` if none of those clips can be used.
        """

    @abstractmethod
    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write the final weights into `folder`; `state` is the network's."""

    def next_step(self, final: Path) -> str:
        """What to do with the final weights in this folder: a command, or a key of the next stage's config."""
        return f"train the next stage with `base: {final / 'base'}`"

    def save_base(self, folder: Path, part: str, network: Any) -> None:
        """Write `base/`: this stage's base folder with another network as its `part`."""
        replace_part(
            self.base, folder / "base", part, network.half() if self.config.half_weights else network
        )

    def skipped(self) -> Counter[str]:
        """Reason -> how many clips it made unusable, as far as it is known; stores read the same clips."""
        counts = (store.skipped for store in self._stores)
        return reduce(Counter.__or__, counts, Counter[str]()) + self.held_out.skipped


def generator_at(seed: int, position: int) -> torch.Generator:
    """The source of random numbers for the clip at a position; on the CPU, so that every device draws the same."""
    state = np.random.SeedSequence([seed, position]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


def fingerprint(*parts: object) -> str:
    """16 hexadecimal digits that depend on all `parts`: values, tensors, or files by their content."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, torch.Tensor):
            digest.update(part.cpu().numpy().tobytes())
        else:
            digest.update(part.read_bytes() if isinstance(part, Path) else repr(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:16]
