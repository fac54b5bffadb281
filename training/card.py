"""`python training/card.py --bundle tiny --runs runs/tiny --output docs`: the card of a model trained here.

Evaluates the bundle on people that no training has seen, and writes OUTPUT/models/NAME.md with the curves of
the runs and a contact sheet in OUTPUT/images. With --history what it tells of runs is kept in that file, and
tells of those that are gone. Every number in it is measured now or read from what the runs
wrote; what the model cannot do is said in `LIMITS`.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from mimicmotion_trt import Animator
from mimicmotion_trt.bundles import load_bundle
from mimicmotion_trt.console import explained
from mimicmotion_trt.engines import Manifest
from mimicmotion_trt.errors import OutputError, SettingsError
from mimicmotion_trt.files import write_text
from mimicmotion_trt.training.curves import Curve, RunSummary, draw_curves, read_curve, summarize
from mimicmotion_trt.training.evaluate import MOST_SEED, Scored, score_clips, write_sheet
from mimicmotion_trt.training.metrics import means
from mimicmotion_trt.training.run_folder import snapshot_config

RUNS = {
    "vae": "tiny-vae", "colours": "tiny-colours", "motion": "tiny", "longer": "tiny-longer", "last": "tiny-last",
    "decoder": "tiny-decoder", "together": "tiny-together", "structure": "tiny-structure",
    "finish": "tiny-finish",
}  # fmt: skip
"""The folders of the runs in the order of training -> their configs."""
CHECKPOINT_RUNS = ("motion", "longer", "last", "together", "structure", "finish")
"""Those that write U-Net and PoseNet."""
BASE_RUNS = ("vae", "colours", "decoder", "together", "structure", "finish")
"""Those that write a base folder."""
PROCESSES = {"structure": 2, "finish": 2}
"""Those that ran in several processes, each with a batch of its own."""

SHOWN = 4
"""Clips on the contact sheet."""

LIMITS = """\
- It has only ever seen drawn people of this repository's generator (`training/synthetic`): photographs of people
  are nothing that it knows, and come out as something drawn or as mush.
- It is small, and its training was short: people are blurred, faces have no features, stripes and prints on clothes
  are lost, and hands are where they should be but have no shape. Who fills the picture comes out worst.
- What the reference picture hides (a turned back, something in front) it can only guess.
- One person at a time; the camera stands nearly still.
- It shows that training, export and serving fit together, and is quick to try things on. It says nothing of how
  well the real-size model animates people."""

MEASURES = {
    "psnr": "PSNR of the video, dB",
    "psnr_repeat_reference": "the same of the reference picture shown all the time, dB",
    "psnr_vae": "the same of the truth after the VAE alone, about what sampling can reach, dB",
    "ssim": "SSIM of the video",
    "ssim_repeat_reference": "the same of the reference picture shown all the time",
    "ssim_vae": "the same of the truth after the VAE alone",
    "hand_psnr": "PSNR in the boxes of the hands, dB",
    "border_jump": "jump where segments meet beyond that elsewhere, levels of 255",
}


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What the card tells of one run of the model's training; kept in `history.json`, since runs are large."""

    name: str
    profile: RunSummary
    config: Mapping[str, Any]
    """As the run's newest snapshot has it."""
    curve: Curve | None
    picture: str | None = None
    """File name of the picture of its curve, where only that is left."""


def read_runs(folder: Path, history: Path | None = None) -> list[RunRecord]:
    """The runs below a folder, and those of `history` whose folders are gone, in the order of training.

    Raises `SettingsError` if there are none, or the history cannot be read.
    """
    records = {one.name: one for one in (read_history(history) if history and history.exists() else [])}
    for run in (folder / name for name in RUNS):
        if (run / "metrics.jsonl").is_file():
            records[run.name] = RunRecord(run.name, summarize(run), snapshot_config(run), read_curve(run))
    if not records:
        raise SettingsError(
            f"{folder} holds none of the runs {', '.join(RUNS)}.", remedy="Train first.", field="runs"
        )
    return [records[name] for name in RUNS if name in records]


