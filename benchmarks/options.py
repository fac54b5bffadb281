"""What each approximation gives and costs: seconds, and PSNR and SSIM against the exact run and against the truth.

    python benchmarks/options.py --setting steps=10 --setting guidance=[1.2,1.2] \
        --deep-cache training/models/tiny --save                     the table of docs/reference/options.md
    python benchmarks/options.py --quick                             a minute, to see that it works

Clips are synthetic people in motions that no training has seen, as in training/evaluate.py. All variants run on
a clip one after the other, in one process; a speed-up is the exact run's seconds over the variant's on the same
clip, the median over the clips. An option that the exact run leaves no room for is not tried: with a guidance of 1
there is no interval of guided steps, and without `--deep-cache` a bundle may have no networks that reuse features.
Prints a table and, last, one line of JSON.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from common import RESULTS, ROOT, AsJson, BundleName, markdown, with_table
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from mimicmotion_trt.animator import Animator
from mimicmotion_trt.bundles import load_bundle
from mimicmotion_trt.export.build import build_bundle
from mimicmotion_trt.export.options import Options
from mimicmotion_trt.files import write_atomic
from mimicmotion_trt.settings import Settings, parse_setting
from mimicmotion_trt.training.evaluate import STRIDE, unseen
from mimicmotion_trt.training.metrics import Pictures, psnr, ssim
from mimicmotion_trt.training.synthetic import make_clip

DOCS = ROOT / "docs" / "reference" / "options.md"
EXACT = "exact"

Variants = dict[str, dict[str, Any]]
"""Name of each variant -> settings over those of the exact run."""
Line = dict[str, Any]
"""A variant over all clips: means, and medians of ratios of seconds; see `summary`."""


@dataclass(frozen=True)
class Outcome:
    """One animation of one clip."""

    seconds: float
    denoise: float
    """Seconds of the denoising alone."""
    exact: tuple[float, float]
    """PSNR in dB and SSIM against the exact run's video; of the exact run itself 99 and 1."""
    truth: tuple[float, float]
    """PSNR in dB and SSIM against the truth."""


