"""Build a bundle of engines: `python export/build_engines.py --base DIR --checkpoint FILE --output DIR`."""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from typer import Option

from mimicmotion_trt.engines import Manifest
from mimicmotion_trt.errors import MimicMotionError, SettingsError
from mimicmotion_trt.export.build import build_bundle
from mimicmotion_trt.export.options import Options, PlanOptions, trained_for
from mimicmotion_trt.export.tensorrt_build import left_out
from mimicmotion_trt.settings import parse_setting, parse_size
from mimicmotion_trt.training.config import BUNDLE_FILE

EXAMPLE = ("--image", "person.jpg", "--motion", "dance.mp4", "--output", "out.mp4")

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def build(
    base: Annotated[str, Option(help="SVD-XT in diffusers' layout: a folder, or a hub id.")],
    checkpoint: Annotated[Path, Option(help="MimicMotion checkpoint, .pth or .safetensors.")],
    output: Annotated[Path, Option(help="Folder of the bundle.")],
    backend: Annotated[
        str, Option(help="What runs the engines: onnxruntime, tensorrt, tensorrt-rtx or torch.")
    ] = "onnxruntime",
    size: Annotated[
        list[str] | None,
        Option(
            help="WIDTHxHEIGHT that the model is meant for; repeat. What training says, or MimicMotion's."
        ),
    ] = None,
    segment: Annotated[
        int | None,
        Option(help="Frames in a segment: what training says, or 72, as checkpoint 1.1; 16 for 1.0."),
    ] = None,
    precision: Annotated[
        str | None, Option(help="fp32, fp16 or fp8; the backend's usual one if not given.")
    ] = None,
    keep_fp32: Annotated[
        list[str] | None,
        Option(help="fp16 and fp8: a network that stays in float32, such as vae_decoder; repeat."),
    ] = None,
    margin: Annotated[
        float, Option(help="fp8: room for activations, over the largest seen in calibration.")
    ] = 1.0,
    batch: Annotated[str, Option(help="Rows that the U-Net may run at once, comma-separated.")] = "1,2,4",
    default: Annotated[
        list[str] | None, Option(help="NAME=VALUE: a setting that the model wants (JSON value); repeat.")
    ] = None,
    frames: Annotated[
        str, Option(help="TensorRT: further lengths of segments, comma-separated, for shorter clips.")
    ] = "",
    level: Annotated[int, Option(help="TensorRT: optimisation level, 0 to 5.")] = 3,
    workspace: Annotated[int | None, Option(help="TensorRT: MiB of scratch memory for one kernel.")] = None,
    aux_streams: Annotated[int | None, Option(help="TensorRT: further streams.")] = None,
    capability: Annotated[
        list[str] | None, Option(help="TensorRT-RTX: a GPU to compile for, such as SM89; repeat.")
    ] = None,
    refit: Annotated[bool, Option(help="TensorRT: plans that take other weights later.")] = False,
    refit_from: Annotated[
        Path | None,
        Option(
            help="TensorRT: a bundle built with --refit whose plans take these weights; none is compiled."
        ),
    ] = None,
    weight_streaming: Annotated[
        bool, Option(help="TensorRT: weights may stay in the host's memory.")
    ] = False,
    deep_cache: Annotated[
        bool, Option(help="Also build what the setting reuse_interval needs (DeepCache).")
    ] = False,
    note: Annotated[str, Option(help="A remark for whoever uses the bundle.")] = "",
    as_json: Annotated[bool, Option("--json", help="Print one JSON line at the end, nothing else.")] = False,
) -> None:
    """Export the networks, prove them against PyTorch, and write a bundle.

    A checkpoint from training/train.py has size, segment and default settings beside it, in bundle.json; options
    here go before those. Nothing is done when the output already holds the bundle of the same inputs.
    """
    console = Console(stderr=as_json, quiet=as_json, markup=False)
    began = time.perf_counter()
    try:
        trained = trained_for(checkpoint)
        if size:
            trained["sizes"] = tuple(map(parse_size, size))
        if segment is not None:
            trained["segment"] = segment
        defaults = {**trained.pop("defaults", {}), **dict(map(parse_setting, default or ()))}
        options = Options(
            backend=backend,
            precision=precision,
            keep_fp32=tuple(keep_fp32 or ()),
            margin=margin,
            rows=_numbers(batch, "batch"),
            note=note,
            deep_cache=deep_cache,
            defaults=defaults,
            plan=PlanOptions(
                level=level,
                workspace=workspace,
                aux_streams=aux_streams,
                capabilities=tuple(capability or ()),
                refit=refit,
                weight_streaming=weight_streaming,
                frames=_numbers(frames, "frames") if frames else (),
            ),
            **trained,
        )
        if (written := checkpoint.with_name(BUNDLE_FILE)).exists():
            console.print(
                f"options from {written}, where none is given here: {options.arguments}", soft_wrap=True
            )
        columns = (TextColumn("{task.description:32}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("starting")

            def report(what: str, done: int, total: int) -> None:
                progress.update(task, description=what, completed=done, total=total)

            manifest, built = build_bundle(
                base, checkpoint, output, options, refit_from=refit_from, report=report
            )
    except MimicMotionError as error:
        print("\n".join([f"error: {error}", *_notes(error)]), file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt as error:
        print(f"interrupted; {'; '.join(_notes(error)) or 'nothing was written'}", file=sys.stderr)
        raise SystemExit(130) from None
    seconds = time.perf_counter() - began
    if as_json:
        errors = {name: network.accuracy.rel_l2 for name, network in manifest.networks.items()}
        line = {"output": str(output), "built": built, "build": manifest.build, "seconds": round(seconds, 3)}
        print(json.dumps({**line, "rel_l2": errors}))
    elif not built:
        console.print(f"{output} already holds this bundle ({manifest.build[:12]}); nothing to do.")
    else:
        console.print(_table(manifest))
        for remark in left_out(manifest):
            console.print(remark)
        console.print(f"{output} built in {seconds:.1f} s ({manifest.build[:12]})")
        words = ["mimicmotion-trt", "animate", "--bundle", str(output), *EXAMPLE]
        console.print(f"next: {shlex.join(words)}", soft_wrap=True)


def _notes(error: BaseException) -> list[str]:
    """Which networks are finished and kept."""
    return getattr(error, "__notes__", [])


def _table(manifest: Manifest) -> Table:
    table = Table("network", "MB", "relative L2 error", "largest difference", "bound", "by")
    for name, network in manifest.networks.items():
        size = sum(file.bytes for file in network.files) / 1e6
        a = network.accuracy
        table.add_row(name, f"{size:.1f}", f"{a.rel_l2:.1e}", f"{a.max_abs:.1e}", f"{a.bound:.0e}", a.runner)
    return table


def _numbers(text: str, field: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise SettingsError(
            f"{field} {text!r} is no list of numbers.", remedy="For instance 1,2,4.", field=field
        ) from None


if __name__ == "__main__":
    app()
