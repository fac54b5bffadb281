"""`python training/evaluate.py --bundle B [--synthetic CLIPS | --shards FOLDER] --frames N --seed S --json`.

Animates people that no training has seen by motions that it has not seen either, through the public `Animator`, and
compares with the truth: drawn people, or recordings that `prepare.py` has packed into shards and that training holds
out. The last line printed with --json is an object:

psnr, ssim                 of the video; dB, and 0 to 1
psnr_repeat_reference, ssim_repeat_reference   of the reference picture shown all the time
psnr_vae, ssim_vae         of the truth after the VAE's encoder and decoder: what denoising cannot exceed
hand_psnr, head_psnr       in the boxes of the hands and the heads; null if none is seen
sharpness                  energy of the video's gradients over that of the truth's: 1 is as sharp
sharpness_heads, _eyes, _hands   the same in their boxes; null if none is seen
flicker, flicker_vae       change from frame to frame where the truth stands still, in levels of 255; null if it
                           stands still nowhere
face_found, hands_found    with --landmarks: the share that is where it should be, of those found in the truth
landmark_error             with --landmarks: how far what is found in the truth has moved, percent of the height
joints_found, pose_error   with --poses: the share of body joints that an estimator sees in the truth and again in the
                           video, and how far these have moved, percent of the height
border_jump                how much more the video jumps where segments meet than elsewhere, in levels of 255
                           (the truth's own jumps taken off); null for a single segment
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from mimicmotion_trt import Animator, PoseSequence, estimate_poses
from mimicmotion_trt.commands.options import refuse
from mimicmotion_trt.console import Bars, explained
from mimicmotion_trt.errors import MotionError, SettingsError
from mimicmotion_trt.events import Progress
from mimicmotion_trt.flags import App
from mimicmotion_trt.media.picture import write_picture
from mimicmotion_trt.media.sheet import contact_sheet
from mimicmotion_trt.settings import Settings, parse_setting
from mimicmotion_trt.training.data.samples import ClipDataset, Sample, checked
from mimicmotion_trt.training.data.shards import ShardClips
from mimicmotion_trt.training.landmarks import found_again, load_landmark_net
from mimicmotion_trt.training.metrics import (
    Pictures,
    compare,
    describe,
    flicker,
    following,
    means,
    psnr,
    ssim,
)
from mimicmotion_trt.training.progress import Pace
from mimicmotion_trt.training.synthetic import TEST_SEEDS, VALIDATION_SEEDS, make_clip
from mimicmotion_trt.training.synthetic.character import Style

app = App()

STRIDE = 1000
"""Runs with different --seed share no clip, up to this many."""
MOST_SEED = 2**32 - 1


Scores = Mapping[str, float | None]
Measure = Callable[[Animator, Sample, Pictures, Settings], Scores]
"""Compares a video uint8 [F,H,W,3] with the clip that it should be."""


@dataclass(frozen=True)
class Scored:
    """One clip: its measures and its pictures."""

    scores: Scores
    reference: Pictures
    truth: Pictures
    video: Pictures


OF_SHARDS = ("clips", "every_video", "fps", "max_enlarge")
"""Flags that say which of the stored clips are taken."""


@app.command()
def evaluate(
    ctx: typer.Context,
    bundle: Annotated[str, typer.Option(metavar="NAME", help="Bundle, by name or folder.")] = "tiny",
    synthetic: Annotated[
        int | None,
        typer.Option(min=1, max=STRIDE, help="So many clips of drawn people; 20 without --shards."),
    ] = None,
    shards: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Recordings instead: a folder that prepare has written."),
    ] = None,
    clips: Annotated[
        int, typer.Option(min=1, help="With --shards: so many windows of the stored clips.")
    ] = 20,
    every_video: Annotated[
        bool,
        typer.Option(
            "--every-video",
            help="With --shards: clips of all videos, not only of those that training holds out.",
        ),
    ] = False,
    fps: Annotated[float, typer.Option(min=0.1, help="With --shards: frames a second.")] = 15.0,
    max_enlarge: Annotated[
        float,
        typer.Option(min=1, help="With --shards: times that frames may be enlarged to the bundle's size."),
    ] = 1.0,
    frames: Annotated[int, typer.Option(min=1, help="Frames of each clip.")] = 24,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Which people and motions.")] = 0,
    sheet: Annotated[Path | None, typer.Option(help="Write a contact sheet: .png or .jpg.")] = None,
    style: Annotated[
        Style,
        typer.Option(
            help="How drawn people look; tiny has learned from dolls, others may have from rich ones."
        ),
    ] = "doll",
    landmarks: Annotated[
        Path | None,
        typer.Option(help="File of the stage landmarks: also say which faces and hands are found."),
    ] = None,
    poses: Annotated[
        bool, typer.Option("--poses", help="Also say how well the video follows: by poses estimated in both.")
    ] = False,
    setting: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Instead of the bundle's own, in JSON; repeat."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with one line of JSON.")] = False,
) -> None:
    """Compare a bundle's videos with the truth, on people that no training has seen.

    mimicmotion-trt evaluate --bundle tiny --synthetic 4
    mimicmotion-trt evaluate --bundle bundles/mine --shards shards --sheet sheet.png
    """
    with explained(), Bars() as bars:
        if shards is not None and synthetic is not None:
            raise SettingsError(
                "clips are either drawn or recorded.",
                remedy="Give --synthetic or --shards; --clips says how many of the shards.",
                field="synthetic",
            )
        sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
        named = {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}
        if shards is None:
            refuse((name for name in OF_SHARDS if name in named), "without --shards", "Leave it out.")
        else:
            refuse((name for name in ("style",) if name in named), "with --shards", "Leave it out.")
        measures = MEASURES if landmarks is None else (*MEASURES, landmark_measure(landmarks))
        measures = (*measures, pose_measures) if poses else measures
        overrides = dict(map(parse_setting, setting or ()))
        with Animator.load(bundle) as animator:
            settings = evaluation_settings(animator, overrides)
            assert settings.size is not None
            if shards is None:
                given: ClipDataset = DrawnClips(synthetic or 20, frames, seed, settings.size, style)
            else:
                given = dataset = ShardClips(
                    shards, frames, settings.size, fps, clips=clips, held_out=None if every_video else True,
                    seed=seed, max_enlarge=max_enlarge,
                )  # fmt: skip
                for reason, times in sorted(dataset.skipped.items()):
                    bars.say(f"left out {times}x: {reason}")
            began = time.perf_counter()
            scored = score_clips(animator, given, settings, bars, measures)
            seconds = time.perf_counter() - began
        if sheet is not None:
            write_sheet(sheet, {str(number): clip for number, clip in enumerate(scored, 1)})
    result = means([clip.scores for clip in scored])
    if as_json:
        told = {"clips": len(scored), "frames": frames, "seed": seed, "seconds": round(seconds, 3)}
        print(json.dumps({**result, **told, "source": "synthetic" if shards is None else str(shards)}))
    else:
        print(describe(result))


def evaluation_settings(animator: Animator, overrides: Mapping[str, Any]) -> Settings:
    """The bundle's settings at the first of its sizes, with some values replaced."""
    return animator.settings(**{"size": animator.manifest.sizes[0], "rescale": False, **overrides})


