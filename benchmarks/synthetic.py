"""How many frames of synthetic people one core makes in a second, keypoints included.

    python benchmarks/synthetic.py

Prints a table for people and, last, one line of JSON for machines.
"""

from __future__ import annotations

import json
import statistics
import time
from typing import Annotated

import cv2
import typer
from common import AsJson
from rich.console import Console
from rich.table import Table

from mimicmotion_trt.training.synthetic import iter_clips


def main(
    sizes: Annotated[list[str] | None, typer.Option("--size", help="WIDTHxHEIGHT; repeatable.")] = None,
    frames: Annotated[int, typer.Option(help="Frames of a clip.", min=1)] = 16,
    clips: Annotated[int, typer.Option(help="Clips in a run.", min=1)] = 20,
    repeat: Annotated[int, typer.Option(help="Timed runs.", min=1)] = 3,
    as_json: AsJson = False,
) -> None:
    """Make clips of new characters on one thread; the median rate of the runs, and a core's own time."""
    cv2.setNumThreads(1)
    table = Table(
        "size", "frames/s", "frames/s of processor time", title=f"clips of {frames} frames, one core"
    )
    report = {}
    for size in sizes or ["64x128", "128x192", "256x256"]:
        width, height = map(int, size.split("x"))
        list(iter_clips(0, 1, frames, height, width))
        rates, own = [], []
        for run in range(repeat):
            wall, processor = time.perf_counter(), time.process_time()
            for _ in iter_clips(1 + run * clips, clips, frames, height, width):
                pass
            rates.append(clips * frames / (time.perf_counter() - wall))
            own.append(clips * frames / (time.process_time() - processor))
        report[size] = {
            "frames_per_second": statistics.median(rates),
            "per_processor_second": statistics.median(own),
        }
        table.add_row(size, *(f"{value:.0f}" for value in report[size].values()))
    Console(quiet=as_json, markup=False).print(table)
    print(json.dumps({"frames": frames, "clips": clips, "sizes": report}))


if __name__ == "__main__":
    typer.run(main)
