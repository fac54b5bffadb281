"""Which batches of rows are worth running: each number of rows that a U-Net takes is timed once.

What was found is kept on disk for a build and a GPU: batches of other sizes give other last bits, and the same job
has to give the same bytes after every start.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..denoise.shapes import LatentSize
from ..engines import Engine, EngineSpec, call_sizes
from ..engines.cuda_device import CudaDevice, Replay
from ..errors import OutOfMemory, SettingsError, counted
from ..files import cache_folder, keep_in_cache

PAYS = 0.10
"""A larger batch is kept if it is faster by this share of the time of a row."""
MOST_ELEMENTS = 2**31 - 1
"""Of one tensor: kernels of TensorRT and PyTorch count elements in 32 bits."""
WIDEST = 8
"""The widest tensor of a U-Net holds so many times its first level's channels: a gated feed-forward layer's input."""
RUNS = 3


def too_wide(channels: int, rows: int, segment_frames: int, pixels: int) -> bool:
    """Whether a U-Net's widest tensor has more elements than kernels count.

    `channels` are those of its first level, `pixels` those of a latent frame.
    """
    return rows * segment_frames * pixels * channels * WIDEST > MOST_ELEMENTS


def countable_rows(
    unet: EngineSpec, rows: Iterable[int], segment_frames: int, latent_size: LatentSize
) -> tuple[int, ...]:
    """Those of `rows`, ascending, whose widest tensor has elements that 32 bits count; `SettingsError` if none."""
    (channels,) = (tensor.shape[2] for tensor in unet.inputs if tensor.name == "pose")
    assert isinstance(channels, int)
    pixels, wanted = math.prod(latent_size), sorted(set(rows))
    small = tuple(size for size in wanted if not too_wide(channels, size, segment_frames, pixels))
    if not small:
        raise SettingsError(
            f"{counted(wanted[0], 'row')} of {segment_frames} frames of {8 * latent_size[1]}x{8 * latent_size[0]} "
            "have tensors of 2**31 elements, more than a GPU's kernels count.",
            remedy="Choose a shorter segment or fewer pixels"
            + (", or rebuild the bundle with --batch 1." if wanted[0] > 1 else "."),
            field="settings.segment",
        )
    return small


class BatchSizes:
    """The numbers of rows in a batch that pay, by segment and size; `name` stands for the build and the GPU."""

    def __init__(
        self,
        device: CudaDevice,
        unet: Engine,
        name: str,
        *,
        cache: Path | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.device, self._unet, self._name = device, unet, name
        self._cache, self._clock = cache, clock
        self._known: dict[tuple[Any, ...], tuple[int, ...]] = {}
        self._timing = threading.Lock()
        self.timed = 0
        """How many shapes were timed by this object."""

    def choose(self, rows: Sequence[int], segment_frames: int, latent_size: LatentSize) -> tuple[int, ...]:
        """Those of `rows`, ascending, to use for segments of so many frames of a latent size (height, width).

        The smallest is always one of them. Raises `SettingsError` where even that is too large for 32 bits, and
        `OutOfMemory` where the GPU has no room for it.
        """
        small = countable_rows(self._unet.spec, rows, segment_frames, latent_size)
        if len(small) == 1:
            return small
        shape = (small, segment_frames, latent_size)
        with self._timing:  # of two jobs that come at once, the second finds what the first has found
            if shape not in self._known:
                path = self._path(shape)
                found = _read(path, small)
                if found is None:
                    self.timed += 1
                    seconds = self._times(small, segment_frames, latent_size)
                    found = worthwhile(seconds)
                    if len(seconds) == len(small):  # less room now says nothing of the next start
                        keep_in_cache(path, json.dumps(found).encode())
                self._known[shape] = found
            return self._known[shape]

    def _path(self, shape: tuple[Any, ...]) -> Path:
        key = hashlib.sha256(repr((self._name, shape)).encode()).hexdigest()
        return (self._cache or cache_folder()) / "batch-sizes" / f"{key[:32]}.json"

    def _times(self, sizes: Sequence[int], segment_frames: int, latent_size: LatentSize) -> dict[int, float]:
        """Seconds of a call of each size, up to the first one for which the GPU has no room."""
        seconds: dict[int, float] = {}
        for size in sizes:
            try:
                seconds[size] = self._seconds(size, segment_frames, latent_size)
            except OutOfMemory:
                if not seconds:
                    raise
                break
        return seconds

    def _seconds(self, rows: int, segment_frames: int, latent_size: LatentSize) -> float:
        """Of one call, the fastest of a few."""
        sizes, spec = call_sizes(segment_frames, latent_size, rows=rows), self._unet.spec
        device, held = self.device, dict[str, Any]()
        try:
            for tensor in (*spec.inputs, *spec.outputs):
                held[tensor.name] = device.empty(tensor.sized(sizes), tensor.dtype)
                device.upload(np.zeros(tensor.sized(sizes), tensor.dtype), held[tensor.name])
            inputs, outputs = ({t.name: held[t.name] for t in side} for side in (spec.inputs, spec.outputs))
            run = device.record(partial(device.call, self._unet.bind(inputs, outputs)), graphs=False)
            return self._fastest(run, held[spec.outputs[0].name])
        finally:
            device.release_after(held.clear)

    def _fastest(self, run: Replay, answer: Any) -> float:
        best = math.inf
        for _ in range(RUNS):
            self.device.download(answer)  # what was asked for before is done
            began = self._clock()
            run()
            self.device.download(answer)
            best = min(best, self._clock() - began)
        run.close()
        return best


def worthwhile(seconds: dict[int, float]) -> tuple[int, ...]:
    """Of batches of some rows, ascending, each with its seconds, the smallest and those that pay."""
    (smallest, best), *larger = seconds.items()
    kept, best = [smallest], best / smallest
    for size, took in larger:
        if took / size <= (1 - PAYS) * best:
            kept.append(size)
            best = took / size
    return tuple(kept)


def _read(path: Path, rows: Sequence[int]) -> tuple[int, ...] | None:
    """What was found before; None if nothing was, or the file is damaged."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    if not (isinstance(found, list) and found and found[0] == rows[0] and set(found) <= set(rows)):
        return None
    return tuple(found)
