"""`python training/card.py --bundle tiny --runs runs/tiny --output docs`: the card of a model trained here.

Evaluates the bundle on people that no training has seen, and writes OUTPUT/models/NAME.md after `card.md`, with the
curves of the runs and a contact sheet in OUTPUT/images. With --history what it tells of runs is kept in that file,
and tells of those that are gone. Every number is measured now or read from what the runs wrote.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter

from mimicmotion_trt import Animator
from mimicmotion_trt.bundles import load_bundle
from mimicmotion_trt.console import Bars, explained
from mimicmotion_trt.doctor.machine import Host
from mimicmotion_trt.engines import Manifest
from mimicmotion_trt.errors import SettingsError
from mimicmotion_trt.files import output_errors, write_text
from mimicmotion_trt.settings import Settings
from mimicmotion_trt.training.curves import Curve, RunSummary, draw_curves, read_curve, summarize
from mimicmotion_trt.training.evaluate import MEASURES as EVALUATION
from mimicmotion_trt.training.evaluate import (
    MOST_SEED,
    DrawnClips,
    Measure,
    Scored,
    evaluation_settings,
    landmark_measure,
    pose_measures,
    score_clips,
    write_sheet,
)
from mimicmotion_trt.training.metrics import means
from mimicmotion_trt.training.run_folder import snapshot_config

TEMPLATE = Path(__file__).with_name("card.md")
RUNS = {
    "landmarks": "tiny-landmarks", "vae": "tiny-vae", "colours": "tiny-colours", "motion": "tiny",
    "together": "tiny-together", "longer": "tiny-longer", "finish": "tiny-finish",
}  # fmt: skip
"""The folders of the runs in the order of training -> their configs."""
HEAD = ("stage", "steps", "batch", "clips", "seed", "s/step", "waiting", "hours", "loss", "last validation")
MEASURES = {
    "psnr": "PSNR of the video, dB",
    "psnr_repeat_reference": "the same of the reference picture shown all the time, dB",
    "psnr_vae": "the same of the truth after the VAE alone, about what sampling can reach, dB",
    "ssim": "SSIM of the video",
    "ssim_repeat_reference": "the same of the reference picture shown all the time",
    "ssim_vae": "the same of the truth after the VAE alone",
    "hand_psnr": "PSNR in the boxes of the hands, dB",
    "head_psnr": "the same in the boxes of the heads, dB",
    "sharpness": "energy of the video's gradients over that of the truth's",
    "sharpness_heads": "the same in the boxes of the heads",
    "sharpness_eyes": "the same in the boxes of the eyes",
    "sharpness_hands": "the same in the boxes of the hands",
    "flicker": "change from frame to frame where the truth stands still, levels of 255",
    "flicker_vae": "the same of the truth after the VAE alone",
    "face_found": "share of the faces that the landmark network finds in the truth and again in the video",
    "hands_found": "the same of hands",
    "joints_found": "share of the joints that the pose estimator sees in the truth and again in the video",
    "pose_error": "how far those have moved, percent of the height",
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
        if config := snapshot_config(run):
            records[run.name] = RunRecord(run.name, summarize(run), config, read_curve(run))
    if not records:
        raise SettingsError(
            f"{folder} holds none of the runs {', '.join(RUNS)}.", remedy="Train first.", field="runs"
        )
    return [records[name] for name in RUNS if name in records]


def read_history(path: Path) -> list[RunRecord]:
    """The records that `write_history` kept."""
    try:
        return TypeAdapter(list[RunRecord]).validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read: {error}", field="history") from None


def write_history(path: Path, records: Sequence[RunRecord]) -> None:
    """Keep the records, a line each; raises `OutputError`."""
    lines = ",\n".join(json.dumps(asdict(one)) for one in records)
    write_text(path, f"[\n{lines}\n]\n")


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in [head, ["---"] * len(head), *rows])


def run_row(run: RunRecord) -> list[object]:
    """What a run did, under `HEAD`."""
    config, did = run.config, run.profile
    return [
        run.name, f"{did.steps:,}", config["batch"], f"{config['data']['clips']:,}", config["seed"],
        f"{did.step_seconds:.2f}", "–" if did.waiting is None else f"{did.waiting:.1%}", f"{did.hours:.2f}",
        f"{did.loss_begin:.3g} → {did.loss_end:.3g}",
        ", ".join(f"{name} {value:.3g}" for name, value in did.validation.items()) or "–",
    ]  # fmt: skip


def card(
    name: str,
    manifest: Manifest,
    settings: Settings,
    runs: Sequence[RunRecord],
    scored: Sequence[Scored],
    frames: int,
    seed: int,
) -> str:
    """The text of the card."""
    mean, host = means([one.scores for one in scored]), Host.read()
    measures = [
        (f"`{key}`", "–" if (value := mean[key]) is None else f"{value:.3f}", what)
        for key, what in MEASURES.items()
        if key in mean
    ]
    bases = [run.name for run in runs if run.config["stage"] not in ("motion", "landmarks")]
    trained = [run for run in runs if run.config["stage"] in ("motion", "together")]
    own = f"training/models/{name}"
    folder = f"runs/tiny/{trained[-1].name}/final" if trained else own
    people = f"{trained[-1].config['data']['characters']:,} synthetic" if trained else "Synthetic"
    pictures = list(dict.fromkeys(run.picture or f"{name}-curves.png" for run in runs))
    return TEMPLATE.read_text().format(
        name=name,
        manifest=manifest,
        settings=settings,
        sizes=", ".join(f"{width}×{height}" for width, height in manifest.sizes),
        megabytes=sum(file.bytes for network in manifest.networks.values() for file in network.files) / 1e6,
        people=f"{people} people",
        runs=table(HEAD, [run_row(run) for run in runs]),
        hours=sum(run.profile.hours for run in runs),
        machine=f"{host.cores} cores ({host.cpu}), {platform.system()}, PyTorch {host.packages['torch']}",
        pictures="\n".join(f"![loss and validation by step](../images/{file})" for file in pictures),
        clips=len(scored),
        frames=frames,
        seed=seed,
        measures=table(("measure", "mean", "what"), measures),
        commands="\n".join(train_command(run.name) for run in runs),
        flags=manifest.options.replace(" --", " \\\n  --"),
        base=f"runs/tiny/{bases[-1]}/final/base" if bases else f"{own}/base",
        checkpoint=f"{folder}/mimicmotion.safetensors",
    )


def train_command(run: str) -> str:
    """The command of a run."""
    return f"python training/train.py --config training/configs/{RUNS[run]}.yaml"


def write_card(
    name: str,
    bundle: str,
    runs: Sequence[RunRecord],
    output: Path,
    clips: int,
    frames: int,
    seed: int,
    measures: Sequence[Measure],
) -> Path:
    """Evaluate and write the card and its pictures; returns the card's path."""
    images, path = output / "images", output / "models" / f"{name}.md"
    with output_errors(output):
        for folder in (images, path.parent):
            folder.mkdir(parents=True, exist_ok=True)
        if curves := [run.curve for run in runs if run.curve]:
            draw_curves([[curve] for curve in curves], images / f"{name}-curves.png")
        with Animator.load(bundle) as animator:
            settings = evaluation_settings(animator, {})
            assert settings.size is not None
            with Bars() as bars:
                drawn = DrawnClips(clips, frames, seed, settings.size)
                scored = score_clips(animator, drawn, settings, bars, measures)
            settings, manifest = animator.settings(), load_bundle(bundle).manifest
            path.write_text(card(name, manifest, settings, runs, scored, frames, seed))
        write_sheet(images / f"{name}-clips.jpg", extremes(scored))
    return path