def read_history(path: Path) -> list[RunRecord]:
    """The records that `write_history` kept."""
    try:
        return [
            RunRecord(
                one["name"],
                RunSummary(**one["profile"]),
                one["config"],
                Curve(**one["curve"]) if one["curve"] else None,
                one["picture"],
            )
            for one in json.loads(path.read_text())
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}", field="history") from None


def write_history(path: Path, records: Sequence[RunRecord]) -> None:
    """Keep the records, a line each; raises `OutputError`."""
    lines = ",\n".join(json.dumps(asdict(one)) for one in records)
    write_text(path, f"[\n{lines}\n]\n")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def runs_table(runs: Sequence[RunRecord]) -> str:
    """What each run did."""
    rows = []
    for run in runs:
        config, summary = run.config, run.profile
        batch = str(config.get("batch", "?"))
        if run.name in PROCESSES:
            batch += f" × {PROCESSES[run.name]}"
        data = config.get("data", {})
        last = ", ".join(f"{name} {value:.3g}" for name, value in summary.validation.items())
        rows.append(
            [
                run.name, f"{summary.steps:,}", batch, f"{data.get('clips', '?'):,}",
                str(config.get("seed", "?")), f"{summary.step_seconds:.2f}",
                "–" if summary.waiting is None else f"{summary.waiting:.1%}", f"{summary.hours:.2f}",
                f"{summary.loss_begin:.3g} → {summary.loss_end:.3g}", last or "–",
            ]
        )  # fmt: skip
    head = [
        "stage", "steps", "batch", "clips", "seed", "s/step", "waiting", "hours", "loss", "last validation"
    ]  # fmt: skip
    return table(head, rows)


def measures_table(scores: Mapping[str, float | None]) -> str:
    """The evaluation's means."""
    rows = []
    for name, meaning in MEASURES.items():
        value = scores[name]
        rows.append([f"`{name}`", "–" if value is None else f"{value:.3f}", meaning])
    return table(["measure", "mean", "what"], rows)


def machine() -> str:
    """This machine in words."""
    import torch

    names = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    name = next((line.split(":", 1)[1].strip() for line in names.split("\n") if "model name" in line), "CPU")
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    return f"{os.cpu_count()} cores ({name}), {platform.system()}, PyTorch {torch.__version__}"


def card(
    name: str,
    manifest: Manifest,
    animator: Animator,
    runs: Sequence[RunRecord],
    scored: Sequence[Scored],
    frames: int,
    seed: int,
) -> str:
    """The text of the card."""
    settings = animator.settings()
    megabytes = sum(file.bytes for network in manifest.networks.values() for file in network.files) / 1e6
    sizes = ", ".join(f"{width}×{height}" for width, height in manifest.sizes)
    hours = sum(run.profile.hours for run in runs)
    commands = "\n".join(train_command(run.name) for run in runs)
    bases = [run.name for run in runs if run.name in BASE_RUNS]
    base = f"runs/tiny/{bases[-1]}/final/base" if bases else f"training/models/{name}/base"
    trained = [run.name for run in runs if run.name in CHECKPOINT_RUNS]
    folder = f"runs/tiny/{trained[-1]}/final" if trained else f"training/models/{name}"
    checkpoint = f"{folder}/mimicmotion.safetensors"
    configs = [run.config for run in runs if run.name in CHECKPOINT_RUNS]
    data = configs[-1].get("data", {}) if configs else {}
    kept = dict.fromkeys(run.picture for run in runs if run.picture)
    files = [*kept, f"{name}-curves.png"] if any(run.curve for run in runs) else list(kept)
    pictures = "\n".join(f"![loss and validation by step](../images/{file})" for file in files)
    people = f"{data['characters']:,} synthetic people" if data else "Synthetic people"
    return f"""# {name}

A small MimicMotion, trained from nothing by this repository: a reference picture and a motion in, a video out.
It has the structure of the real model (8x VAE, four levels, PoseNet added to `conv_in`, one image token) at a
fraction of its width. Videos of {sizes}, segments of {settings.segment} frames, {megabytes:.1f} MB in all.

![the first clips of the evaluation: truth over what was sampled](../images/{name}-clips.jpg)

## Data

{people} (`training/synthetic`), with the keypoints that an estimator would find of them. No recording of
anybody was used. People, rooms and motions of the evaluation are from seeds that training never takes
(`TEST_SEEDS`).

## Training

{runs_table(runs)}

Hours are those in steps, {hours:.1f} in all, without preparing and validating; waiting is the share of them spent
waiting for clips, where it was kept. Machine: {machine()}.

{pictures}

## Measured

{len(scored)} clips of {frames} frames of unseen people in unseen motions, {settings.steps} steps, guidance
{settings.guidance}, seed {seed}, `{manifest.backend}` in {manifest.precision}:

{measures_table(means([one.scores for one in scored]))}

## Limits

{LIMITS}

## Reproduce

```sh
{commands}
python export/build_engines.py --base {base} \\
  --checkpoint {checkpoint} --output bundles/{name} {build_flags(animator)}
python training/evaluate.py --bundle bundles/{name} --synthetic {len(scored)} --frames {frames} --seed {seed} --json
python training/card.py --bundle bundles/{name} --runs runs/tiny \\
  --history training/models/{name}/history.json
```

See [training](../training.md). Built as `{manifest.build[:12]}`.

## Licence

Apache-2.0, weights included: all that they learned from was drawn by code of this repository.
"""


