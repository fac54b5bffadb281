"""Prepared clips on disk: what a stage needs of each clip, made once, read at every step."""

from __future__ import annotations

import multiprocessing
import os
import secrets
import zipfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .samples import ClipDataset, Sample, sound_sample

Arrays = dict[str, NDArray[Any]]


class Store:
    """One compressed `.npz` for each clip of a data set, written beside and renamed.

    `make` turns a sample into arrays; its results are only as good as `folder` is particular to it. Several
    processes may share a folder.
    """

    def __init__(self, folder: Path, dataset: ClipDataset, make: Callable[[Sample], Arrays]) -> None:
        self._folder, self._dataset, self._make = folder, dataset, make
        self.skipped: Counter[str] = Counter()
        """Why clips could not be used, and how often."""

    def __getitem__(self, index: int) -> Arrays:
        """The arrays of a clip, made now if they are not there or damaged."""
        path = self._path(index)
        with suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile), np.load(path) as file:
            return dict(file)
        self._add(index, sound_sample(self._dataset, index))
        with np.load(path) as file:
            return dict(file)

    def fill(
        self, indices: Iterable[int], workers: int, report: Callable[[int, int], None] = lambda *_: None
    ) -> None:
        """Make what is missing of `indices`, samples in `workers` processes; `report(done, of)` after each."""
        missing = sorted({index for index in indices if not self._path(index).exists()})
        for done, (index, found) in enumerate(self._samples(missing, workers), 1):
            self._add(index, found)
            report(done, len(missing))

    def _samples(self, indices: list[int], workers: int) -> Iterator[tuple[int, tuple[Sample, list[str]]]]:
        if not workers or len(indices) < 8:  # a process takes longer to start
            yield from ((index, sound_sample(self._dataset, index)) for index in indices)
            return
        waiting: deque[tuple[int, Future[tuple[Sample, list[str]]]]] = deque()
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            for index in indices:
                waiting.append((index, pool.submit(sound_sample, self._dataset, index)))
                if len(waiting) > 4 * workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            yield from ((index, future.result()) for index, future in waiting)

    def _add(self, index: int, found: tuple[Sample, list[str]]) -> None:
        sample, reasons = found
        self.skipped.update(reasons)
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._path(index)
        beside = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.npz")
        try:
            np.savez_compressed(beside, allow_pickle=False, **self._make(sample))
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)

    def _path(self, index: int) -> Path:
        return self._folder / f"{index:07d}.npz"


def clip_at(seed: int, clips: int, position: int) -> int:
    """Which clip comes at a position of the endless, shuffled sequence: a function of its arguments only."""
    epoch, place = divmod(position, clips)
    return int(_shuffled(seed, clips, epoch)[place])


@lru_cache(maxsize=4)
def _shuffled(seed: int, clips: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(clips)
