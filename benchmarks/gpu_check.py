"""Proves and times the GPU step on any CUDA machine, in stages that can be resumed.

    python benchmarks/gpu_check.py [--stage NAME]… [--resume] [--bundle DIR] [--real-size]

Every stage takes a few minutes at most and is written to `benchmarks/results/` as soon as it is done: a JSON
file named by GPU and date, and beside it a plot. On a machine without a GPU the stages that need none run on
small shapes, and the rest is listed as owed. Ends with one line of JSON.
"""

from __future__ import annotations

import datetime
import json
import platform
import re
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer
from gpu_stages import STAGES, Machine, Stage
from rich.console import Console
from rich.table import Table

from mimicmotion_trt.errors import MimicMotionError

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "torch",
    "tensorrt-cu13",
    "tensorrt-rtx-cu13",
    "cuda-core",
    "nvidia-cuda-nvrtc",
    "onnxruntime",
    "numpy",
)


def main(
    stage: Annotated[
        list[str] | None, typer.Option(help=f"Of {', '.join(STAGES)}; all if not given.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Leave out what today's file holds already.")] = False,
    bundle: Annotated[
        str, typer.Option(help="Bundle for same-bytes, by name or folder; the golden networks if empty.")
    ] = "",
    device: Annotated[int, typer.Option(help="Number of the GPU.")] = 0,
    results: Annotated[Path, typer.Option(help="Folder of the results.")] = RESULTS,
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON line only.")] = False,
) -> None:
    """Run the stages in order; one that fails is told with its reason and the next one runs."""
    console = Console(quiet=as_json)
    machine = Machine.look(device, bundle)
    unknown = sorted(set(stage or ()) - set(STAGES))
    if unknown:
        raise typer.BadParameter(f"{unknown[0]} is none of {', '.join(STAGES)}")
    path = results / f"gpu-check-{slug(machine.name)}-{datetime.date.today().isoformat()}.json"
    report = json.loads(path.read_text()) if resume and path.exists() else {"stages": {}}
    report |= {"machine": machine.name, "versions": versions(), "python": platform.python_version()}
    for name in stage or STAGES:
        if report["stages"].get(name, {}).get("state") == "done" and resume:
            continue
        report["stages"][name] = run(name, STAGES[name], machine, console)
        write(path, report)
    console.print(table(report))
    owed = [name for name, found in report["stages"].items() if found["state"] == "owed"]
    if owed:
        console.print(f"owed, since this machine has no GPU: {', '.join(owed)}")
    if any("figures" in found for found in report["stages"].values()):
        plot(report, path.with_suffix(".png"))
    console.print(f"written to {path}")
    print(json.dumps({"file": str(path), **report}))


def run(name: str, stage: Stage, machine: Machine, console: Console) -> dict[str, Any]:
    """One stage's outcome: its figures, or why there are none."""
    if stage.needs_gpu and machine.gpu is None:
        return {"state": "owed", "why": machine.why}
    console.print(f"[bold]{name}[/bold]: {stage.says}")
    began = time.perf_counter()
    try:
        figures = stage.run(machine)
    except MimicMotionError as error:
        return {"state": "failed", "why": str(error)}
    except Exception as error:  # a stage that breaks must not cost the others their figures
        return {"state": "failed", "why": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
    return {"state": "done", "seconds": round(time.perf_counter() - began, 1), "figures": figures}


def write(path: Path, report: dict[str, Any]) -> None:
    """Write beside, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}")
    beside.write_text(json.dumps(report, indent=1) + "\n")
    beside.replace(path)


def table(report: dict[str, Any]) -> Table:
    """Every figure of every stage."""
    made = Table("stage", "figure", "value")
    for name, found in report["stages"].items():
        if found["state"] != "done":
            made.add_row(name, found["state"], found["why"])
        for figure, value in found.get("figures", {}).items():
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
            made.add_row(name, figure, shown)
    return made


def plot(report: dict[str, Any], path: Path) -> None:
    """Seconds of each way to run the real size, and TFLOP/s beside the ceiling, where these were measured."""
    import matplotlib.pyplot as plt

    seconds = {
        figure.removesuffix("_s"): value
        for name, found in report["stages"].items()
        if name.startswith("loop")
        for figure, value in found.get("figures", {}).items()
        if figure.endswith("_s")
    }
    if not seconds:
        return
    figure, axes = plt.subplots(figsize=(8, 0.6 * len(seconds) + 1.5))
    axes.barh(list(seconds), list(seconds.values()))
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.set_title(report["machine"])
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def versions() -> dict[str, str]:
    """What is installed of what matters."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def slug(name: str) -> str:
    """`nvidia-h100-80gb-hbm3`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    typer.run(main)
