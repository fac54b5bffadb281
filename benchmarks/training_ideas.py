"""What confidence-aware drawing and the hand loss are worth, on synthetic people, three seeds each.

    python benchmarks/training_ideas.py

Trains the small model's U-Net and PoseNet (`training/configs/tiny.yaml`, reduced: see `reduced`) from random
weights on a trained base, in three arms: `full`; `no confidence`, whose keypoints are drawn at full brightness
or not at all, in training and in sampling; and `no hand loss`, hand weight 1. One seed draws the same clips,
weights and noise in every arm. Few people are learned, and sampled in motions that were never trained on:
twice, with keypoints as the estimator gives them and with worse ones (`worsened`).

Arms that are finished are kept in --output; run the command again to go on. Prints a table and, last, one
line of JSON; both and a plot go to benchmarks/results/training_ideas.{json,png}.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from mimicmotion_trt.errors import CheckpointError, MimicMotionError, OutputError
from mimicmotion_trt.pose import PoseSequence
from mimicmotion_trt.settings import parse_size

ROOT = Path(__file__).resolve().parents[1]
ARMS: dict[str, dict[str, Any]] = {
    "full": {},
    "no confidence": {"data": {"confidence_aware": False}},
    "no hand loss": {"objective": {"hand_weight": 1.0}},
}
MEASURES = ("psnr", "ssim", "hand_psnr", "noisy_psnr", "noisy_ssim", "noisy_hand_psnr")
UNSURE, ERROR = 0.3, 0.12
"""`worsened`: the share of keypoints that become unsure, and the deviation of their error at no confidence, in
heights of the person: three times that of the generator's own estimator."""

Scores = dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Plan:
    """The size of the experiment; results of other plans are not mixed with it."""

    base: str
    steps: int
    size: tuple[int, int]
    """(width, height)."""
    frames: int
    """Slots of a training clip."""
    batch: int
    clips: int
    """Training clips."""
    people: int
    eval_clips: int
    sampling_steps: int


def main(
    base: Annotated[Path, typer.Option(help="Base folder with a trained VAE and image encoder.")] = Path(
        "training/models/tiny/base"
    ),
    output: Annotated[Path, typer.Option(help="Folder of the arms' runs.")] = Path("runs/ideas"),
    results: Annotated[Path, typer.Option(help="Folder of the .json and .png.")] = Path("benchmarks/results"),
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of an arm.")] = 300,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT.")] = "64x128",
    frames: Annotated[int, typer.Option(min=2, help="Slots of a training clip.")] = 6,
    batch: Annotated[int, typer.Option(min=1)] = 6,
    clips: Annotated[int, typer.Option(min=1, help="Training clips.")] = 400,
    people: Annotated[int, typer.Option(min=1, help="Characters in them.")] = 8,
    eval_clips: Annotated[int, typer.Option(min=1, help="Clips to sample.")] = 8,
    sampling_steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 8,
) -> None:
    """Train and judge all arms, or what is left of them."""
    plan = Plan(str(base), steps, parse_size(size), frames, batch, clips, people, eval_clips, sampling_steps)
    try:
        if not base.is_dir():
            raise CheckpointError(f"{base} is no folder.", remedy="Train tiny-vae and tiny-colours first.")
        arms = {arm: [run_arm(plan, arm, seed, output) for seed in range(seeds)] for arm in ARMS}
    except MimicMotionError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    Console(markup=False).print(scores_table(arms))
    report = {"plan": asdict(plan), "seeds": seeds, "arms": arms, "full_less_arm": differences(arms)}
    results.mkdir(parents=True, exist_ok=True)
    (results / "training_ideas.json").write_text(json.dumps(report, indent=1) + "\n")
    plot(arms, results / "training_ideas.png")
    print(json.dumps(report))


def run_arm(plan: Plan, arm: str, seed: int, output: Path) -> Scores:
    """Train and judge one arm with one seed, unless that is done."""
    folder = output / f"{arm.replace(' ', '-')}-{seed}"
    told = folder / "scores.json"
    if told.exists():
        kept = json.loads(told.read_text())
        if kept["plan"] != json.loads(json.dumps(asdict(plan))):
            raise OutputError(f"{folder} is of another plan.", remedy="Choose another --output.")
        scores: Scores = kept["scores"]
        return scores
    print(f"{arm}, seed {seed}", file=sys.stderr, flush=True)
    output.mkdir(parents=True, exist_ok=True)
    config = output / f"{folder.name}.yaml"
    config.write_text(json.dumps(reduced(plan, arm, seed, output)))  # JSON is YAML
    train = [sys.executable, str(ROOT / "training" / "train.py"), "--resume"]
    train += ["--config", str(config), "--output", str(folder)]
    if subprocess.run(train).returncode:  # refuses a run of another plan
        raise OutputError(f"training {arm} with seed {seed} failed.", remedy="See the lines above.")
    scores = judge(plan, arm, folder / "final" / "mimicmotion.safetensors")
    told.write_text(json.dumps({"plan": asdict(plan), "scores": scores}))
    return scores


def reduced(plan: Plan, arm: str, seed: int, output: Path) -> dict[str, Any]:
    """The arm's config: the small model's, of fewer, smaller and shorter clips of fewer people."""
    width, height = plan.size
    data: dict[str, Any] = {"clips": plan.clips, "characters": plan.people, "frames": plan.frames}
    data |= {"width": width, "height": height, "cache": str(output / "cache")}
    changes = ARMS[arm]
    return {
        "extends": str(ROOT / "training" / "configs" / "tiny.yaml"),
        "output": str(output),
        "base": plan.base,
        "seed": seed,
        "steps": plan.steps,
        "batch": plan.batch,
        "save_every": 100,
        "keep": 1,
        "tensorboard": False,
        "ema": 0.98,
        "optimizer": {"warmup": min(50, plan.steps)},
        "validation": {"every": 0},
        "data": data | changes.get("data", {}),
        "objective": changes.get("objective", {}),
    }


