"""How near each fused kernel comes to the bandwidth of a copy on this GPU.

    python benchmarks/gpu_kernels.py [--minutes N] [--results DIR]

Every kernel does nothing but move data, so a copy of as many bytes is its ceiling. They are timed at full size, on
0.3 GB and more, which no GPU's cache holds, many launches in one captured graph, so that the host's time to issue
them does not count. `gb_s` are bytes read and written a second, `copy_gb_s` those of a copy on the device, `of_copy`
their ratio. Prints a table, draws a plot beside the JSON file and, last, prints its line; the file is written after
every figure. That the kernels are right is proven by tests/gpu.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from common import RESULTS, AsJson, Figures, Part, Record, run_parts, shown
from rich.console import Console
from rich.table import Table

from mimicmotion_trt.console import explained
from mimicmotion_trt.cuda import launches
from mimicmotion_trt.cuda.launches import Tables, open_device
from mimicmotion_trt.denoise.plan import Batching, make_variant
from mimicmotion_trt.denoise.segments import cut_segments, fusion_weights
from mimicmotion_trt.engines.cuda import open_gpu
from mimicmotion_trt.engines.cuda_device import CudaDevice, Launch

FIGURES = ("gb_s", "copy_gb_s", "of_copy")
DTYPES = ("float16", "float32")


@dataclass(frozen=True)
class Amount:
    """How much the kernels are timed on: MimicMotion's 1024x576 unless told otherwise."""

    frames: int = 1200
    """Of the latents, in segments of 16 that overlap by 6, both branches."""
    height: int = 72
    width: int = 128
    """Of the latents."""
    channels: int = 320
    """Of the pose features, of 64 frames."""
    pictures: int = 128
    repeats: int = 50
    """Launches in one graph."""

    @property
    def pixels(self) -> int:
        """Of one latent frame."""
        return self.height * self.width

    @property
    def tables(self) -> Tables:
        """The rows of the whole clip."""
        segments, guidance = cut_segments(self.frames, 16, 6), np.full(self.frames, 2, np.float32)
        variant = make_variant(segments, fusion_weights(segments), guidance, Batching((1,)))
        return launches.make_tables(variant)


@dataclass(frozen=True)
class Case:
    """A launch on arrays of the device, and the bytes that it reads and writes."""

    launch: Launch
    arrays: list[Any]
    moved: int


def main(
    minutes: Annotated[float | None, typer.Option(help="Begin nothing after so many minutes.", min=0)] = None,
    results: Annotated[Path, typer.Option(help="Folder of the JSON file and the plot.")] = RESULTS,
    as_json: AsJson = False,
) -> None:
    """Time every kernel and a copy beside it, for float16 and for float32 engines."""
    console = Console(quiet=as_json, markup=False, highlight=False)
    with explained():
        gpu = open_gpu(0)
    record = Record.begin(results, "gpu-kernels", gpu.name)
    run_parts(parts_of(partial(open_device, gpu), Amount()), record, console, minutes)
    shares = {}
    for dtype, rows in record.found["rows"].items():
        made = Table(dtype, *FIGURES)
        for name, found in rows.items():
            made.add_row(name, *(shown(found[figure]) for figure in FIGURES))
        console.print(made)
        shares[dtype] = {name: found["of_copy"] for name, found in rows.items()}
    record.plot(shares, "share of a copy's bandwidth", console)
    console.print(str(record.path))
    print(record.line)


def parts_of(open_device: Callable[[str], CudaDevice], amount: Amount) -> list[tuple[str, str, Part]]:
    """Every kernel for every dtype of engines; float16 first, which is what runs."""

    def part(dtype: str, name: str) -> Iterator[tuple[str, Figures]]:
        with closing(open_device(dtype)) as device:
            yield name, time_case(device, CASES[name](device, np.dtype(dtype), amount), amount.repeats)

    return [(dtype, name, partial(part, dtype, name)) for dtype in DTYPES for name in CASES]


