"""How time and memory grow with frames, size, segment and rows, measured on the CPU and predicted for GPUs.

    python benchmarks/scaling.py --save       the tables of docs/internals/scaling.md, their figures as JSON beside it
    python benchmarks/scaling.py --quick      a minute, to see that it works

Each point runs in a process of its own, so that its peak memory is its own. One quantity varies at a time. A
slope is that of a straight line through log(seconds), or log(MiB), against log(quantity): 1 is linear. It is
measured and, from operations and the memory's formula, predicted. Memory is what comes on top of the loaded
engines. Prints tables, draws benchmarks/results/scaling.png and, last, prints one line of JSON.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from common import (
    RESULTS,
    ROOT,
    AsJson,
    BundleName,
    in_own_process,
    keypoints,
    markdown,
    peak_mib,
    picture,
    timed,
    with_table,
)
from rich.console import Console
from rich.table import Table

from mimicmotion_trt.animator import Animator
from mimicmotion_trt.bundles import load_bundle
from mimicmotion_trt.denoise.cost import (
    MIMICMOTION,
    ON_CPU,
    ModelStats,
    cost_of,
    latent_pixels,
    memory_of,
    unet_values,
)
from mimicmotion_trt.doctor.machine import EFFICIENCY, PEAK_TFLOPS, unet_call
from mimicmotion_trt.engines import Placement, open_engine
from mimicmotion_trt.files import write_atomic
from mimicmotion_trt.pose import draw_poses
from mimicmotion_trt.settings import REFERENCE, Settings
from mimicmotion_trt.training.plots import drawn, plain_log

DOCS = ROOT / "docs" / "internals" / "scaling.md"
OVERLAP = 3
GPUS = ("H100", "A100", "RTX 4090", "L4")
GPU_FRAMES = (16, 71, 142, 284, 568)
LABELS = {"size": "pixels", "segment": "frames a segment"}
"""What a plot calls a quantity, where that is not its own name."""


@dataclass(frozen=True)
class Point:
    """One thing to measure: a whole animation from pose pictures, or with `rows` one U-Net call."""

    frames: int
    size: tuple[int, int]
    segment: int
    rows: int = 0


SWEEPS = {
    "frames": [Point(n, (64, 128), 8) for n in (8, 16, 32, 64)],
    "size": [Point(8, size, 8) for size in ((64, 64), (64, 128), (128, 128), (128, 256), (256, 256))],
    "segment": [Point(48, (64, 128), n) for n in (8, 16, 32)],
    "rows": [Point(7, (64, 128), 8, rows) for rows in (1, 2, 4, 8)],
}


def main(
    bundle: BundleName = "tiny",
    steps: Annotated[int, typer.Option(help="Denoising steps.", min=1)] = 4,
    repeat: Annotated[int, typer.Option(help="Timed runs of each; the fastest counts.", min=1)] = 3,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    quick: Annotated[bool, typer.Option(help="Two points of each, one run, two steps.")] = False,
    output: Annotated[Path, typer.Option(help="The picture of the curves.")] = RESULTS / "scaling.png",
    save: Annotated[
        bool,
        typer.Option(help="Write the figures beside the picture (.json), and docs/internals/scaling.md."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure every sweep, compare it with what operations and the memory's formula predict."""
    steps, repeat = (2, 1) if quick else (steps, repeat)
    console = Console(quiet=as_json, markup=False)
    model = ModelStats.of(load_bundle(bundle).manifest)
    sweeps: dict[str, Any] = {}
    for name, points in SWEEPS.items():
        chosen = points[:2] if quick else points
        rows = [run_alone(bundle, point, steps, repeat, threads, model) for point in chosen]
        sweeps[name] = summary(name, rows)
        console.print(table_of(name, sweeps[name]))
    curves = gpu_curves()
    console.print(gpu_table(curves))
    draw(output, sweeps, curves)
    console.print(str(output))
    told = {"bundle": bundle, "steps": steps, "threads": threads, "sweeps": sweeps, "gpus": curves}
    if save:
        write_atomic(output.with_suffix(".json"), json.dumps(told, indent=1) + "\n")
        write_atomic(DOCS, with_table(DOCS.read_text(), "scaling", section(told)))
    print(json.dumps(told))


