"""Every kernel of the product against numpy, and the bandwidth of the large ones against a copy's."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mimicmotion_trt.cuda import launches
from mimicmotion_trt.cuda.launches import Device, Tables
from mimicmotion_trt.engines.cuda_device import Launch
from mimicmotion_trt.kernels import to_pictures
from mimicmotion_trt.segments import fusion_weights, plan_segments

Array = np.ndarray[Any, Any]
CLOSE = 1e-6
"""Largest difference over the largest value: the kernels round as numpy does, but may add in another order."""


@dataclass(frozen=True)
class Amount:
    """How much the kernels are timed on; at full size 0.6 GB and more, which no GPU's cache holds."""

    frames: int = 1200
    """Of the latents that are blended."""
    cells: tuple[int, int] = (72, 128)
    rows: int = 4
    """Whose poses are gathered, of 16 frames and 320 channels."""
    pictures: int = 128
    launches: int = 50
    """In one graph, so that the host's time to issue them does not count."""


def check_kernel(device: Device, dtype: str, name: str) -> dict[str, Any]:
    """`NAME_rel` of one of `CHECKS`: the largest difference from numpy over the largest value.

    AssertionError if that is large.
    """
    found = max(CHECKS[name](Checks(device, np.dtype(dtype))))
    if not found <= CLOSE:
        raise AssertionError(f"the kernel {name} for {dtype} differs from numpy by {found:.1e}")
    return {f"{name}_rel": found}


