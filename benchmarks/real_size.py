"""Exports and compiles all five networks at MimicMotion's real size, with random weights; needs no GPU.

    python benchmarks/real_size.py [--size 1024x576] [--segment 16] [--batch 2] [--capability SM89] [--work DIR]

Weights are drawn in float16 for the real configs and saved as a base folder and a checkpoint (4.7 GB), from
which the product's own command builds a bundle. Prints time, size and error of each network, and the peak
memory; last, one line of JSON. `--backend onnxruntime --precision fp16` stops after the graphs.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from common import AsJson, peak_mib
from rich.console import Console
from rich.table import Table
from torch_model import REAL, save_model

from mimicmotion_trt.export.build import build_bundle
from mimicmotion_trt.export.options import Options, PlanOptions
from mimicmotion_trt.settings import parse_size


def main(
    backend: Annotated[str, typer.Option(help="tensorrt-rtx, tensorrt, or onnxruntime.")] = "tensorrt-rtx",
    precision: Annotated[str, typer.Option(help="Precision of the engines.")] = "fp16",
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT.")] = "1024x576",
    segment: Annotated[int, typer.Option(help="Frames in a segment.")] = 16,
    batch: Annotated[int, typer.Option(help="Rows of the U-Net at once.")] = 2,
    capability: Annotated[str, typer.Option(help="GPU to compile for (TensorRT-RTX).")] = "SM89",
    work: Annotated[
        Path | None, typer.Option(help="Folder for 10 GB of files; a temporary one if not given.")
    ] = None,
    configs: Annotated[Path, typer.Option(help="Configs of the networks, in SVD's layout.")] = REAL,
    as_json: AsJson = False,
) -> None:
    """Build the bundle in a process of its own and report."""
    folder = Path(tempfile.mkdtemp(prefix="real-size-")) if work is None else work
    console = Console(quiet=as_json, stderr=True, markup=False)
    try:
        base, checkpoint = folder / "svd", folder / "mimicmotion.safetensors"
        if not checkpoint.exists():
            console.print(f"drawing random weights into {folder}")
            subprocess.run([sys.executable, __file__, "draw", str(folder), str(configs)], check=True)
        plan = PlanOptions(capabilities=(capability,)) if backend == "tensorrt-rtx" else PlanOptions()
        options = Options(
            backend=backend, precision=precision, sizes=(parse_size(size),), segment=segment, rows=(batch,),
            plan=plan,
        )  # fmt: skip
        result = build(base, checkpoint, folder / "bundle", options, console)
    finally:
        if work is None:
            shutil.rmtree(folder, ignore_errors=True)
    console.print(table(result))
    console.print(f"{result['seconds']:.0f} s, peak memory {result['peak_gib']:.1f} GiB")
    print(json.dumps(result))


def build(base: Path, checkpoint: Path, output: Path, options: Options, console: Console) -> dict[str, Any]:
    """Time and memory of each stage, as the build reports them."""
    began = last = time.perf_counter()
    stages: dict[str, dict[str, float]] = {}
    doing = ""

    def report(what: str, done: int, total: int) -> None:
        nonlocal last, doing
        what = what.partition(",")[0]
        now = time.perf_counter()
        if doing and what != doing:
            stages[doing] = {"seconds": round(now - last, 1), "peak_gib": round(peak_mib() / 1024, 2)}
            console.print(f"{doing}: {now - last:.0f} s, peak so far {peak_mib() / 1024:.1f} GiB")
        if what != doing:
            last, doing = now, what

    manifest, _ = build_bundle(base, checkpoint, output, options, report=report)
    return {
        "backend": options.backend,
        "versions": dict(manifest.versions),
        "sizes": manifest.sizes,
        "segment": options.segment,
        "rows": manifest.rows,
        "seconds": round(time.perf_counter() - began, 1),
        "peak_gib": round(peak_mib() / 1024, 2),
        "stages": stages,
        "networks": {
            name: {"megabytes": round(sum(f.bytes for f in n.files) / 1e6, 1), "rel_l2": n.accuracy.rel_l2}
            for name, n in manifest.networks.items()
        },
    }


def table(result: dict[str, Any]) -> Table:
    """A row for each network."""
    made = Table("network", "export s", "compare s", "compile s", "MB", "relative L2 error")
    seconds = {name: stage["seconds"] for name, stage in result["stages"].items()}
    for name, network in result["networks"].items():
        times = [  # two comparisons, of the module in float16 and of its graph
            [value for stage, value in seconds.items() if stage.split()[:2] == [doing, name]]
            for doing in ("exporting", "comparing", "compiling")
        ]
        cells = [f"{sum(values):.0f}" if values else "-" for values in times]
        made.add_row(name, *cells, f"{network['megabytes']:.0f}", f"{network['rel_l2']:.1e}")
    return made


if __name__ == "__main__":
    if sys.argv[1:2] == ["draw"]:
        save_model(*map(Path, sys.argv[2:]))
    else:
        typer.run(main)
