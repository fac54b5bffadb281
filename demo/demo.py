"""The whole path on this machine: a server, a picture, a motion, a video. Run by `make demo`."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mimicmotion_trt.bundles import load_bundle
from mimicmotion_trt.console import Reporter, explained
from mimicmotion_trt.engines import Manifest
from mimicmotion_trt.inputs import Request, open_inputs
from mimicmotion_trt.limits import Limits
from mimicmotion_trt.media.picture import write_picture
from mimicmotion_trt.media.reader import VideoReader
from mimicmotion_trt.media.sheet import Row, contact_sheet, evenly
from mimicmotion_trt.pose import PoseSequence, draw_poses, rescale_to_reference
from mimicmotion_trt.service import local_server
from mimicmotion_trt.settings import make_settings

DEMO = Path(__file__).resolve().parent
PERSON, MOTION = DEMO / "dancer.png", DEMO / "balance.npz"
VIDEO, SHEET = DEMO / "out.mp4", DEMO / "sheet.png"
COLUMNS = 8


def main() -> None:
    """Animate the demo's picture through gRPC; write out.mp4 and sheet.png, and say where the time went."""
    console = Console(markup=False)
    bundle = load_bundle("tiny")
    if bundle.manifest.note:
        console.print(f"note: {bundle.manifest.note}", style="yellow")
    began = time.perf_counter()
    with local_server("tiny") as client:
        seconds = {"server start": time.perf_counter() - began}
        with Reporter(as_json=False) as reporter:
            animation = client.animate(PERSON, MOTION, output=VIDEO)
            for event in animation:
                reporter.show(event)
        done = animation.result().done
    seconds |= done.seconds
    draw_sheet(bundle.manifest)
    table = Table("stage", "seconds", title=f"where the time of {done.frames} frames went")
    for stage, value in seconds.items():
        table.add_row(stage, f"{value:.2f}")
    console.print(table)
    for path in (VIDEO, SHEET):
        console.print(f"{path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")


def draw_sheet(manifest: Manifest) -> None:
    """Poses, and below them the frames of the finished video that they made; first the reference's own."""
    settings = make_settings(manifest.defaults, {})
    source = open_inputs(Request(PERSON, MOTION), settings, Limits(), manifest.sizes, None)
    width, height = source.size
    assert source.motion.poses is not None
    reference = source.reference(settings.framing)
    poses = rescale_to_reference(source.motion.poses, reference.pose, height, width)
    reader = VideoReader(VIDEO)
    frames = [frame for _, frame in reader.frames()]
    chosen = evenly(len(frames), COLUMNS - 1)
    drawn = draw_poses(
        PoseSequence.concat([replace(reference.pose, fps=poses.fps), poses.take(chosen)]),
        height, width, settings.canvas or 2160,
    )  # fmt: skip
    rows: list[Row] = [
        (
            f"the pose of the reference picture, and {len(chosen)} of {len(poses)} poses of the motion",
            list(drawn),
        ),
        (
            "the reference picture, and the frames that were made",
            [reference.picture, *(frames[k] for k in chosen)],
        ),
    ]
    write_picture(SHEET, contact_sheet(rows, columns=COLUMNS))


if __name__ == "__main__":
    with explained():
        main()