def judge(plan: Plan, arm: str, weights: Path) -> Scores:
    """Sample unseen motions of the people that were learned; means over the clips."""
    import torch

    from mimicmotion_trt.training.checkpoints import load_model
    from mimicmotion_trt.training.config import load_config
    from mimicmotion_trt.training.metrics import means
    from mimicmotion_trt.training.torch_animator import Encoders, torch_animator

    model = load_model(plan.base, weights)
    tiny = load_config(ROOT / "training" / "configs" / "tiny.yaml")
    defaults = {**tiny.validation.settings, "steps": plan.sampling_steps, "canvas": tiny.data.canvas}
    defaults |= {"segment": plan.frames, "overlap": min(2, plan.frames - 1)}
    encoders = Encoders.load(Path(plan.base), torch.device("cpu"))
    animator = torch_animator(model.unet, model.pose_net, encoders, plan.size, defaults)
    return means(list(score_clips(plan, animator, aware=arm != "no confidence", canvas=tiny.data.canvas)))


def score_clips(plan: Plan, animator: Any, *, aware: bool, canvas: int) -> Iterator[Scores]:
    """The measures of each clip, with keypoints as they are found and with worse ones."""
    from mimicmotion_trt.training.data.samples import VALIDATION_SEED, drawn_poses
    from mimicmotion_trt.training.metrics import hand_psnr, psnr, ssim
    from mimicmotion_trt.training.synthetic import make_clip

    width, height = plan.size
    for index in range(plan.eval_clips):
        clip = make_clip(
            VALIDATION_SEED + index, 2 * plan.frames, height, width, character_seed=index % plan.people,
            style="rich",
        )  # fmt: skip
        noisy = worsened(clip.observed, clip.truth, np.random.default_rng((7, index)))
        scores: Scores = {}
        for prefix, observed in (("", clip.observed), ("noisy_", noisy)):
            poses = PoseSequence.concat([clip.reference_pose, observed])
            drawn = drawn_poses(poses, height, width, canvas, confidence_aware=aware)
            latents = animator.sample(clip.reference, drawn, animator.settings(seed=index))
            video = animator.decode(latents)[1:]
            scores[f"{prefix}psnr"] = psnr(video, clip.frames)
            scores[f"{prefix}ssim"] = ssim(video, clip.frames)
            scores[f"{prefix}hand_psnr"] = hand_psnr(video, clip.frames, clip.truth)
        yield scores


def worsened(observed: PoseSequence, truth: PoseSequence, rng: np.random.Generator) -> PoseSequence:
    """The keypoints with a third of them unsure and wrong in a whole clip, though still sure enough to be drawn.

    As with the generator's own estimator the error grows with the square of the doubt; here a point errs to
    one side all the time, so that frames before and after tell nothing of it.
    """
    tall = np.ptp(truth.body[..., 1], axis=1).mean() * truth.size[1]
    changed: dict[str, Any] = {}
    for name in ("body", "hands", "face"):
        points, score = getattr(observed, name), getattr(observed, f"{name}_score")
        unsure = rng.random(score.shape[1:]) < UNSURE
        doubt = rng.uniform(0.4, 0.65, score.shape[1:])
        error = rng.normal(0, ERROR, (*score.shape[1:], 2)) * (doubt**2)[..., None] * tall / truth.size
        moved = np.where(unsure[..., None], points + error, points)
        changed[name] = moved.astype(np.float32)
        changed[f"{name}_score"] = np.where(unsure, np.minimum(score, 1 - doubt), score).astype(np.float32)
    return replace(observed, **changed)


def differences(arms: Mapping[str, Sequence[Scores]]) -> dict[str, dict[str, list[float | None]]]:
    """What `full` has more than each other arm, seed by seed: above 0 the idea helps."""

    def less(name: str, a: Scores, b: Scores) -> float | None:
        one, two = a[name], b[name]
        return None if one is None or two is None else one - two

    return {
        arm: {
            name: [less(name, a, b) for a, b in zip(arms["full"], scores, strict=True)] for name in MEASURES
        }
        for arm, scores in arms.items()
        if arm != "full"
    }


def spread(values: Sequence[float | None]) -> str:
    """Mean and standard deviation over the seeds."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    deviation = f" ± {np.std(known, ddof=1):.3f}" if len(known) > 1 else ""
    return f"{np.mean(known):.3f}{deviation}"


def scores_table(arms: Mapping[str, Sequence[Scores]]) -> Table:
    """Means and spreads of each arm, then what `full` has more than the others."""
    table = Table("arm", *MEASURES)
    for arm, scores in arms.items():
        table.add_row(arm, *(spread([one[name] for one in scores]) for name in MEASURES))
    for arm, by_measure in differences(arms).items():
        table.add_row(f"full less {arm}", *(spread(by_measure[name]) for name in MEASURES))
    return table


def plot(arms: Mapping[str, Sequence[Scores]], path: Path) -> None:
    """A panel for each measure, a column for each arm: a dot for each seed, a line for their mean."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 3, figsize=(10, 5), layout="constrained")
    for panel, name in zip(panels.flat, MEASURES, strict=True):
        for place, scores in enumerate(arms.values()):
            values = np.array([one[name] for one in scores], np.float64)  # None becomes NaN
            panel.plot([place] * len(values), values, "o", alpha=0.6)
            panel.hlines(np.mean(values), place - 0.25, place + 0.25, color="black", linewidth=1)
        panel.set(title=name, xticks=range(len(arms)), xticklabels=list(arms))
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


if __name__ == "__main__":
    typer.run(main)
