"""What each approximation gives and costs: seconds, and PSNR and SSIM against the exact run and against the truth.

    python benchmarks/options.py --bundle tiny --clips 8 --save      the table of docs/options.md
    python benchmarks/options.py --quick                             seconds, to see that it works

Clips are synthetic people in motions that no training has seen, as in training/evaluate.py. All variants run on
a clip one after the other, in one process; a speed-up is the exact run's seconds over the variant's on the same
clip, the median over the clips. Prints a table and, last, one line of JSON.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Column, Table

from mimicmotion_trt.animator import Animator
from mimicmotion_trt.engines import DEEP_CACHE
from mimicmotion_trt.settings import Settings
from mimicmotion_trt.training.evaluate import STRIDE
from mimicmotion_trt.training.metrics import psnr, ssim
from mimicmotion_trt.training.synthetic import TEST_SEEDS, make_clip

ROOT = Path(__file__).resolve().parent.parent
RESULTS, DOCS = ROOT / "benchmarks" / "results", ROOT / "docs" / "options.md"
BEGIN, END = "<!-- options: begin -->", "<!-- options: end -->"
EXACT = "exact"

Video = NDArray[np.uint8]
Variants = dict[str, dict[str, Any]]
"""Name of each variant -> settings over those of the exact run."""


@dataclass(frozen=True)
class Run:
    """One animation of one clip."""

    seconds: float
    denoise: float
    """Seconds of the denoising alone."""
    exact: tuple[float, float]
    """PSNR in dB and SSIM against the exact run's video; of the exact run itself 99 and 1."""
    truth: tuple[float, float]
    """PSNR in dB and SSIM against the truth."""


@dataclass(frozen=True)
class Line:
    """A variant over all clips: means, and medians of ratios of seconds."""

    option: str
    speed_up: float
    denoise_speed_up: float
    psnr_exact: float
    ssim_exact: float
    psnr_truth: float
    ssim_truth: float


def main(
    bundle: Annotated[str, typer.Option(help="Bundle, by name or folder.")] = "tiny",
    clips: Annotated[int, typer.Option(help="Unseen clips.", min=1, max=STRIDE)] = 8,
    frames: Annotated[
        int | None, typer.Option(help="Frames of each; three segments' if not given.", min=2)
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps of the exact run; the bundle's own if not given.")
    ] = None,
    few: Annotated[int, typer.Option(help="Steps where few are tried.", min=1)] = 10,
    interval: Annotated[tuple[float, float], typer.Option(help="Sigmas that are guided.")] = (0.3, 20.0),
    seed: Annotated[int, typer.Option(min=0, max=88, help="Which people and motions.")] = 0,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    quick: Annotated[bool, typer.Option(help="One clip of two segments in 4 steps, few are 2.")] = False,
    save: Annotated[
        bool, typer.Option(help="Write benchmarks/results/options.json and docs/options.md.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON line only.")] = False,
) -> None:
    """Run the exact settings and every option, alone and together, on the same clips."""
    if quick:
        clips, steps, few = 1, 4, 2
    with Animator.load(bundle, threads=threads) as animator:
        chosen = {"size": animator.manifest.sizes[0], "rescale": False} | ({"steps": steps} if steps else {})
        exact = animator.settings(**chosen)
        assert exact.segment is not None
        frames = frames or exact.segment * (2 if quick else 3)
        variants = make_variants(exact, few, interval, set(DEEP_CACHE) <= set(animator.manifest.networks))
        runs = measure(animator, chosen, variants, [seed * STRIDE + index for index in range(clips)], frames)
    lines = [summary(name, runs[name], runs[EXACT]) for name in runs]
    Console(quiet=as_json).print(table_of(lines, f"{bundle}: {clips} clips of {frames} frames"))
    told = {
        "bundle": bundle, "build": animator.manifest.build, "clips": clips, "frames": frames, "seed": seed,
        "settings": exact.to_dict(), "variants": variants, "options": [asdict(line) for line in lines],
    }  # fmt: skip
    if save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "options.json").write_text(json.dumps(told, indent=1) + "\n")
        DOCS.write_text(with_table(DOCS.read_text(), markdown(lines, told)))
    print(json.dumps(told))


