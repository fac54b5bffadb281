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
from pathlib import Path
from typing import Annotated

import typer

from mimicmotion_trt import Animator
from mimicmotion_trt.bundles import load_bundle
from mimicmotion_trt.engines import Manifest
from mimicmotion_trt.errors import MimicMotionError, OutputError
from mimicmotion_trt.training.curves import draw_curves
from mimicmotion_trt.training.evaluate import MOST_SEED, Scored, means, score_clips, write_sheet
from mimicmotion_trt.training.history import (
    ANIMATING,
    BASES,
    PROCESSES,
    STAGES,
    Stage,
    read_stages,
    write_history,
)

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


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def stages_table(stages: Sequence[Stage]) -> str:
    """What each stage did."""
    rows = []
    for stage in stages:
        config, told = stage.config, stage.profile
        batch = str(config.get("batch", "?"))
        if stage.name in PROCESSES:
            batch += f" × {PROCESSES[stage.name]}"
        data = config.get("data", {})
        last = ", ".join(f"{name} {value:.3g}" for name, value in told.validation.items())
        rows.append(
            [
                stage.name, f"{told.steps:,}", batch, f"{data.get('clips', '?'):,}",
                str(config.get("seed", "?")), f"{told.step_seconds:.2f}",
                "–" if told.waiting is None else f"{told.waiting:.1%}", f"{told.hours:.2f}",
                f"{told.loss_begin:.3g} → {told.loss_end:.3g}", last or "–",
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
    stages: Sequence[Stage],
    scored: Sequence[Scored],
    frames: int,
    seed: int,
) -> str:
    """The text of the card."""
    settings = animator.settings()
    megabytes = sum(file.bytes for network in manifest.networks.values() for file in network.files) / 1e6
    sizes = ", ".join(f"{width}×{height}" for width, height in manifest.sizes)
    hours = sum(stage.profile.hours for stage in stages)
    commands = "\n".join(train_command(stage.name) for stage in stages)
    bases = [stage.name for stage in stages if stage.name in BASES]
    base = f"runs/tiny/{bases[-1]}/final/base" if bases else f"training/models/{name}/base"
    animating = [stage.name for stage in stages if stage.name in ANIMATING]
    folder = f"runs/tiny/{animating[-1]}/final" if animating else f"training/models/{name}"
    checkpoint = f"{folder}/mimicmotion.safetensors"
    configs = [stage.config for stage in stages if stage.name in ANIMATING]
    data = configs[-1].get("data", {}) if configs else {}
    kept = dict.fromkeys(stage.picture for stage in stages if stage.picture)
    files = [*kept, f"{name}-curves.png"] if any(stage.curve for stage in stages) else list(kept)
    pictures = "\n".join(f"![loss and validation by step](../images/{file})" for file in files)
    people = f"{data['characters']:,} synthetic people" if data else "Synthetic people"
    return f"""# {name}

A small MimicMotion, trained from nothing by this repository: a reference picture and a motion in, a video out.
It has the structure of the real model (8x VAE, four levels, PoseNet added to `conv_in`, one image token) at a
fraction of its width. Videos of {sizes}, segments of {settings.segment} slots, {megabytes:.1f} MB in all.

![the first clips of the evaluation: truth over what was sampled](../images/{name}-clips.jpg)

## Data

{people} (`training/synthetic`), with the keypoints that an estimator would find of them. No recording of
anybody was used. People, rooms and motions of the evaluation are from seeds that training never takes
(`TEST_SEEDS`).

## Training

{stages_table(stages)}

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


def train_command(stage: str) -> str:
    """How a stage was trained."""
    script = f"training/train.py --config training/configs/{STAGES[stage]}.yaml"
    if stage not in PROCESSES:
        return f"python {script}"
    return f"ACCELERATE_USE_CPU=true torchrun --nproc_per_node {PROCESSES[stage]} {script}"


def build_flags(animator: Animator) -> str:
    """How `build_engines.py` was told of sizes and settings."""
    manifest = animator.manifest
    flags = [f"--size {width}x{height}" for width, height in manifest.sizes]
    for name, value in sorted(manifest.defaults.items()):
        text = json.dumps(value) if not isinstance(value, str) else value
        flags.append(f"--segment {value}" if name == "segment" else f"--default '{name}={text}'")
    if manifest.note:
        flags.append(f"--note {shlex.quote(manifest.note)}")
    return " \\\n  ".join(flags)


def write_card(
    name: str, bundle: str, stages: Sequence[Stage], output: Path, clips: int, frames: int, seed: int
) -> Path:
    """Evaluate and write the card and its pictures; returns the card's path."""
    images, path = output / "images", output / "models" / f"{name}.md"
    try:
        for folder in (images, path.parent):
            folder.mkdir(parents=True, exist_ok=True)
        if curves := [stage.curve for stage in stages if stage.curve]:
            draw_curves(curves, images / f"{name}-curves.png")
        with Animator.load(bundle) as animator:
            scored = []
            for one in score_clips(animator, clips, frames, seed, {}):
                scored.append(one)
                print(f"clip {len(scored)} of {clips}: {one.scores['psnr']:.2f} dB", file=sys.stderr)
            text = card(name, load_bundle(bundle).manifest, animator, stages, scored, frames, seed)
        write_sheet(images / f"{name}-clips.jpg", scored[:SHOWN])
        path.write_text(text)
    except OSError as error:
        raise OutputError(f"the card cannot be written: {error}", field="output") from error
    return path


def main(
    bundle: Annotated[str, typer.Option(help="Name or folder of the bundle.")] = "tiny",
    runs: Annotated[Path, typer.Option(help="Folder of the runs, " + ", ".join(STAGES) + ".")] = Path(
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
    try:
        stages = read_stages(runs, history)
        path = write_card(Path(bundle).name, bundle, stages, output, clips, frames, seed)
        if history is not None:
            write_history(history, stages)
        print(path)
    except MimicMotionError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    typer.run(main)