class Checks:
    """Each kernel on random values beside its numpy, two jobs where there can be several."""

    FRAMES, CELLS, SLOTS, JOBS = 11, (4, 8), 5, 2

    def __init__(self, device: Device, kind: np.dtype[Any]) -> None:
        self._device, self._kind, self._chance = device, kind, np.random.default_rng(0)
        plan = plan_segments(self.FRAMES, self.SLOTS, 2)
        self._weights = fusion_weights(plan)
        one = launches.make_tables(plan, self._weights)
        self._tables: Tables = launches.join_tables(one, range(self.JOBS), self.JOBS)
        self._numbers = np.array([[0.3, 0.5, 0.9, -0.2], [0.1, 0.7, 0.8, -0.3]], np.float32)

    def gather(self) -> Iterator[float]:
        """Latents scaled and cast, with the picture's or zeros."""
        latents, image = self._drawn(self.JOBS * self.FRAMES, 4), self._drawn(self.JOBS, 4)
        tables, rows = self._tables, len(self._tables.frames)
        found = self._launched(
            launches.gather(rows, self.SLOTS, self.CELLS[0] * self.CELLS[1]),
            (rows, self.SLOTS, 8, *self.CELLS), self._kind,
            latents, image, tables.frames, tables.conditional, tables.jobs, self._numbers,
        )  # fmt: skip
        for row, (frames, conditional, job) in enumerate(
            zip(tables.frames, tables.conditional, tables.jobs, strict=True)
        ):
            scaled = (latents[frames] * self._numbers[job, 1]).astype(self._kind)
            yield difference(found[row, :, :4], scaled)
            given = (image[job] * np.float32(conditional)).astype(self._kind)
            yield difference(found[row, :, 4:], np.broadcast_to(given, scaled.shape))

    def conditions(self, shape: tuple[int, int], channels: int) -> Iterator[float]:
        """Pose features of each row's frames, or zeros; `shape` decides whether packs of 16 bytes fill them."""
        source = self._chance.normal(size=(self.JOBS * self.FRAMES, channels, *shape)).astype(self._kind)
        tables, rows, size = self._tables, len(self._tables.frames), channels * shape[0] * shape[1]
        found = self._launched(
            launches.gather_conditions(rows, self.SLOTS, size, self._kind),
            (rows, self.SLOTS, channels, *shape), self._kind, source, tables.frames, tables.conditional,
        )  # fmt: skip
        keep = tables.conditional[:, None, None, None, None].astype(self._kind)
        yield difference(found, source[tables.frames] * keep)

    def numbers(self) -> Iterator[float]:
        """Time steps and micro-conditions of each row's job."""
        jobs, rows = self._tables.jobs, len(self._tables.jobs)
        found = self._launched(launches.timesteps(rows), (rows,), np.float32, jobs, self._numbers)
        yield difference(found, self._numbers[jobs, 0])
        ids = np.array([[6, 127, 0.02], [5, 90, 0]], np.float32)
        found = self._launched(launches.time_ids(rows), (rows, 3), np.float32, ids, jobs)
        yield difference(found, ids[jobs])

    def blend(self) -> Iterator[float]:
        """All predictions weighted and guided, and the Euler step, over all jobs."""
        tables, frames = self._tables, self.JOBS * self.FRAMES
        predictions = self._drawn(len(tables.frames), self.SLOTS, 4).astype(self._kind)
        latents, guidance = self._drawn(frames, 4), self._drawn(frames)[:, 0, 0].copy()
        found = self._launched(
            launches.blend_step(self.FRAMES, self.CELLS[0] * self.CELLS[1], self.JOBS),
            latents.shape, np.float32,
            predictions, tables.first, tables.covers, guidance, self._numbers, into=latents,
        )  # fmt: skip
        flat = predictions.reshape(-1, 4, *self.CELLS).astype(np.float32)
        for frame in range(frames):
            _, _, keep, push = self._numbers[frame // self.FRAMES]
            expected = latents[frame] * keep
            for prediction, conditional, weight in tables.covers[
                tables.first[frame] : tables.first[frame + 1]
            ]:
                guide = guidance[frame] if conditional else np.float32(1) - guidance[frame]
                expected += weight * guide * push * flat[prediction]
            yield difference(found[frame], expected)

    def decoder_input(self) -> Iterator[float]:
        """Latents over the scaling factor."""
        latents = self._drawn(self.FRAMES, 4)
        launch = launches.decoder_input(self.FRAMES, self.CELLS[0] * self.CELLS[1], 0.18215)
        found = self._launched(launch, latents.shape, self._kind, latents)
        yield difference(found, (latents / np.float32(0.18215)).astype(self._kind))

    def pictures(self, wide: int) -> Iterator[float]:
        """Planes to bytes."""
        planes = self._chance.uniform(-1.1, 1.1, (3, 3, 6, wide)).astype(self._kind)
        found = self._launched(
            launches.to_pictures(3, 6 * wide, self._kind), (3, 6, wide, 3), np.uint8, planes
        )
        expected = np.empty(found.shape, np.uint8)
        to_pictures(planes.astype(np.float32), expected)
        yield difference(found, expected)

    def _drawn(self, *shape: int) -> Array:
        return self._chance.normal(size=(*shape, *self.CELLS)).astype(np.float32)

    def _launched(
        self, launch: Launch, shape: Any, dtype: Any, *arrays: Array, into: Array | None = None
    ) -> Array:
        """What the kernel writes into a new array, or over a copy of `into`."""
        held = [put(self._device, array) for array in arrays]
        out = put(self._device, np.zeros(shape, dtype) if into is None else into)
        self._device.enqueue(lambda stream: self._device.launch(launch, *held, out, stream=stream))
        return self._device.download(out)


CHECKS: dict[str, Callable[[Checks], Iterator[float]]] = {
    "gather": Checks.gather,
    "gather_conditions": lambda checks: checks.conditions((6, 8), 8),
    "gather_conditions_narrow": lambda checks: checks.conditions((5, 3), 3),
    "numbers": Checks.numbers,
    "blend_step": Checks.blend,
    "decoder_input": Checks.decoder_input,
    "to_pictures": lambda checks: checks.pictures(64),
    "to_pictures_narrow": lambda checks: checks.pictures(7),
}
"""What is compared with numpy, and how."""


def difference(found: Array, expected: Array) -> float:
    """The largest difference over the largest value."""
    a, b = (np.asarray(values).astype(np.float64) for values in (found, expected))
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))


