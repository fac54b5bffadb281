"""How time and memory grow with frames, size, segment and rows, measured on the CPU and predicted for GPUs.

    python benchmarks/scaling.py [--quick]

Each point runs in a process of its own, so that its peak memory is its own. One quantity varies at a time. The
slope is that of a straight line through log(seconds) against log(quantity), measured and, from operations,
predicted: 1 is linear. Memory is what comes on top of the loaded engines. Prints tables, draws
benchmarks/results/scaling.png and, last, prints one line of JSON.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from inputs import keypoints, picture
from rich.console import Console
from rich.table import Table

from mimicmotion_trt.animator import Animator
from mimicmotion_trt.bundles import load_bundle
from mimicmotion_trt.doctor import EFFICIENCY
from mimicmotion_trt.engines import open_engine
from mimicmotion_trt.gpus import PEAK_TFLOPS
from mimicmotion_trt.pose import draw_poses
from mimicmotion_trt.prediction import MIMICMOTION, Model, cost_of, memory_of
from mimicmotion_trt.settings import Settings

RESULTS = Path(__file__).resolve().parent / "results"
GPUS = ("H100", "A100", "RTX 4090", "L4")
GPU_FRAMES = (16, 71, 142, 284, 568)


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
    bundle: Annotated[str, typer.Option(help="Bundle, by name or folder.")] = "tiny",
    steps: Annotated[int, typer.Option(help="Denoising steps.", min=1)] = 4,
    repeat: Annotated[int, typer.Option(help="Timed runs of each; the fastest counts.", min=1)] = 3,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    quick: Annotated[bool, typer.Option(help="Two points of each, one run, two steps.")] = False,
    output: Annotated[Path, typer.Option(help="The picture of the curves.")] = RESULTS / "scaling.png",
    alone: Annotated[str, typer.Option(help="Measure this point in this process.", hidden=True)] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON line only.")] = False,
) -> None:
    """Measure every sweep, compare it with what operations and the memory's formula predict."""
    steps, repeat = (2, 1) if quick else (steps, repeat)
    if alone:
        values = json.loads(alone)
        point = Point(values["frames"], tuple(values["size"]), values["segment"], values["rows"])
        print(json.dumps(measure(bundle, point, steps, repeat, threads)))
        return
    console = Console(quiet=as_json)
    model = Model.of(load_bundle(bundle).manifest)
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
    print(
        json.dumps({"bundle": bundle, "steps": steps, "threads": threads, "sweeps": sweeps, "gpus": curves})
    )


