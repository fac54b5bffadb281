"""Which batches of rows are worth running: each number of rows that a U-Net takes is timed once.

What was found is kept on disk for a build and a GPU: batches of other sizes give other last bits, and the same job
has to give the same bytes after every start.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..engines import Engine
from ..errors import EngineError
from .compiler import cache_folder, keep_file
from .device import Device

PAYS = 0.10
"""A larger batch is kept if it is faster by this share of the time of a row."""
MOST_ELEMENTS = 2**31 - 1
"""Of one tensor: kernels of TensorRT and PyTorch count elements in 32 bits."""
WIDEST = 8
"""The widest tensor of a U-Net holds so many times its first level's channels: a gated feed-forward layer's input."""
RUNS = 3


class Buckets:
    """The numbers of rows in a batch that pay, by segment and size; `name` stands for the build and the GPU."""

    def __init__(
        self,
        device: Device,
        unet: Engine,
        name: str,
        *,
        cache: Path | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._device, self._unet, self._name = device, unet, name
        self._cache, self._clock = cache, clock
        self._known: dict[tuple[Any, ...], tuple[int, ...]] = {}
        self.timed = 0
        """How many shapes were timed by this object."""

    def sizes(self, rows: Sequence[int], slots: int, cells: tuple[int, int]) -> tuple[int, ...]:
        """Those of `rows`, ascending, to use for segments of `slots` frames of `cells` (high, wide); never none.

        The smallest is always one of them.
        """
        channels = self._channels()
        small = tuple(
            size
            for size in rows
            if size == rows[0] or size * slots * cells[0] * cells[1] * channels * WIDEST <= MOST_ELEMENTS
        )
        if len(small) == 1:
            return small
        shape = (small, slots, cells)
        if shape not in self._known:
            path = self._path(shape)
            found = _read(path, small)
            if found is None:
                self.timed += 1
                found = worthwhile({size: self._seconds(size, slots, cells) for size in small})
                keep_file(path, json.dumps(found).encode())
            self._known[shape] = found
        return self._known[shape]

    def _channels(self) -> int:
        (pose,) = (tensor for tensor in self._unet.spec.inputs if tensor.name == "pose")
        assert isinstance(pose.shape[2], int)
        return pose.shape[2]

    def _path(self, shape: tuple[Any, ...]) -> Path:
        key = hashlib.sha256(repr((self._name, shape)).encode()).hexdigest()
        return (self._cache or cache_folder()) / "buckets" / f"{key[:32]}.json"

    def _seconds(self, rows: int, slots: int, cells: tuple[int, int]) -> float:
        """Of one call, the fastest of a few; infinite if the GPU has no room for it."""
        dims = {"rows": rows, "frames": slots, "cells_high": cells[0], "cells_wide": cells[1]}

        def arrays(tensors: Any) -> dict[str, Any]:
            made = {}
            for tensor in tensors:
                shape = tuple(dims[dim] if isinstance(dim, str) else dim for dim in tensor.shape)
                made[tensor.name] = self._device.empty(shape, np.dtype(tensor.dtype))
                self._device.upload(np.zeros(shape, tensor.dtype), made[tensor.name])
            return made

        try:
            inputs, outputs = arrays(self._unet.spec.inputs), arrays(self._unet.spec.outputs)
            call = self._unet.bind(inputs, outputs)
            run = self._device.record(lambda stream: self._device.call(call, stream), graphs=False)
        except EngineError as error:
            if "memory" not in str(error):
                raise
            return float("inf")
        best, some = float("inf"), next(iter(outputs.values()))
        for _ in range(RUNS):
            self._device.download(some)  # what was asked for before is done
            began = self._clock()
            run()
            self._device.download(some)
            best = min(best, self._clock() - began)
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
