"""`python training/prepare.py VIDEOS --output SHARDS [--size WIDTHxHEIGHT] …`: recordings to a training set."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from mimicmotion_trt.commands.options import Estimator
from mimicmotion_trt.console import Bars, explained
from mimicmotion_trt.files import lock_folder
from mimicmotion_trt.flags import App
from mimicmotion_trt.pose import open_estimator
from mimicmotion_trt.settings import parse_size
from mimicmotion_trt.training.data.shards import read_entries
from mimicmotion_trt.training.footage.cutting import Rules
from mimicmotion_trt.training.footage.preparation import Options, Preparation, Verdict, summary, write_report
from mimicmotion_trt.training.footage.videos import Video

app = App()


@app.command()
def prepare(
    videos: Annotated[
        Path, typer.Argument(help="Folder of videos and folders of numbered frames, or one video.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            metavar="FOLDER",
            help="Folder of the shards; what is there already is continued.",
        ),
    ],
    size: Annotated[
        str | None, typer.Option(metavar="WIDTHxHEIGHT", help="Size of the frames, cropped about the person.")
    ] = None,
    fps: Annotated[float, typer.Option(help="Frames a second; slower videos keep their rate.")] = 15.0,
    frames_fps: Annotated[float, typer.Option(help="Frames a second of folders of frames.")] = 30.0,
    min_frames: Annotated[int, typer.Option(help="Shorter clips are left out.")] = 16,
    max_frames: Annotated[int, typer.Option(help="Longer shots are split evenly.")] = 240,
    max_jitter: Annotated[
        float, typer.Option(help="More trembling than this, in heights of the body, is left out.")
    ] = 0.03,
    max_enlarge: Annotated[
        float, typer.Option(help="Clips that --size would enlarge more than this are left out.")
    ] = 2.0,
    shard_clips: Annotated[int, typer.Option(min=1, help="Clips in a shard.")] = 64,
    estimator: Estimator = "mediapipe",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the estimator; all cores if not given.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Look at this many videos only.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Lines of JSON; the last is the summary.")] = False,
) -> None:
    """Cut recordings into a training set: clips of one person with their poses, in webdataset shards.

    mimicmotion-trt prepare videos --output shards --size 576x1024
    mimicmotion-trt prepare videos --output shards --limit 3
    """
    with explained():
        rules = Rules(min_frames, max_frames, max_jitter)
        options = Options(parse_size(size) if size else None, fps, frames_fps, rules, estimator, max_enlarge)
        finder = open_estimator(estimator, threads=threads)
        with lock_folder(output):
            work = Preparation(videos, output, options, finder, shard_clips, limit)
            verdicts = _run(work, as_json)
            numbers = summary(verdicts, work.writer.done, read_entries(output)[1])
            write_report(output, numbers, verdicts, work.writer.done, options)
        print(json.dumps(numbers) if as_json else _as_text(numbers, output))


def _run(work: Preparation, as_json: bool) -> list[Verdict]:
    """Prepare with bars on stderr, or with a line of JSON on stdout for every recording."""
    counts: Counter[str] = Counter()
    seen = 0

    def say(**values: Any) -> None:
        if as_json:
            print(json.dumps(values), flush=True)

    say(videos=len(work.videos))
    with Bars(quiet=as_json) as bars:

        def frames_done(video: Video, done: int) -> None:
            bars.show("frames", done, None, f"frames of {video.name[-40:]}")

        def video_done(video: Video, verdicts: list[Verdict]) -> None:
            nonlocal seen
            seen += 1
            kept = sum(not verdict.reason for verdict in verdicts)
            left_out = Counter(verdict.reason for verdict in verdicts if verdict.reason)
            say(video=video.name, kept=kept, left_out=left_out)
            counts["kept"] += kept
            counts.update(left_out)
            told = ", ".join(f"{count} {name}" for name, count in counts.items())
            bars.show("videos", seen, len(work.videos), f"videos ({told})")

        return work.run(frames_done, video_done)


def _as_text(numbers: dict[str, object], output: Path) -> str:
    left_out = numbers["left_out"]
    assert isinstance(left_out, dict)
    reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "nothing"
    return (
        f"{numbers['clips']} clips, {numbers['frames']} frames, {numbers['seconds']} s from {numbers['videos']} "
        f"videos; left out: {reasons}\n{output}/report.json, kept.jpg and left-out.jpg show them\n"
        "Next: mimicmotion-trt train --example lora > lora.yaml; name the shards in it"
    )


if __name__ == "__main__":
    app()