def run_alone(
    bundle: str, point: Point, steps: int, repeat: int, threads: int, model: Model
) -> dict[str, Any]:
    """One point in a process of its own, with what was predicted of it."""
    command = [sys.executable, __file__, "--bundle", bundle, "--steps", str(steps), "--repeat", str(repeat)]
    command += ["--threads", str(threads), "--alone", json.dumps(asdict(point))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    settings = settings_of(point, steps)
    cost = cost_of(model, settings, point.frames)
    flops = cost.total
    if point.rows:
        width, height = point.size
        cells = width // 8 * (height // 8)
        flops = model.works["unet"].flops(rows=point.rows, frames=point.segment, cells=cells)
    memory = memory_of(model, settings, point.frames, point.rows or min(4, cost.rows))
    predicted = {"flops": flops, "more_mib": (memory.activations + memory.state) / 2**20}
    return {**asdict(point), **json.loads(done.stdout), "predicted": predicted}


def settings_of(point: Point, steps: int) -> Settings:
    """The settings of a point."""
    return Settings(size=point.size, segment=point.segment, overlap=3, steps=steps)


def measure(bundle: str, point: Point, steps: int, repeat: int, threads: int) -> dict[str, float]:
    """The fastest seconds and this process's peak MiB, before the first run and at the end."""
    call, baseline = (
        row_call(bundle, point, threads) if point.rows else clip_call(bundle, point, steps, threads)
    )
    call()
    seconds = []
    for _ in range(repeat):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return {"seconds": min(seconds), "peak_mib": peak_mib(), "loaded_mib": baseline}


def clip_call(bundle: str, point: Point, steps: int, threads: int) -> tuple[Any, float]:
    """A whole animation from pose pictures to frames, and the MiB before it."""
    animator = Animator.load(bundle, threads=threads)
    values = {name: value for name, value in asdict(settings_of(point, steps)).items() if value is not None}
    settings = replace(animator.settings(), **{k: values[k] for k in ("size", "segment", "overlap", "steps")})
    width, height = point.size
    reference = picture(point.size)
    poses = draw_poses(keypoints(point.frames + 1), height, width, settings.canvas or 2160)

    def call() -> None:
        animator.decode(animator.sample(reference, poses, settings))

    return call, peak_mib()


def row_call(bundle: str, point: Point, threads: int) -> tuple[Any, float]:
    """One U-Net call of `rows` rows, and the MiB before it."""
    engine = open_engine(load_bundle(bundle), "unet", threads=threads, alert=True)
    width, height = point.size
    sizes = {"rows": point.rows, "frames": point.segment, "cells_high": height // 8, "cells_wide": width // 8}
    inputs, outputs = (
        {t.name: np.zeros([sizes[d] if isinstance(d, str) else d for d in t.shape], t.dtype) for t in tensors}
        for tensors in (engine.spec.inputs, engine.spec.outputs)
    )
    return engine.bind(inputs, outputs), peak_mib()


def peak_mib() -> float:
    """Peak memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def summary(name: str, points: list[dict[str, Any]]) -> dict[str, Any]:
    """The points of a sweep and their slopes."""
    along = [quantity(name, point) for point in points]
    return {
        "points": points,
        "slope_measured": slope(along, [point["seconds"] for point in points]),
        "slope_predicted": slope(along, [point["predicted"]["flops"] for point in points]),
        "gflops_per_second": float(
            np.median([point["predicted"]["flops"] / point["seconds"] / 1e9 for point in points])
        ),
    }


def quantity(name: str, point: dict[str, Any]) -> float:
    """What varies in a sweep; a size counts by its pixels."""
    return float(point["size"][0] * point["size"][1]) if name == "size" else float(point[name])


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the least-squares line through log y against log x."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def table_of(name: str, sweep: dict[str, Any]) -> Table:
    """A sweep for people."""
    title = f"{name}: slope {sweep['slope_measured']:.2f} measured, {sweep['slope_predicted']:.2f} predicted"
    table = Table(
        "frames", "size", "segment", "rows", "seconds", "GFLOP", "MiB more", "predicted", title=title
    )
    for p in sweep["points"]:
        size, rows = "x".join(map(str, p["size"])), str(p["rows"] or "")
        memory = (f"{p['peak_mib'] - p['loaded_mib']:.0f}", f"{p['predicted']['more_mib']:.0f}")
        work = f"{p['predicted']['flops'] / 1e9:.1f}"
        table.add_row(str(p["frames"]), size, str(p["segment"]), rows, f"{p['seconds']:.3f}", work, *memory)
    return table


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
    """Measured points over what operations predict at the sweep's median throughput, and the GPUs' curves."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(sweeps) + 1, figsize=(4 * (len(sweeps) + 1), 3.6))
    for axis, (name, sweep) in zip(axes, sweeps.items(), strict=False):
        points = sweep["points"]
        x = [quantity(name, point) for point in points]
        rate = sweep["gflops_per_second"] * 1e9
        axis.loglog(x, [point["seconds"] for point in points], "o", label="measured, CPU")
        axis.loglog(x, [p["predicted"]["flops"] / rate for p in points], "-", label="by operations")
        axis.set(xlabel="pixels" if name == "size" else name, title=f"slope {sweep['slope_measured']:.2f}")
    for name, seconds in curves["seconds"].items():
        axes[-1].loglog(curves["frames"], seconds, label=name)
    axes[-1].set(xlabel="frames", title="576x1024, predicted")
    axes[0].set(ylabel="seconds")
    for axis in axes:
        axis.legend(fontsize=7)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    typer.run(main)
