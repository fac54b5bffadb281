"""Synthetic people: `python -m mimicmotion_trt.training.synthetic --output sheet.png`, or `--videos FOLDER`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...media.picture import write_picture
from ...media.sheet import Row, contact_sheet
from ...media.writer import VideoWriter
from ...pose import draw_poses
from ...pose.sequence import PoseSequence
from .character import Style
from .clip import make_clip


def main(
    output: Annotated[Path, typer.Option(help="Picture to write.")] = Path("sheet.png"),
    seed: Annotated[int, typer.Option(help="First seed.", min=0)] = 0,
    count: Annotated[int, typer.Option(help="Characters.", min=1)] = 8,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT of a picture.")] = "128x192",
    motion: Annotated[Path | None, typer.Option(help="Keypoints to follow (.npz, .json).")] = None,
    style: Annotated[Style, typer.Option(help="How people look.")] = "doll",
    tile: Annotated[int, typer.Option(help="Height of a tile in pixels.", min=16)] = 256,
    videos: Annotated[
        Path | None, typer.Option(help="Folder: write a video of each character there, and no sheet.")
    ] = None,
    frames: Annotated[int, typer.Option(help="Frames of a video, 15 a second.", min=1)] = 90,
) -> None:
    """Write a contact sheet of characters, of one clip, and of its keypoints, true and observed; or videos."""
    width, height = map(int, size.split("x"))
    followed = None if motion is None else PoseSequence.load(motion)
    if videos is not None:
        videos.mkdir(parents=True, exist_ok=True)
        for number in range(seed, seed + count):
            clip = make_clip(number, frames, height, width, fps=15.0, motion=followed, blur=0.0, style=style)
            with VideoWriter(videos / f"person-{number:03d}.mp4", fps=15.0, size=(width, height)) as writer:
                for frame in clip.frames:
                    writer.write(frame)
        return
    people = [
        make_clip(seed + index, 1, height, width, blur=0.0, style=style).frames[0] for index in range(count)
    ]
    rows: list[Row] = [
        (f"characters {seed + start} to {min(seed + start + 8, seed + count) - 1}", people[start : start + 8])
        for start in range(0, count, 8)
    ]
    clip = make_clip(seed, 32, height, width, motion=followed, style=style)
    rows.append(("one clip, its reference picture first", [clip.reference, *clip.frames[::4]]))
    for name, poses in (("true keypoints", clip.truth), ("observed keypoints", clip.observed)):
        shown = PoseSequence.concat([clip.reference_pose, poses[::4]])
        rows.append((name, list(draw_poses(shown, height, width, max(512, min(height, width))))))
    write_picture(output, contact_sheet(rows, columns=9, tile_height=tile))


if __name__ == "__main__":
    typer.run(main)