def train_command(run: str) -> str:
    """The command of a run."""
    script = f"training/train.py --config training/configs/{RUNS[run]}.yaml"
    if run not in PROCESSES:
        return f"python {script}"
    return f"ACCELERATE_USE_CPU=true torchrun --nproc_per_node {PROCESSES[run]} {script}"


def build_flags(animator: Animator) -> str:
    """The flags of `build_engines.py` for the bundle's sizes and settings."""
    manifest = animator.manifest
    flags = [f"--size {width}x{height}" for width, height in manifest.sizes]
    for name, value in sorted(manifest.defaults.items()):
        text = json.dumps(value) if not isinstance(value, str) else value
        flags.append(f"--segment {value}" if name == "segment" else f"--default '{name}={text}'")
    if manifest.note:
        flags.append(f"--note {shlex.quote(manifest.note)}")
    return " \\\n  ".join(flags)


def write_card(
    name: str, bundle: str, runs: Sequence[RunRecord], output: Path, clips: int, frames: int, seed: int
) -> Path:
    """Evaluate and write the card and its pictures; returns the card's path."""
    images, path = output / "images", output / "models" / f"{name}.md"
    try:
        for folder in (images, path.parent):
            folder.mkdir(parents=True, exist_ok=True)
        if curves := [run.curve for run in runs if run.curve]:
            draw_curves(curves, images / f"{name}-curves.png")
        with Animator.load(bundle) as animator:
            scored = []
            for one in score_clips(animator, clips, frames, seed, {}):
                scored.append(one)
                print(f"clip {len(scored)} of {clips}: {one.scores['psnr']:.2f} dB", file=sys.stderr)
            text = card(name, load_bundle(bundle).manifest, animator, runs, scored, frames, seed)
        write_sheet(images / f"{name}-clips.jpg", scored[:SHOWN])
        path.write_text(text)
    except OSError as error:
        raise OutputError(f"the card cannot be written: {error}", field="output") from error
    return path


def main(
    bundle: Annotated[str, typer.Option(help="Name or folder of the bundle.")] = "tiny",
    runs: Annotated[Path, typer.Option(help="Folder of the runs, " + ", ".join(RUNS) + ".")] = Path(
        "runs/tiny"
    ),
    history: Annotated[Path | None, typer.Option(help="File that keeps what runs were.")] = None,
    output: Annotated[Path, typer.Option(help="Folder whose models/ and images/ are written.")] = Path(
        "docs"
    ),
    clips: Annotated[int, typer.Option(min=1, max=1000, help="Clips to evaluate.")] = 20,
    frames: Annotated[int, typer.Option(min=2, help="Frames of each.")] = 24,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Which people and motions.")] = 0,
) -> None:
    """Write a model's card."""
    with explained():
        records = read_runs(runs, history)
        path = write_card(Path(bundle).name, bundle, records, output, clips, frames, seed)
        if history is not None:
            write_history(history, records)
        print(path)


if __name__ == "__main__":
    typer.run(main)
