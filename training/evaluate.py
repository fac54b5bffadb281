"""`python training/evaluate.py --bundle B --synthetic CLIPS --frames N --seed S --json`.

Animates synthetic people that no training has seen by motions that it has not seen either, through the
public `Animator`, and compares with the truth. The last line printed with --json is an object:

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
border_jump                how much more the video jumps where segments meet than elsewhere, in levels of 255
                           (the truth's own jumps taken off); null for a single segment
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from mimicmotion_trt import Animator
from mimicmotion_trt.console import explained
from mimicmotion_trt.flags import App
from mimicmotion_trt.media.picture import write_picture
from mimicmotion_trt.media.sheet import contact_sheet
from mimicmotion_trt.settings import Settings, parse_setting
from mimicmotion_trt.training.landmarks import found_again, load_landmark_net
from mimicmotion_trt.training.metrics import Pictures, compare, describe, flicker, means, psnr, ssim
from mimicmotion_trt.training.synthetic import TEST_SEEDS, VALIDATION_SEEDS, make_clip
from mimicmotion_trt.training.synthetic.character import Style

app = App()

STRIDE = 1000
"""Runs with different --seed share no clip, up to this many."""
MOST_SEED = 2**32 - 1


@dataclass(frozen=True)
class Scored:
    """One clip: its measures and its pictures."""

    scores: Mapping[str, float | None]
    reference: Pictures
    truth: Pictures
    video: Pictures


@app.command()
def evaluate(
    bundle: Annotated[str, typer.Option(help="Name or folder of the bundle.")] = "tiny",
    synthetic: Annotated[int, typer.Option(min=1, max=STRIDE, help="Clips.")] = 20,
    frames: Annotated[int, typer.Option(min=1, help="Frames of each clip.")] = 24,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Which people and motions.")] = 0,
    sheet: Annotated[Path | None, typer.Option(help="Write a contact sheet: .png or .jpg.")] = None,
    style: Annotated[
        Style,
        typer.Option(help="How people look: as those that the model has learned from; tiny from rich ones."),
    ] = "rich",
    landmarks: Annotated[
        Path | None,
        typer.Option(help="File of the stage landmarks: also say which faces and hands are found."),
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE (JSON) over the bundle's settings; repeat.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with one line of JSON.")] = False,
) -> None:
    """Compare a bundle's videos with the truth, on people that no training has seen.

    mimicmotion-trt evaluate --bundle tiny --synthetic 4
    mimicmotion-trt evaluate --bundle bundles/mine --sheet sheet.png --json
    """
    with explained():
        overrides = dict(map(parse_setting, setting or ()))
        with Animator.load(bundle) as animator:
            began = time.perf_counter()
            scored = score_clips(animator, synthetic, frames, seed, overrides, style, landmarks)
            seconds = time.perf_counter() - began
        if sheet is not None:
            write_sheet(sheet, scored)
    result = means([clip.scores for clip in scored])
    if as_json:
        told = {"clips": synthetic, "frames": frames, "seed": seed, "seconds": round(seconds, 3)}
        print(json.dumps({**result, **told}))
    else:
        print(describe(result))


def score_clips(
    animator: Animator,
    clips: int,
    frames: int,
    seed: int,
    overrides: Mapping[str, Any],
    style: Style = "rich",
    landmarks: Path | None = None,
) -> list[Scored]:
    """Animate and compare clip after clip, with a line on stderr for each.

    Both the person and the motion are from `synthetic.TEST_SEEDS`.
    """
    scored: list[Scored] = []
    finder = None if landmarks is None else load_landmark_net(landmarks)
    settings = animator.settings(**{"size": animator.manifest.sizes[0], "rescale": False, **overrides})
    width, height = settings.size or animator.manifest.sizes[0]
    for index in range(clips):
        clip = make_clip(unseen(seed, index), frames, height, width, style=style)
        job = animator.animate(clip.reference, clip.observed, settings, reference_pose=clip.reference_pose)
        video = job.result().frames()
        scores = score(animator, clip, video, settings)
        if finder is not None:
            scores |= found_again(finder, video, clip.frames, clip.truth)
        scored.append(Scored(scores, clip.reference, clip.frames, video))
        print(f"clip {len(scored)}: {describe(scores)}", file=sys.stderr, flush=True)
    return scored


def unseen(seed: int, index: int) -> int:
    """The seed of clip `index`, below `STRIDE`, of a run with `seed`: of `TEST_SEEDS`, none of validation's."""
    place = seed * STRIDE + index
    passed = len(VALIDATION_SEEDS) if TEST_SEEDS[place] >= VALIDATION_SEEDS.start else 0
    return TEST_SEEDS[place + passed]


def score(animator: Animator, clip: Any, video: Pictures, settings: Settings) -> dict[str, float | None]:
    """The measures of one clip; see the top of this file."""
    latents = np.stack([animator.networks.encode_picture(frame, 0.0, None) for frame in clip.frames])
    rebuilt = animator.decode(latents * np.float32(animator.manifest.scaling_factor))
    return {
        **compare(video, clip.frames, clip.reference, clip.truth, settings),
        "psnr_vae": psnr(rebuilt, clip.frames),
        "ssim_vae": ssim(rebuilt, clip.frames),
        "flicker_vae": flicker(rebuilt, clip.frames),
    }


def write_sheet(path: Path, scored: list[Scored]) -> None:
    """For each clip the truth over the video, the reference first in both rows."""
    rows = []
    for number, clip in enumerate(scored, 1):
        rows.append((f"{number}: reference, then truth", [clip.reference, *clip.truth]))
        rows.append((f"{number}: sampled, {clip.scores['psnr']:.1f} dB", [clip.reference, *clip.video]))
    write_picture(path, contact_sheet(rows, columns=9))


if __name__ == "__main__":
    app()
