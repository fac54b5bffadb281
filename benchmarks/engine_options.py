"""What each way of running the U-Net on ONNX Runtime costs: the measurements behind docs/log.md.

    python benchmarks/engine_options.py

Milliseconds for one guided segment (two rows), median of the runs, all in one process. Prints a table and,
last, one line of JSON.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import numpy as np
import onnxruntime as ort
import typer
from common import AsJson, BundleName, timed
from rich.console import Console
from rich.table import Table

from mimicmotion_trt.bundles import load_bundle
from mimicmotion_trt.engines import Array, Bundle, call_sizes

LEVELS = ort.GraphOptimizationLevel


def main(
    bundle: BundleName = "tiny",
    frames: Annotated[int, typer.Option(help="Frames in a segment.")] = 8,
    cells: Annotated[str, typer.Option(help="HIGHxWIDE of the latents.")] = "16x8",
    repeat: Annotated[int, typer.Option(help="Timed runs of each.", min=1)] = 9,
    as_json: AsJson = False,
) -> None:
    """Time threads, rows, graph optimisation, fixed sizes, binding and two batches at a time."""
    loaded = load_bundle(bundle)
    high, wide = map(int, cells.split("x"))

    def inputs(rows: int) -> dict[str, Array]:
        return make_inputs(loaded, rows, frames, high, wide)

    one, two = (session(loaded, threads=threads) for threads in (1, 2))
    fixed = session(
        loaded, threads=2, sizes={"rows": 2, "frames": frames, "latent_height": high, "latent_width": wide}
    )
    plain = session(loaded, threads=2, level=LEVELS.ORT_ENABLE_EXTENDED)
    bare = session(loaded, threads=2, level=LEVELS.ORT_DISABLE_ALL)
    spinning = session(loaded, threads=2, spin=True)
    pool = ThreadPoolExecutor(1)
    pair, single, quad = inputs(2), inputs(1), inputs(4)

    def two_at_a_time(feed: dict[str, Array]) -> None:
        other = pool.submit(one.run, None, feed)
        one.run(None, feed)
        other.result()

    cases: dict[str, tuple[Callable[[], Any], int]] = {
        "1 thread, 2 rows": (lambda: one.run(None, pair), 2),
        "2 threads, 1 row": (lambda: two.run(None, single), 1),
        "2 threads, 2 rows": (lambda: two.run(None, pair), 2),
        "2 threads, 4 rows": (lambda: two.run(None, quad), 4),
        "2 threads, 2 rows, bound arrays": (bound(two, pair), 2),
        "2 threads, 2 rows, sizes fixed": (lambda: fixed.run(None, pair), 2),
        "2 threads, 2 rows, no layout optimisation": (lambda: plain.run(None, pair), 2),
        "2 threads, 2 rows, no optimisation": (lambda: bare.run(None, pair), 2),
        "2 threads, 2 rows, threads spin": (lambda: spinning.run(None, pair), 2),
        "two batches at a time, 1 thread and 1 row each": (lambda: two_at_a_time(single), 2),
        "two batches at a time, 1 thread and 2 rows each": (lambda: two_at_a_time(pair), 4),
    }
    table, results = Table("how", "ms for two rows"), {}
    for name, (call, rows) in cases.items():
        results[name] = median_ms(call, repeat) * 2 / rows
        table.add_row(name, f"{results[name]:.1f}")
    Console(quiet=as_json, markup=False).print(table)
    print(json.dumps({"frames": frames, "cells": cells, "ms": results}))


def session(
    bundle: Bundle,
    *,
    threads: int,
    level: Any = LEVELS.ORT_ENABLE_ALL,
    sizes: dict[str, int] | None = None,
    spin: bool = False,
) -> Any:
    """The bundle's U-Net under some options."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.graph_optimization_level = level
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    for name, size in (sizes or {}).items():
        options.add_free_dimension_override_by_name(name, size)
    path = str(bundle.engine_path("unet"))
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def make_inputs(bundle: Bundle, rows: int, frames: int, high: int, wide: int) -> dict[str, Array]:
    """Inputs of the U-Net."""
    sizes, noise = call_sizes(frames, (high, wide), rows=rows), np.random.default_rng(0)
    return {
        tensor.name: noise.standard_normal(tensor.sized(sizes), dtype=np.float32)
        for tensor in bundle.manifest.networks["unet"].spec.inputs
    }


def bound(engine: Any, feed: dict[str, Array]) -> Callable[[], Any]:
    """A call on arrays bound once."""
    binding = engine.io_binding()
    for name, array in feed.items():
        binding.bind_input(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
    output = np.empty((*feed["latents"].shape[:2], 4, *feed["latents"].shape[3:]), np.float32)
    binding.bind_output("prediction", "cpu", 0, np.float32, output.shape, output.ctypes.data)
    keep = (feed, output)  # a binding holds addresses, not arrays

    def call() -> None:
        assert keep
        engine.run_with_iobinding(binding)

    return call


def median_ms(call: Callable[[], Any], repeat: int) -> float:
    """Median milliseconds after two runs to warm up."""
    return statistics.median([timed(call) for _ in range(repeat + 2)][2:]) * 1e3


if __name__ == "__main__":
    typer.run(main)