def time_kernel(device: Device, dtype: str, name: str, amount: Amount) -> dict[str, Any]:
    """GB/s read and written by one of `TIMED`, and by a copy of as many bytes; their ratio."""
    work, moved, held = TIMED[name](device, np.dtype(dtype), amount)
    kernel = moved / launch_seconds(device, work, amount.launches) / 1e9
    source, target = (device.empty((moved // 2,), np.uint8) for _ in range(2))
    copied = moved / launch_seconds(device, lambda _: device.copy(source, target), amount.launches) / 1e9
    device.release_after(held.clear)
    return {f"{name}_gb_s": kernel, f"{name}_copy_gb_s": copied, f"{name}_share_of_copy": kernel / copied}


Work = Callable[[Any], None]
Timed = tuple[Work, int, list[Any]]
"""What puts one launch on a stream, the bytes that it reads and writes, and its arrays."""


def blending(device: Device, kind: np.dtype[Any], amount: Amount) -> Timed:
    """Blend-guide-step of a long clip in segments of 16, guided."""
    (high, wide), frames = amount.cells, amount.frames
    plan = plan_segments(frames, 16, 6)
    tables = launches.make_tables(plan, fusion_weights(plan))
    launch = launches.blend_step(frames, high * wide)
    held = [
        device.empty((*tables.frames.shape, 4, high, wide), kind),
        *(put(device, array) for array in (tables.first, tables.covers)),
        put(device, np.full(frames, 2, np.float32)),
        put(device, np.array([[0.3, 0.5, 0.9, -0.2]], np.float32)),
        put(device, np.zeros((frames, 4, high, wide), np.float32)),
    ]
    moved = (tables.frames.size * kind.itemsize + 2 * frames * 4) * 4 * high * wide
    return lambda stream: device.launch(launch, *held, stream=stream), moved, held


def gathering(device: Device, kind: np.dtype[Any], amount: Amount) -> Timed:
    """Pose features of rows of 16 frames, all conditional."""
    (high, wide), rows = amount.cells, amount.rows
    size = 320 * high * wide
    launch = launches.gather_conditions(rows, 16, size, kind)
    frames = np.arange(16 * rows, dtype=np.int32).reshape(rows, 16)
    held = [
        device.empty((16 * rows, size), kind),
        put(device, frames),
        put(device, np.ones(rows, np.int32)),
        device.empty((rows, 16, size), kind),
    ]
    moved = 2 * frames.size * size * kind.itemsize
    return lambda stream: device.launch(launch, *held, stream=stream), moved, held


def picturing(device: Device, kind: np.dtype[Any], amount: Amount) -> Timed:
    """Decode's post-processing."""
    count, pixels = amount.pictures, 64 * amount.cells[0] * amount.cells[1]
    launch = launches.to_pictures(count, pixels, kind)
    held = [device.empty((count, 3, pixels), kind), device.empty((count, pixels, 3), np.uint8)]
    moved = 3 * count * pixels * (kind.itemsize + 1)
    return lambda stream: device.launch(launch, *held, stream=stream), moved, held


TIMED: dict[str, Callable[[Device, np.dtype[Any], Amount], Timed]] = {
    "blend_step": blending,
    "poses": gathering,
    "to_pictures": picturing,
}
"""The kernels that move the most."""


def launch_seconds(device: Device, work: Work, times: int) -> float:
    """Seconds of one launch, of many in one graph; the median of three replays after a first."""

    def many(stream: Any) -> None:
        for _ in range(times):
            work(stream)

    replay, series = device.record(many, graphs=True), []
    for _ in range(4):
        device.mark()()
        began = time.perf_counter()
        replay()
        device.mark()()
        series.append((time.perf_counter() - began) / times)
    replay.close()
    return statistics.median(series[1:])


def put(device: Device, values: Array) -> Any:
    """An array on the device with these values."""
    array = device.empty(values.shape, values.dtype)
    device.upload(values, array)
    return array