def extremes(scored: Sequence[Scored]) -> dict[str, Scored]:
    """The best, the median and the worst clip by SSIM; only the best of one clip."""
    ordered = sorted(scored, key=lambda one: one.scores["ssim"] or 0.0, reverse=True)
    places = {"best": 0, "median": len(ordered) // 2, "worst": len(ordered) - 1}
    return {name: ordered[place] for name, place in places.items() if place or name == "best"}


def main(
    bundle: Annotated[str, typer.Option(help="Name or folder of the bundle.")] = "tiny",
    runs: Annotated[Path, typer.Option(help=f"Folder of the runs, {', '.join(RUNS)}.")] = Path("runs/tiny"),
    history: Annotated[Path | None, typer.Option(help="File that keeps what runs were.")] = None,
    output: Annotated[Path, typer.Option(help="Folder with models/ and images/ to write.")] = Path("docs"),
    clips: Annotated[int, typer.Option(min=1, max=1000, help="Clips to evaluate.")] = 20,
    frames: Annotated[int, typer.Option(min=2, help="Frames of each.")] = 24,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Which people and motions.")] = 0,
    landmarks: Annotated[
        Path | None,
        typer.Option(help="File of the stage landmarks: also say which faces and hands are found."),
    ] = None,
) -> None:
    """Write a model's card."""
    with explained():
        records = read_runs(runs, history)
        measures = [*EVALUATION, pose_measures, *([] if landmarks is None else [landmark_measure(landmarks)])]
        path = write_card(Path(bundle).name, bundle, records, output, clips, frames, seed, measures)
        if history is not None:
            write_history(history, records)
        print(path)


if __name__ == "__main__":
    typer.run(main)