def run_alone(
    bundle: str, point: Point, steps: int, repeat: int, threads: int, model: ModelStats
) -> dict[str, Any]:
    """One point in a process of its own, with what was predicted of it."""
    measured = in_own_process(measure, bundle, point, steps, repeat, threads)
    settings = settings_of(point, steps)
    cost = cost_of(model, settings, point.frames)
    memory = memory_of(model, settings, point.frames, min(4, cost.rows))
    flops, more = cost.total, memory.activations + memory.state
    if point.rows:
        flops, more = row_cost(model, point)
    predicted = {"flops": flops, "more_mib": more / 2**20}
    return {**asdict(point), **measured, "predicted": predicted}


def row_cost(model: ModelStats, point: Point) -> tuple[float, int]:
    """Operations and bytes of one U-Net call."""
    pixels = latent_pixels(settings_of(point, 1))
    flops = model.works["unet"].total(rows=point.rows, frames=point.segment, pixels=pixels)
    alive, inputs = unet_values(model, point.rows, point.segment, pixels)
    return flops, (ON_CPU * alive + inputs) * model.value_bytes


def settings_of(point: Point, steps: int) -> Settings:
    """The settings of a point."""
    return Settings(size=point.size, segment=point.segment, overlap=OVERLAP, steps=steps)


def measure(bundle: str, point: Point, steps: int, repeat: int, threads: int) -> dict[str, float]:
    """The fastest seconds and this process's peak MiB, before the first run and at the end."""
    call, baseline = (
        row_call(bundle, point, threads) if point.rows else clip_call(bundle, point, steps, threads)
    )
    call()
    fastest = min(timed(call) for _ in range(repeat))
    return {"seconds": fastest, "peak_mib": peak_mib(), "loaded_mib": baseline}


def clip_call(bundle: str, point: Point, steps: int, threads: int) -> tuple[Any, float]:
    """A whole animation from pose pictures to frames, and the MiB before it."""
    animator = Animator.load(bundle, threads=threads)
    settings = animator.settings(size=point.size, segment=point.segment, overlap=OVERLAP, steps=steps)
    width, height = point.size
    reference = picture(point.size)
    poses = draw_poses(
        keypoints(point.frames + 1), height, width, settings.canvas or int(REFERENCE["canvas"])
    )

    def call() -> None:
        animator.decode(animator.sample(reference, poses, settings))

    return call, peak_mib()


def row_call(bundle: str, point: Point, threads: int) -> tuple[Any, float]:
    """One U-Net call of `rows` rows, and the MiB before it."""
    engine = open_engine(load_bundle(bundle), "unet", Placement(threads=threads, spin_threads=True))
    return unet_call(engine, point.rows, point.segment, point.size), peak_mib()


def summary(name: str, points: list[dict[str, Any]]) -> dict[str, Any]:
    """The points of a sweep and their slopes."""
    along = [quantity(name, point) for point in points]
    flops = [point["predicted"]["flops"] for point in points]
    return {
        "points": points,
        "slope_measured": slope(along, [point["seconds"] for point in points]),
        "slope_predicted": slope(along, flops),
        "memory_slope_measured": slope(along, [more_mib(point) for point in points]),
        "memory_slope_predicted": slope(along, [point["predicted"]["more_mib"] for point in points]),
        "gflops_per_second": float(
            np.median([f / point["seconds"] / 1e9 for f, point in zip(flops, points, strict=True)])
        ),
    }


def more_mib(point: dict[str, Any]) -> float:
    """Peak memory on top of the loaded engines."""
    return float(point["peak_mib"] - point["loaded_mib"])


def quantity(name: str, point: dict[str, Any]) -> float:
    """What varies in a sweep; a size counts by its pixels."""
    return float(point["size"][0] * point["size"][1]) if name == "size" else float(point[name])


