"""Peak memory of video-to-video animation at two lengths, each in a process of its own.

    python benchmarks/memory.py

Decoding, poses, denoising and encoding are all streamed, so four times the frames take about the same
memory. Prints a table and, last, one line of JSON with `growth`: the longer run's peak over the shorter's.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from common import PERSON, AsJson, BundleName, driving_video, in_own_process, peak_mib
from rich.console import Console
from rich.table import Table

from mimicmotion_trt.animator import Animator
from mimicmotion_trt.media.writer import VideoWriter
from mimicmotion_trt.settings import parse_size


def main(
    frames: Annotated[list[int] | None, typer.Option(help="Frames of the finished video; repeat.")] = None,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT.")] = "64x128",
    bundle: BundleName = "tiny",
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Measure peak memory for each number of frames."""
    lengths = frames or [150, 600]
    peaks = [in_own_process(peak, bundle, length, parse_size(size), steps) for length in lengths]
    table = Table("frames", "peak MiB")
    for length, value in zip(lengths, peaks, strict=True):
        table.add_row(str(length), f"{value:.0f}")
    Console(quiet=as_json, markup=False).print(table)
    print(json.dumps({"frames": lengths, "peak_mib": peaks, "growth": max(peaks) / min(peaks)}))


def peak(bundle: str, frames: int, size: tuple[int, int], steps: int) -> float:
    """MiB at the worst moment of a whole job: video in, poses, denoising, decoding, MP4 out."""
    with tempfile.TemporaryDirectory() as folder, Animator.load(bundle, threads=2) as animator:
        video = driving_video(Path(folder) / "motion.mp4", frames, size=(240, 426), fps=30.0)
        settings = animator.settings(size=size, steps=steps, stride=1)
        clip = animator.stream(PERSON, video, settings)
        with VideoWriter(Path(folder) / "out.mp4", fps=clip.fps, size=clip.size) as writer:
            for event in clip:
                for frame in event.frames if event.frames is not None else ():
                    writer.write(frame)
        assert writer.frames == frames
    return peak_mib()


if __name__ == "__main__":
    typer.run(main)