def time_case(device: CudaDevice, case: Case, repeats: int) -> Figures:
    """GB/s of a kernel, and of a copy of as many bytes."""
    kernel = seconds(device, lambda stream: device.launch(case.launch, *case.arrays, stream=stream), repeats)
    source, target = (device.empty((case.moved // 2,), np.uint8) for _ in range(2))
    copy = seconds(device, lambda _: device.copy(source, target), repeats)
    device.release_after(case.arrays.clear)
    return {"gb_s": case.moved / kernel / 1e9, "copy_gb_s": case.moved / copy / 1e9, "of_copy": copy / kernel}


def seconds(device: CudaDevice, work: Callable[[Any], None], repeats: int) -> float:
    """Seconds of one launch, of many in one graph: the median of three replays after a first."""

    def many(stream: Any) -> None:
        for _ in range(repeats):
            work(stream)

    replay, series, small = device.record(many, graphs=True), [], device.empty((1,), np.int32)
    for _ in range(4):
        device.download(small)  # what was asked for before is done
        began = time.perf_counter()
        replay()
        device.download(small)
        series.append((time.perf_counter() - began) / repeats)
    replay.close()
    return statistics.median(series[1:])


def blend_step(device: CudaDevice, dtype: np.dtype[Any], amount: Amount) -> Case:
    """All predictions weighted and guided, and the Euler step."""
    tables, latents = amount.tables, (amount.frames, 4, amount.height, amount.width)
    arrays = [
        device.empty((tables.frames.size, *latents[1:]), dtype),
        put(device, tables.first),
        put(device, tables.covers),
        put(device, np.full(amount.frames, 2, np.float32)),
        put(device, np.array([[0.3, 0.5, 0.9, -0.2]], np.float32)),
        put(device, np.zeros(1, np.int32)),
        put(device, np.zeros(latents, np.float32)),
    ]
    moved = (tables.frames.size * dtype.itemsize + 2 * amount.frames * 4) * 4 * amount.pixels
    return Case(launches.blend_step(amount.frames, amount.pixels), arrays, moved)


def gather(device: CudaDevice, dtype: np.dtype[Any], amount: Amount) -> Case:
    """The latents of every row scaled and cast, the picture's beside them."""
    tables, frame = amount.tables, (4, amount.height, amount.width)
    rows, frames = tables.frames.shape
    arrays = [
        put(device, np.zeros((amount.frames, *frame), np.float32)),
        put(device, np.zeros((1, *frame), np.float32)),
        put(device, tables.frames),
        put(device, tables.conditional),
        put(device, tables.jobs),
        put(device, np.array([[0.3, 0.5, 0.9, -0.2]], np.float32)),
        device.empty((rows, frames, 8, *frame[1:]), dtype),
    ]
    moved = rows * frames * (4 * 4 + 8 * dtype.itemsize) * amount.pixels
    return Case(launches.gather(rows, frames, amount.pixels), arrays, moved)


def gather_conditions(device: CudaDevice, dtype: np.dtype[Any], amount: Amount) -> Case:
    """Pose features of four rows of 16 frames, all conditional."""
    size, frames = amount.channels * amount.pixels, np.arange(64, dtype=np.int32).reshape(4, 16)
    arrays = [
        device.empty((frames.size, size), dtype),
        put(device, frames),
        put(device, np.ones(len(frames), np.int32)),
        device.empty((*frames.shape, size), dtype),
    ]
    launch = launches.gather_conditions(*frames.shape, size, dtype)
    return Case(launch, arrays, 2 * frames.size * size * dtype.itemsize)


def decoder_input(device: CudaDevice, dtype: np.dtype[Any], amount: Amount) -> Case:
    """Latents over the scaling factor."""
    shape = (amount.frames, 4, amount.height, amount.width)
    arrays = [put(device, np.zeros(shape, np.float32)), device.empty(shape, dtype)]
    launch = launches.decoder_input(amount.frames, amount.pixels, 0.18215)
    return Case(launch, arrays, amount.frames * 4 * amount.pixels * (4 + dtype.itemsize))


def to_pictures(device: CudaDevice, dtype: np.dtype[Any], amount: Amount) -> Case:
    """Planes to bytes."""
    count, pixels = amount.pictures, 64 * amount.pixels
    arrays = [
        device.empty((count, 3, pixels), dtype),
        put(device, np.zeros(1, np.int32)),
        device.empty((count, pixels, 3), np.uint8),
    ]
    launch = launches.to_pictures(count, pixels, dtype)
    return Case(launch, arrays, 3 * count * pixels * (dtype.itemsize + 1))


CASES: dict[str, Callable[[CudaDevice, np.dtype[Any], Amount], Case]] = {
    "blend_step": blend_step,
    "gather_conditions": gather_conditions,
    "to_pictures": to_pictures,
    "gather": gather,
    "decoder_input": decoder_input,
}
"""The kernels that move more than a few numbers; what takes longest first."""


def put(device: CudaDevice, values: np.ndarray[Any, Any]) -> Any:
    """An array on the device with these values."""
    array = device.empty(values.shape, values.dtype)
    device.upload(values, array)
    return array


if __name__ == "__main__":
    typer.run(main)