def slope(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Of the least-squares line through log y against log x; None where a y is not above 0."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0]) if min(y) > 0 else None


def told_slope(value: float | None) -> str:
    """For people."""
    return "–" if value is None else f"{round(value, 2) + 0:.2f}"  # never -0.00


HEADERS = ("frames", "size", "segment", "rows", "seconds", "GFLOP", "MiB more", "predicted")
SLOPES = ("varies", "from", "to", "seconds", "predicted", "MiB", "predicted")


def cells(point: dict[str, Any]) -> list[str]:
    """A point as a table's text."""
    size, rows = "x".join(map(str, point["size"])), str(point["rows"] or "")
    memory = [f"{more_mib(point):.0f}", f"{point['predicted']['more_mib']:.0f}"]
    work = f"{point['predicted']['flops'] / 1e9:.1f}"
    return [str(point["frames"]), size, str(point["segment"]), rows, f"{point['seconds']:.3f}", work, *memory]


def slopes(sweep: dict[str, Any]) -> list[str]:
    """Of seconds measured and predicted, and of memory."""
    names = ("slope_measured", "slope_predicted", "memory_slope_measured", "memory_slope_predicted")
    return [told_slope(sweep[name]) for name in names]


def table_of(name: str, sweep: dict[str, Any]) -> Table:
    """A sweep for people."""
    seconds, operations, memory, formula = slopes(sweep)
    title = (
        f"{name}: slope {seconds}, by operations {operations}; of memory {memory}, by its formula {formula}"
    )
    table = Table(*HEADERS, title=title)
    for point in sweep["points"]:
        table.add_row(*cells(point))
    return table


def section(told: dict[str, Any]) -> str:
    """The tables of docs/internals/scaling.md: the slopes, then every point."""
    sweeps = told["sweeps"]
    ends = {
        name: ["x".join(map(str, p["size"])) if name == "size" else str(p[name]) for p in sweep["points"]]
        for name, sweep in sweeps.items()
    }
    rows = [[name, ends[name][0], ends[name][-1], *slopes(sweep)] for name, sweep in sweeps.items()]
    return (
        f"Bundle `{told['bundle']}`, {told['steps']} steps, {told['threads']} threads. Slopes:\n\n"
        + markdown(SLOPES, rows)
        + "\n\nThe points, sweep after sweep:\n\n"
        + markdown(HEADERS, [cells(point) for sweep in sweeps.values() for point in sweep["points"]])
    )


def gpu_curves() -> dict[str, Any]:
    """Predicted seconds of the full-size model at 576x1024, 25 steps, by GPU and frames."""
    settings = Settings(size=(576, 1024), segment=72)
    costs = [cost_of(MIMICMOTION, settings, frames).total for frames in GPU_FRAMES]
    seconds = {name: [c / (PEAK_TFLOPS[name] * 1e12 * EFFICIENCY) for c in costs] for name in GPUS}
    return {"frames": list(GPU_FRAMES), "efficiency": EFFICIENCY, "seconds": seconds}


def gpu_table(curves: dict[str, Any]) -> Table:
    """The predictions for people."""
    title = f"predicted seconds, 576x1024, 25 steps, at {curves['efficiency']:.0%} of peak (not measured)"
    table = Table("frames", *curves["seconds"], title=title)
    for index, frames in enumerate(curves["frames"]):
        table.add_row(str(frames), *(f"{values[index]:.0f}" for values in curves["seconds"].values()))
    return table


def draw(path: Path, sweeps: dict[str, Any], curves: dict[str, Any]) -> None:
    """Seconds over what operations predict at the sweep's median throughput, memory below, and the GPUs' curves."""
    wide = len(sweeps) + 1
    with drawn(path, 2, wide, (3.6 * wide, 6.4)) as axes:
        for column, (name, sweep) in enumerate(sweeps.items()):
            points: list[dict[str, Any]] = sweep["points"]
            x, label = [quantity(name, point) for point in points], LABELS.get(name, name)
            rate = sweep["gflops_per_second"] * 1e9
            time_slope, _, memory_slope, _ = slopes(sweep)
            measured = [[p["seconds"] for p in points], [more_mib(p) for p in points]]
            predicted = [
                [p["predicted"]["flops"] / rate for p in points],
                [p["predicted"]["more_mib"] for p in points],
            ]
            titles = f"Time by {label}: slope {time_slope}", f"Memory by {label}: slope {memory_slope}"
            for row, by in enumerate(("by operations", "by its formula")):
                axis = axes[row, column]
                axis.plot(x, measured[row], "o", label="measured, CPU")
                axis.plot(x, predicted[row], "-", label=by)
                axis.set(title=titles[row], xlabel=label)
                _finish(axis, x)
        last = axes[0, -1]
        for name, seconds in curves["seconds"].items():
            last.plot(curves["frames"], seconds, label=name)
        last.set(xlabel="frames", title="Predicted for 576x1024, not measured")
        _finish(last, curves["frames"])
        axes[0, 0].set(ylabel="seconds")
        axes[1, 0].set(ylabel="MiB on top of the engines")
        axes[1, -1].set_axis_off()


def _finish(axis: Any, x: Sequence[float]) -> None:
    """Logarithmic, with a tick at every point."""
    plain_log(axis, "x")
    plain_log(axis, "y")
    axis.set_xticks(x, [f"{value:,g}" for value in x])
    axis.legend()


if __name__ == "__main__":
    typer.run(main)
