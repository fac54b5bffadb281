"""What controls do to a video and what they cost: pictures for docs/controls.md, and a table.

    python benchmarks/controls.py --save      the pictures and the table of docs/controls.md, in ten minutes
    python benchmarks/controls.py --quick     a minute, to see that it works

One clip of a synthetic person whom no training has seen, in more steps than `tiny`'s own two, so that there is
something to start and end. All variants run one after the other in one process, `--repeat` times in turn. Seconds are
those of the processor, which other processes disturb little, the smallest over the plain run's. Prints a table and,
last, one line of JSON.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer
from common import ROOT, AsJson, BundleName, markdown, with_table
from rich.console import Console
from rich.table import Table

from mimicmotion_trt.animator import Animator
from mimicmotion_trt.files import write_atomic
from mimicmotion_trt.media.sheet import contact_sheet
from mimicmotion_trt.pose import draw_poses
from mimicmotion_trt.settings import Settings
from mimicmotion_trt.training.evaluate import unseen
from mimicmotion_trt.training.metrics import Pictures, psnr
from mimicmotion_trt.training.synthetic import make_clip

DOCS = ROOT / "docs" / "controls.md"
IMAGES = ROOT / "docs" / "images"
QUALITY = 72
"""Of the JPEGs."""

Variants = dict[str, dict[str, Any]]
"""What a picture's row says -> settings over the plain run's."""
PLAIN = "plain"
PICTURES: dict[str, Variants] = {
    "pose-strength": {
        "pose_strength 0": {"pose_strength": 0.0},
        "pose_strength 0.5": {"pose_strength": 0.5},
        "pose_strength 2": {"pose_strength": 2.0},
        "pose_end 0.3": {"pose_end": 0.3},
        "pose_start 0.3": {"pose_start": 0.3},
    },
    "image-strength": {
        "image_strength 0": {"image_strength": 0.0},
        "image_strength 0.5": {"image_strength": 0.5},
        "image_strength 2": {"image_strength": 2.0},
    },
}
"""The pictures, and what each shows below the poses and the plain run."""


def main(
    bundle: BundleName = "tiny",
    frames: Annotated[int, typer.Option(help="Frames of the clip.", min=2)] = 24,
    steps: Annotated[int, typer.Option(help="Denoising steps.", min=1)] = 10,
    repeat: Annotated[int, typer.Option(help="Runs of each variant.", min=1)] = 5,
    seed: Annotated[int, typer.Option(min=0, max=88, help="Which person and motion.")] = 0,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    quick: Annotated[bool, typer.Option(help="6 frames in 3 steps, once.")] = False,
    save: Annotated[bool, typer.Option(help="Write the pictures and the table of docs/controls.md.")] = False,
    images: Annotated[Path, typer.Option(help="Where pictures go.")] = IMAGES,
    as_json: AsJson = False,
) -> None:
    """Run every variant on one clip."""
    if quick:
        frames, steps, repeat = 6, 3, 1
    variants = {
        PLAIN: dict[str, Any](),
        **{name: more for rows in PICTURES.values() for name, more in rows.items()},
    }
    with Animator.load(bundle, threads=threads) as animator:
        width, height = animator.manifest.sizes[0]
        plain = animator.settings(size=(width, height), steps=steps, rescale=False)
        clip = make_clip(unseen(seed, 0), frames, height, width)
        animate(animator, clip, plain)  # takes all memory
        videos, seconds = measure(animator, clip, plain, variants, repeat)
    poses = list(draw_poses(clip.observed, height, width, plain.canvas or 2160))
    if save or images != IMAGES:
        for name, rows in PICTURES.items():
            write_sheet(images / f"{name}.jpg", poses, {row: videos[row] for row in (PLAIN, *rows)})
    lines = [
        {
            "setting": name,
            "seconds": seconds[name] / seconds[PLAIN],
            "psnr_plain": psnr(videos[name], videos[PLAIN]),
            "psnr_truth": psnr(videos[name], clip.frames),
        }
        for name in variants
    ]
    if save:
        write_atomic(
            DOCS, with_table(DOCS.read_text(), "controls", section(lines, bundle, frames, steps, repeat))
        )
    table = Table(*HEADERS, title=f"{bundle}: {frames} frames in {steps} steps")
    for line in lines:
        table.add_row(*cells(line))
    Console(quiet=as_json, markup=False).print(table)
    print(
        json.dumps({"bundle": bundle, "frames": frames, "steps": steps, "repeat": repeat, "controls": lines})
    )


def measure(
    animator: Animator, clip: Any, plain: Settings, variants: Variants, repeat: int
) -> tuple[dict[str, Pictures], dict[str, float]]:
    """Of each variant the video, and the processor's seconds of its fastest run."""
    videos: dict[str, Pictures] = {}
    seconds: dict[str, float] = {}
    for _ in range(repeat):
        for name, more in variants.items():
            videos[name], took = animate(animator, clip, replace(plain, **more))
            seconds[name] = min(took, seconds.get(name, took))
    return videos, seconds


def animate(animator: Animator, clip: Any, settings: Settings) -> tuple[Pictures, float]:
    """The video uint8 [F,H,W,3], and the processor's seconds for it."""
    began = time.process_time()
    job = animator.animate(clip.reference, clip.observed, settings, reference_pose=clip.reference_pose)
    frames = job.result().frames()
    return frames, time.process_time() - began


def write_sheet(path: Path, poses: list[Pictures], videos: dict[str, Pictures]) -> None:
    """A JPEG of the poses and of a row for each video uint8 [F,H,W,3]."""
    rows = [("poses", poses), *((name, list(video)) for name, video in videos.items())]
    sheet = contact_sheet(rows, columns=8, tile_height=96)
    done, data = cv2.imencode(
        ".jpg", np.ascontiguousarray(sheet[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
    )
    assert done
    write_atomic(path, data.tobytes())


HEADERS = ("setting", "seconds", "dB, plain", "dB, truth")
FORMATS = ("", ".2f", ".1f", ".1f")


def cells(line: dict[str, Any]) -> list[str]:
    """The line as the table's text."""
    return [format(value, how) for value, how in zip(line.values(), FORMATS, strict=True)]


def section(lines: list[dict[str, Any]], bundle: str, frames: int, steps: int, repeat: int) -> str:
    """The table of docs/controls.md, and what it was measured on."""
    return (
        f"Bundle `{bundle}`, {frames} frames of an unseen person in {steps} steps, the fastest of {repeat} runs:\n\n"
        + markdown(HEADERS, [cells(line) for line in lines])
    )


if __name__ == "__main__":
    typer.run(main)
