"""The whole path on this machine: a server, a picture, two motions, videos. Run by `make demo`."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
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
from mimicmotion_trt.media.writer import VideoWriter
from mimicmotion_trt.pose import PoseSequence, draw_poses, rescale_to_reference
from mimicmotion_trt.service import Client, local_server
from mimicmotion_trt.settings import make_settings

DEMO = Path(__file__).resolve().parent
PERSON = DEMO / "dancer.png"
VIDEOS = {DEMO / "dance.npz": DEMO / "out-dance.mp4", DEMO / "balance.npz": DEMO / "out.mp4"}
"""Motion -> the video of it."""
SIDE_BY_SIDE, SHEET = DEMO / "side-by-side.mp4", DEMO / "sheet.png"
COLUMNS = 8
ENLARGED = 2
"""Times that the side-by-side video is larger than the model's."""

Pictures = NDArray[np.uint8]


@dataclass(frozen=True)
class Shown:
    """What one motion is shown by: pictures uint8 [H,W,3] and [F,H,W,3]."""

    name: str
    fps: float
    reference: Pictures
    reference_pose: Pictures
    poses: Pictures
    frames: Pictures


def main() -> None:
    """Animate the demo's picture through gRPC; write the videos and a sheet, and say where the time went."""
    console = Console(markup=False)
    bundle = load_bundle("tiny")
    if bundle.manifest.note:
        console.print(f"note: {bundle.manifest.note}", style="yellow")
    began = time.perf_counter()
    with local_server("tiny") as client:
        seconds = Counter({"server start": time.perf_counter() - began})
        frames = sum(animate(client, motion, video, seconds) for motion, video in VIDEOS.items())
    shown = [look(bundle.manifest, motion, video) for motion, video in VIDEOS.items()]
    write_side_by_side(shown)
    write_sheet(shown)
    table = Table("stage", "seconds", title=f"where the time of {frames} frames went")
    for stage, value in seconds.items():
        table.add_row(stage, f"{value:.2f}")
    console.print(table)
    for path in (*VIDEOS.values(), SIDE_BY_SIDE, SHEET):
        console.print(f"{path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")


def animate(client: Client, motion: Path, video: Path, seconds: Counter[str]) -> int:
    """Have a video made, with a bar; adds the seconds of its stages and returns how many frames it has."""
    with Reporter(as_json=False) as reporter:
        animation = client.animate(PERSON, motion, output=video)
        for event in animation:
            reporter.show(event)
    done = animation.result().done
    seconds.update(done.seconds)
    return done.frames


def look(manifest: Manifest, motion: Path, video: Path) -> Shown:
    """The reference and the poses as the model has seen them, and the frames of the finished video."""
    settings = make_settings(manifest.defaults, {})
    source = open_inputs(Request(PERSON, motion), settings, Limits(), manifest.sizes, None)
    width, height = source.size
    assert source.motion.poses is not None
    reference = source.reference(settings.framing)
    poses = rescale_to_reference(source.motion.poses, reference.pose, height, width)
    together = PoseSequence.concat([replace(reference.pose, fps=poses.fps), poses])
    drawn = np.stack(list(draw_poses(together, height, width, settings.canvas or 2160)))
    frames = np.stack([frame for _, frame in VideoReader(video).frames()])
    return Shown(motion.stem, poses.fps, reference.picture, drawn[0], drawn[1:], frames)


def write_side_by_side(shown: list[Shown]) -> None:
    """A video of one motion after another: the reference picture, the skeleton, and the frame made of them."""
    height, width = (ENLARGED * length for length in shown[0].reference.shape[:2])
    with VideoWriter(SIDE_BY_SIDE, fps=shown[0].fps, size=(3 * width, height)) as out:
        for one in shown:
            for pose, frame in zip(one.poses, one.frames, strict=True):
                side = np.concatenate([one.reference, pose, frame], axis=1)
                out.write(side.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1))


def write_sheet(shown: list[Shown]) -> None:
    """Of each motion poses, and below them the frames that they made; first the reference's own."""
    rows: list[Row] = []
    for one in shown:
        chosen = evenly(len(one.frames), COLUMNS - 1)
        rows += [
            (
                f"{one.name}: the pose of the reference picture, and {len(chosen)} of {len(one.poses)} poses",
                [one.reference_pose, *one.poses[chosen]],
            ),
            ("the reference picture, and the frames that were made", [one.reference, *one.frames[chosen]]),
        ]
    write_picture(SHEET, contact_sheet(rows, columns=COLUMNS))


if __name__ == "__main__":
    with explained():
        main()