def main(
    bundle: BundleName = "tiny",
    clips: Annotated[int, typer.Option(help="Unseen clips.", min=1, max=STRIDE)] = 8,
    frames: Annotated[int, typer.Option(help="Frames of each.", min=2)] = 24,
    setting: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE (JSON) of the exact run; repeat.")
    ] = None,
    few: Annotated[
        int | None, typer.Option(help="Steps where few are tried; half of the exact run's.", min=1)
    ] = None,
    deep_cache: Annotated[
        Path | None,
        typer.Option(help="The bundle's base/ and mimicmotion.safetensors: build what reuse_interval needs."),
    ] = None,
    interval: Annotated[tuple[float, float], typer.Option(help="Sigmas that are guided.")] = (0.3, 20.0),
    seed: Annotated[int, typer.Option(min=0, max=88, help="Which people and motions.")] = 0,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    quick: Annotated[bool, typer.Option(help="One clip of 12 frames in 4 steps.")] = False,
    save: Annotated[
        bool, typer.Option(help="Write benchmarks/results/options.json and docs/reference/options.md.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run the exact settings and every option, alone and together, on the same clips."""
    chosen: dict[str, Any] = {"rescale": False} | dict(map(parse_setting, setting or ()))
    if quick:
        clips, frames, chosen = 1, 12, chosen | {"steps": 4}
    with opened(bundle, deep_cache, threads) as animator:
        exact = animator.settings(**{"size": animator.manifest.sizes[0], **chosen})
        few = few or max(exact.steps // 2, 1)
        variants = make_variants(exact, few, interval, animator.manifest.reuses)
        seeds = [unseen(seed, index) for index in range(clips)]
        told: dict[str, Any] = {
            "bundle": bundle, "build": animator.manifest.build, "clips": 0, "frames": frames, "seed": seed,
            "settings": exact.to_dict(), "variants": variants, "options": [],
        }  # fmt: skip
        lines: list[Line] = []
        animations = measure(animator, exact, variants, seeds, frames)
        for runs in track(
            animations, "clips", len(seeds), console=Console(quiet=as_json, stderr=True, markup=False)
        ):
            lines = [summary(name, runs[name], runs[EXACT]) for name in runs]
            told |= {"clips": len(runs[EXACT]), "options": lines}
            if save:  # after each clip: an end before the last one loses nothing
                write_atomic(RESULTS / "options.json", json.dumps(told, indent=1) + "\n")
                write_atomic(DOCS, with_table(DOCS.read_text(), "options", section(lines, told)))
    Console(quiet=as_json, markup=False).print(table_of(lines, f"{bundle}: {clips} clips of {frames} frames"))
    print(json.dumps(told))


@contextmanager
def opened(bundle: str, model: Path | None, threads: int | None) -> Iterator[Animator]:
    """The bundle; with the folder that it was built from, one of the same options that can reuse features."""
    with tempfile.TemporaryDirectory() as folder:
        found = bundle if model is None else str(build_deep(bundle, model, Path(folder) / "bundle"))
        with Animator.load(found, threads=threads) as animator:
            yield animator


def build_deep(bundle: str, model: Path, output: Path) -> Path:
    """A bundle as `bundle`, and in it the networks that `reuse_interval` needs."""
    like = load_bundle(bundle).manifest
    options = Options(
        backend=like.backend, precision=like.precision, sizes=like.sizes, segment=like.defaults["segment"],
        rows=like.rows, defaults=like.defaults, deep_cache=True,
    )  # fmt: skip
    build_bundle(model / "base", model / "mimicmotion.safetensors", output, options)
    return output


def make_variants(exact: Settings, few: int, interval: tuple[float, float], reuses: bool) -> Variants:
    """The options that these settings and the bundle allow, alone; then those that go together."""
    low, high = interval
    limited: dict[str, Any] = {} if exact.guidance == (1.0, 1.0) else {"guidance_interval": interval}
    aligned = {"schedule": "align-your-steps", "steps": few}
    together = {**limited, **aligned}
    alone: Variants = {
        EXACT: {},
        f"{few} steps, karras": {"steps": few},
        f"{few} steps, align-your-steps": aligned,
        "layout compact": {"layout": "compact"},
        "layout shifted": {"layout": "shifted"},
    }
    if limited:
        alone[f"guidance in ({low:g}, {high:g}]"] = limited
    if reuses:
        alone |= {f"reuse_interval {k}": {"reuse_interval": k} for k in (2, 3)}
        alone["all, compact, reuse 2"] = together | {"layout": "compact", "reuse_interval": 2}
    return alone | {"all, shifted": together | {"layout": "shifted"}}


def measure(
    animator: Animator, exact: Settings, variants: Variants, seeds: Sequence[int], frames: int
) -> Iterator[dict[str, list[Outcome]]]:
    """Every variant on every clip, one after the other; yields after each clip what was measured so far.

    On the first clip each variant has run once before, in two steps, which take all memory.
    """
    runs: dict[str, list[Outcome]] = {name: [] for name in variants}
    settings = {name: replace(exact, **more) for name, more in variants.items()}
    assert exact.size is not None
    width, height = exact.size
    for index, seed in enumerate(seeds):
        clip = make_clip(seed, frames, height, width)
        for some in settings.values() if index == 0 else ():
            animate(animator, clip, replace(some, steps=2))
        first: Pictures | None = None
        for name, some in settings.items():
            video, seconds, denoise = animate(animator, clip, some)
            first = video if first is None else first
            against = tuple((psnr(video, other), ssim(video, other)) for other in (first, clip.frames))
            runs[name].append(Outcome(seconds, denoise, *against))
        yield runs


def animate(animator: Animator, clip: Any, settings: Settings) -> tuple[Pictures, float, float]:
    """The video uint8 [F,H,W,3], seconds in all, and seconds of the denoising."""
    began = time.perf_counter()
    job = animator.animate(clip.reference, clip.observed, settings, reference_pose=clip.reference_pose)
    ends = {event.stage: event.seconds for event in job}
    seconds = time.perf_counter() - began
    return job.result().frames(), seconds, ends["denoise"] - ends["encode"]


def summary(option: str, runs: Sequence[Outcome], exact: Sequence[Outcome]) -> Line:
    """One line of the table."""
    pairs = list(zip(exact, runs, strict=True))
    psnr_exact, ssim_exact = np.mean([run.exact for run in runs], axis=0).tolist()
    psnr_truth, ssim_truth = np.mean([run.truth for run in runs], axis=0).tolist()
    return {
        "option": option,
        "speed_up": statistics.median(a.seconds / b.seconds for a, b in pairs),
        "denoise_speed_up": statistics.median(a.denoise / b.denoise for a, b in pairs),
        "psnr_exact": psnr_exact,
        "ssim_exact": ssim_exact,
        "psnr_truth": psnr_truth,
        "ssim_truth": ssim_truth,
    }


HEADERS = ("option", "faster", "denoising", "dB, exact", "SSIM", "dB, truth", "SSIM")
FORMATS = ("", ".2f", ".2f", ".1f", ".3f", ".2f", ".4f")


def cells(line: Line) -> list[str]:
    """The line as the table's text."""
    return [format(value, how) for value, how in zip(line.values(), FORMATS, strict=True)]


def table_of(lines: Sequence[Line], title: str) -> Table:
    """For people."""
    table = Table(Column(HEADERS[0], no_wrap=True), *HEADERS[1:], title=title)
    for line in lines:
        table.add_row(*cells(line))
    return table


def section(lines: Sequence[Line], told: Mapping[str, Any]) -> str:
    """The table of docs/reference/options.md, and what it was measured on."""
    settings = told["settings"]
    return (
        f"Bundle `{told['bundle']}` (build {told['build'][:12]}): {told['clips']} clips of {told['frames']} frames "
        f"of unseen people, exact in {settings['steps']} steps, guidance {settings['guidance'][0]:g} to "
        f"{settings['guidance'][1]:g}, segment {settings['segment']}, overlap {settings['overlap']}.\n\n"
        + markdown(HEADERS, [cells(line) for line in lines])
    )


if __name__ == "__main__":
    typer.run(main)