def make_variants(exact: Settings, few: int, interval: tuple[float, float], deep: bool) -> Variants:
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
    if deep:
        alone |= {f"reuse_interval {k}": {"reuse_interval": k} for k in (2, 3)}
        alone["all, compact, reuse 2"] = together | {"layout": "compact", "reuse_interval": 2}
    return alone | {"all, shifted": together | {"layout": "shifted"}}


def measure(
    animator: Animator, chosen: Mapping[str, Any], variants: Variants, seeds: Sequence[int], frames: int
) -> dict[str, list[Run]]:
    """Every variant on every clip, one after the other; on the first clip each has run once before."""
    runs: dict[str, list[Run]] = {name: [] for name in variants}
    settings = {name: animator.settings(**{**chosen, **more}) for name, more in variants.items()}
    width, height = chosen["size"]
    for index, seed in enumerate(seeds):
        clip = make_clip(TEST_SEEDS[seed], frames, height, width)
        for some in settings.values() if index == 0 else ():
            animate(animator, clip, some)
        exact: Video | None = None
        for name, some in settings.items():
            video, seconds, denoise = animate(animator, clip, some)
            exact = video if exact is None else exact
            against = tuple((psnr(video, other), ssim(video, other)) for other in (exact, clip.frames))
            runs[name].append(Run(seconds, denoise, *against))
    return runs


def animate(animator: Animator, clip: Any, settings: Settings) -> tuple[Video, float, float]:
    """The video uint8 [F,H,W,3], seconds in all, and seconds of the denoising."""
    began = time.perf_counter()
    job = animator.animate(clip.reference, clip.observed, settings, reference_pose=clip.reference_pose)
    ends = {event.stage: event.seconds for event in job}
    seconds = time.perf_counter() - began
    return job.result().frames(), seconds, ends["denoise"] - ends["encode"]


def summary(option: str, runs: Sequence[Run], exact: Sequence[Run]) -> Line:
    """One line of the table."""
    psnr_exact, ssim_exact = np.mean([run.exact for run in runs], axis=0).tolist()
    psnr_truth, ssim_truth = np.mean([run.truth for run in runs], axis=0).tolist()
    return Line(
        option,
        statistics.median(a.seconds / b.seconds for a, b in zip(exact, runs, strict=True)),
        statistics.median(a.denoise / b.denoise for a, b in zip(exact, runs, strict=True)),
        psnr_exact,
        ssim_exact,
        psnr_truth,
        ssim_truth,
    )


HEADERS = ("option", "faster", "denoising", "dB, exact", "SSIM", "dB, truth", "SSIM")


def cells(line: Line) -> list[str]:
    """The line as the table's text."""
    return [
        line.option, f"{line.speed_up:.2f}", f"{line.denoise_speed_up:.2f}", f"{line.psnr_exact:.1f}",
        f"{line.ssim_exact:.3f}", f"{line.psnr_truth:.2f}", f"{line.ssim_truth:.4f}",
    ]  # fmt: skip


def table_of(lines: Sequence[Line], title: str) -> Table:
    """For people."""
    table = Table(Column(HEADERS[0], no_wrap=True), *HEADERS[1:], title=title)
    for line in lines:
        table.add_row(*cells(line))
    return table


def markdown(lines: Sequence[Line], told: Mapping[str, Any]) -> str:
    """The table of docs/options.md, and what it was measured on."""
    settings = told["settings"]
    rows = [HEADERS, ["---"] * len(HEADERS), *map(cells, lines)]
    return (
        f"Bundle `{told['bundle']}` (build {told['build'][:12]}): {told['clips']} clips of {told['frames']} frames "
        f"of unseen people, exact in {settings['steps']} steps, guidance {settings['guidance'][0]:g} to "
        f"{settings['guidance'][1]:g}, segment {settings['segment']}, overlap {settings['overlap']}.\n\n"
        + "\n".join(f"| {' | '.join(row)} |" for row in rows)
    )


def with_table(text: str, table: str) -> str:
    """The page with its table replaced; ValueError if the marks are missing."""
    before, _, rest = text.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"{DOCS.name} lacks {BEGIN} … {END}")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


if __name__ == "__main__":
    typer.run(main)
