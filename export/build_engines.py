"""Build a bundle of engines: `mimicmotion-trt build`, or `python export/build_engines.py`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.table import Table
from typer import Option

from mimicmotion_trt.console import Bars
from mimicmotion_trt.engines import Manifest
from mimicmotion_trt.errors import MimicMotionError, SettingsError
from mimicmotion_trt.export.build import build_bundle
from mimicmotion_trt.export.options import Options, PlanOptions, trained_for
from mimicmotion_trt.export.tensorrt_build import left_out
from mimicmotion_trt.flags import App
from mimicmotion_trt.settings import parse_setting, parse_size
from mimicmotion_trt.training.config import BUNDLE_FILE

app = App()
IO, TAKES, NUMBERS, RT = "Input/Output", "What the bundle takes", "Precision", "TensorRT"


@app.command()
def build(
    base: Annotated[
        str, Option(metavar="FOLDER", help="SVD-XT in diffusers' layout, or its hub id.", rich_help_panel=IO)
    ],
    checkpoint: Annotated[
        Path, Option(metavar="FILE", help="MimicMotion, .pth or .safetensors.", rich_help_panel=IO)
    ],
    output: Annotated[
        Path, Option("-o", "--output", metavar="FOLDER", help="Folder of the bundle.", rich_help_panel=IO)
    ],
    backend: Annotated[
        str,
        Option(
            metavar="onnxruntime|tensorrt|tensorrt-rtx|torch",
            help="What runs the engines.",
            rich_help_panel=IO,
        ),
    ] = "onnxruntime",
    note: Annotated[
        str, Option(metavar="TEXT", help="A remark for whoever uses the bundle.", rich_help_panel=IO)
    ] = "",
    as_json: Annotated[
        bool, Option("--json", help="Print one line of JSON at the end, nothing else.", rich_help_panel=IO)
    ] = False,
    size: Annotated[
        list[str] | None,
        Option(
            metavar="WIDTHxHEIGHT",
            help="Size of the videos; repeat. [default: the trained one, or 576x1024 and 1024x576]",
            rich_help_panel=TAKES,
        ),
    ] = None,
    segment: Annotated[
        int | None,
        Option(
            metavar="NUMBER",
            help="Frames in a segment: 72 for checkpoint 1.1, 16 for 1.0. [default: the trained one, or 72]",
            rich_help_panel=TAKES,
        ),
    ] = None,
    batch: Annotated[
        str,
        Option(metavar="N,N", help="Rows that the U-Net may run at once.", rich_help_panel=TAKES),
    ] = "1,2,4",
    default: Annotated[
        list[str] | None,
        Option(
            metavar="NAME=VALUE",
            help="A setting that the model wants, in JSON; repeat.",
            rich_help_panel=TAKES,
        ),
    ] = None,
    deep_cache: Annotated[
        bool,
        Option("--deep-cache", help="Also what the setting reuse_interval needs.", rich_help_panel=TAKES),
    ] = False,
    precision: Annotated[
        str | None,
        Option(
            metavar="fp32|fp16|fp8", help="The backend's usual one if not given.", rich_help_panel=NUMBERS
        ),
    ] = None,
    keep_fp32: Annotated[
        list[str] | None,
        Option(
            metavar="NETWORK", help="Stays in float32, such as vae_decoder; repeat.", rich_help_panel=NUMBERS
        ),
    ] = None,
    margin: Annotated[
        float,
        Option(metavar="NUMBER", help="fp8: room over the largest activation seen.", rich_help_panel=NUMBERS),
    ] = 1.0,
    frames: Annotated[
        str, Option(metavar="N,N", help="Further lengths of segments, for shorter clips.", rich_help_panel=RT)
    ] = "",
    level: Annotated[
        int, Option(metavar="NUMBER", help="Optimisation level, 0 to 5.", rich_help_panel=RT)
    ] = 3,
    workspace: Annotated[
        int | None, Option(metavar="MIB", help="Scratch memory for one kernel.", rich_help_panel=RT)
    ] = None,
    aux_streams: Annotated[
        int | None, Option(metavar="NUMBER", help="Further streams.", rich_help_panel=RT)
    ] = None,
    capability: Annotated[
        list[str] | None,
        Option(metavar="SM89", help="TensorRT-RTX: a GPU to compile for; repeat.", rich_help_panel=RT),
    ] = None,
    refit: Annotated[
        bool, Option("--refit", help="Plans whose weights can be replaced later.", rich_help_panel=RT)
    ] = False,
    refit_from: Annotated[
        Path | None,
        Option(
            metavar="FOLDER",
            help="A bundle built with --refit whose plans take these weights.",
            rich_help_panel=RT,
        ),
    ] = None,
    weight_streaming: Annotated[
        bool,
        Option("--weight-streaming", help="Weights may stay in the host's memory.", rich_help_panel=RT),
    ] = False,
) -> None:
    """Make a bundle of engines from a checkpoint.

    Every network is compared with its PyTorch original before the bundle is written. A checkpoint that training has
    written has size, segment and settings beside it, in bundle.json; options here go before those. Nothing is done
    when the output already holds the bundle of the same inputs.

        mimicmotion-trt build --base SVD_XT --checkpoint MimicMotion_1-1.pth -o mm11
        mimicmotion-trt build --base SVD_XT --checkpoint MimicMotion_1-1.pth -o mm11 --backend tensorrt
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
        with Bars(quiet=as_json) as bars:

            def report(what: str, done: int, total: int) -> None:
                bars.show("build", done, total, what)

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
        console.print(f"Next: mimicmotion-trt inspect {output}", soft_wrap=True)
        console.print(f"      mimicmotion-trt serve --bundle {output}", soft_wrap=True)


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