@dataclass(frozen=True)
class DrawnClips:
    """Synthetic people, a `ClipDataset`; looks and motions are from `synthetic.TEST_SEEDS`."""

    clips: int
    frames: int
    seed: int
    size: tuple[int, int]
    """(width, height)."""
    style: Style = "doll"

    def __len__(self) -> int:
        return self.clips

    def __getitem__(self, index: int) -> Sample:
        clip = make_clip(unseen(self.seed, index), self.frames, self.size[1], self.size[0], style=self.style)
        return {
            "frames": clip.frames, "observed": clip.observed, "truth": clip.truth,
            "reference": clip.reference, "reference_pose": clip.reference_pose,
        }  # fmt: skip


def score_clips(
    animator: Animator,
    clips: ClipDataset,
    settings: Settings,
    bars: Bars,
    measures: Sequence[Measure] | None = None,
) -> list[Scored]:
    """Animate and compare clip after clip; how it goes is shown on the standard error."""
    scored: list[Scored] = []
    pace = Pace()
    for number in range(1, len(clips) + 1):
        clip = checked(clips[number - 1])
        job = animator.animate(
            clip["reference"], clip["observed"], settings, reference_pose=clip["reference_pose"]
        )
        for event in job:
            if isinstance(event, Progress):
                stage = f"{event.stage} {event.step}/{event.steps} of clip {number}, done"
                bars.show("clip", number - 1, len(clips), stage)
        video = job.result().frames()
        bars.show("clip", number - 1, len(clips), f"measures of clip {number}, done")
        scores: dict[str, float | None] = {}
        for measure in measures or MEASURES:
            scores |= measure(animator, clip, video, settings)
        scored.append(Scored(scores, clip["reference"], clip["frames"], video))
        pace.step()
        bars.say(f"clip {number}/{len(clips)}: {describe(scores)}, {pace.left(len(clips) - number)}")
    return scored


