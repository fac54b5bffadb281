"""What a training stage needs of each clip, prepared once, kept on disk and read at every step."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import zipfile
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...files import output_errors, write_atomic
from .samples import ClipDataset, Sample, usable_sample

Arrays = dict[str, NDArray[Any]]
Found = tuple[Sample, str]
LEFT_OUT = "left-out.jsonl"
DAMAGE = (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error)
"""What numpy raises for `.npz` files with wrong bytes in them."""


class Store:
    """One compressed `.npz` for each clip of a data set.

    `make` turns a sample into arrays; the name of `folder` must change when `make` does. Several processes may share
    a folder. Its `left-out.jsonl` names the clips that were replaced by others, and why.
    """

    def __init__(self, folder: Path, dataset: ClipDataset, make: Callable[[Sample], Arrays]) -> None:
        self._folder, self._dataset, self._make = folder, dataset, make
        self._left_out = self._read_left_out()

    @property
    def skipped(self) -> Counter[str]:
        """Why clips cannot be used -> how many, as found when the data set was opened and when clips were made."""
        made = self._read_left_out().items()  # others write there, too
        counted = Counter(reason for index, reason in made if reason and index < len(self._dataset))
        return counted + Counter(getattr(self._dataset, "skipped", {}))

    def __getitem__(self, index: int) -> Arrays:
        """The arrays of a clip; they are made if the file is missing or damaged."""
        path = self._path(index)
        with suppress(*DAMAGE), np.load(path) as file:
            return dict(file)
        self._add(index, usable_sample(self._dataset, index))
        with np.load(path) as file:
            return dict(file)

    def fill(
        self, indices: Iterable[int], workers: int, report: Callable[[int, int], None] = lambda *_: None
    ) -> None:
        """Make what is missing of `indices`; samples come from `workers` processes. `report(done, of)` after each.

        What another process has made meanwhile is not made again; each process has its own order, so they share
        the work.
        """
        missing = sorted({index for index in indices if not self._path(index).exists()})
        random.Random(os.getpid()).shuffle(missing)
        done = 0
        for done, (index, found) in enumerate(self._samples(missing, workers), 1):
            if not self._path(index).exists():
                self._add(index, found)
            report(done, len(missing))
        if done < len(missing):
            report(len(missing), len(missing))

    def _samples(self, indices: list[int], workers: int) -> Iterator[tuple[int, Found]]:
        """Samples of those of `indices` that are still missing when their turn comes."""
        missing = (index for index in indices if not self._path(index).exists())
        if not workers or len(indices) < 8:  # a process takes longer to start
            yield from ((index, usable_sample(self._dataset, index)) for index in missing)
            return
        waiting: deque[tuple[int, Future[Found]]] = deque()
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            for index in missing:
                waiting.append((index, pool.submit(usable_sample, self._dataset, index)))
                if len(waiting) > 4 * workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            yield from ((index, future.result()) for index, future in waiting)

    def _add(self, index: int, found: Found) -> None:
        sample, reason = found
        arrays, path = self._make(sample), self._path(index)
        with output_errors(path):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._note(index, reason)
            write_atomic(path, lambda file: np.savez_compressed(file, allow_pickle=False, **arrays))

    def _note(self, index: int, reason: str) -> None:
        """Keep why a clip is left out; the last line about a clip holds."""
        if reason != self._left_out.get(index, ""):
            self._left_out[index] = reason
            with (self._folder / LEFT_OUT).open("a") as file:
                file.write(json.dumps({"clip": index, "reason": reason}) + "\n")

    def _read_left_out(self) -> dict[int, str]:
        path, found = self._folder / LEFT_OUT, dict[int, str]()
        for line in path.read_text().splitlines() if path.is_file() else ():
            with suppress(ValueError, KeyError, TypeError):  # cut off by a kill
                one = json.loads(line)
                found[int(one["clip"])] = str(one["reason"])
        return found

    def _path(self, index: int) -> Path:
        return self._folder / f"{index:07d}.npz"


class ClipOrder:
    """The index of the clip at each position of an endless sequence: every clip once an epoch, epochs shuffled.

    It depends on `seed` and the number of clips only, so a resumed run goes on where it was.
    """

    def __init__(self, seed: int, clips: int) -> None:
        self._seed, self._clips = seed, clips
        self._epoch, self._shuffled = -1, np.zeros(0, np.int64)

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(position, self._clips)
        if epoch != self._epoch:
            self._epoch = epoch
            self._shuffled = np.random.default_rng([self._seed, epoch]).permutation(self._clips)
        return int(self._shuffled[place])