def video_measures(animator: Animator, clip: Sample, video: Pictures, settings: Settings) -> Scores:
    """`metrics.compare`; where parts are, the true poses tell, or the estimator's where no others are known."""
    poses = clip.get("truth", clip["observed"])
    return compare(video, clip["frames"], clip["reference"], poses, settings)


def vae_measures(animator: Animator, clip: Sample, video: Pictures, settings: Settings) -> Scores:
    """The same of the truth after the VAE alone."""
    truth = clip["frames"]
    latents = np.stack([animator.networks.encode_picture(frame, 0.0, None) for frame in truth])
    rebuilt = animator.decode(latents * np.float32(animator.manifest.scaling_factor))
    return {
        "psnr_vae": psnr(rebuilt, truth),
        "ssim_vae": ssim(rebuilt, truth),
        "flicker_vae": flicker(rebuilt, truth),
    }


def landmark_measure(path: Path) -> Measure:
    """Which faces and hands a network of the stage `landmarks` finds again."""
    finder = load_landmark_net(path)

    def found(animator: Animator, clip: Sample, video: Pictures, settings: Settings) -> Scores:
        return found_again(finder, video, clip["frames"], clip.get("truth", clip["observed"]))

    return found


def pose_measures(animator: Animator, clip: Sample, video: Pictures, settings: Settings) -> Scores:
    """`metrics.following`, by the default estimator in the truth and in the video."""

    def seen(pictures: Pictures) -> PoseSequence | None:
        try:
            return estimate_poses(pictures, threads=animator.threads)
        except MotionError:  # nobody is seen
            return None

    return following(seen(video), seen(clip["frames"]))


MEASURES: tuple[Measure, ...] = (video_measures, vae_measures)
"""What is measured of each clip. A new measure is a function here; numbers of all clips are means."""


def unseen(seed: int, index: int) -> int:
    """The seed of clip `index`, below `STRIDE`, of a run with `seed`: of `TEST_SEEDS`, none of validation's."""
    place = seed * STRIDE + index
    passed = len(VALIDATION_SEEDS) if TEST_SEEDS[place] >= VALIDATION_SEEDS.start else 0
    return TEST_SEEDS[place + passed]


def write_sheet(path: Path, scored: Mapping[str, Scored]) -> None:
    """For each named clip the truth over the video, the reference first in both rows."""
    rows = []
    for name, clip in scored.items():
        rows.append((f"{name}: reference, then truth", [clip.reference, *clip.truth]))
        rows.append((f"{name}: sampled, {clip.scores['psnr']:.1f} dB", [clip.reference, *clip.video]))
    write_picture(path, contact_sheet(rows, columns=9))


if __name__ == "__main__":
    app()
