"""`mimicmotion-trt animate`: a picture and a motion to a video, in this process or on a server."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..console import Given, Reporter, explained, with_flags
from ..errors import MotionError, OutputError, SettingsError
from ..limits import Limits
from ..service.commands import connect, connection_flags, limit_values
from .files import check_output, convert, is_stream, whole_file
from .options import (
    AsJson,
    BundleName,
    Estimator,
    Graphs,
    LimitFlags,
    Threads,
    read_settings,
    settings_flags,
)

if TYPE_CHECKING:
    from ..service import Client


@with_flags("chosen", settings_flags())
@with_flags("connection", connection_flags())
def animate(
    *,
    image: Annotated[Path, typer.Option(help="Picture of the person.")],
    motion: Annotated[
        list[Path],
        typer.Option(
            help="Driving video, keypoints or folder of pose pictures; - reads one; repeat for a row."
        ),
    ],
    output: Annotated[
        str,
        typer.Option(help=".mp4 .mov .mkv .webm .gif, PNGs: folder/ or folder/%04d.png, or - for an MP4."),
    ],
    motion_kind: Annotated[
        Literal["auto", "video", "pose-video"],
        typer.Option(help="What a video shows: a person, or skeletons."),
    ] = "auto",
    bundle: BundleName = "tiny",
    server: Annotated[str, typer.Option(help="HOST:PORT of a server that does the work.")] = "",
    priority: Annotated[
        int, typer.Option(help="On a server, jobs of a higher priority go first; -9 to 9.")
    ] = 0,
    deadline: Annotated[
        float | None, typer.Option(help="Seconds in which a server has to finish, or else refuse.")
    ] = None,
    reference_pose: Annotated[
        Path | None, typer.Option(help="Keypoints of the person in the picture.")
    ] = None,
    estimator: Estimator = "mediapipe",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Threads = None,
    graphs: Graphs = "on",
    limit: LimitFlags = None,
    as_json: AsJson = False,
    connection: Given,
    chosen: Given,
) -> None:
    """Animate a picture, in this process or on a server."""
    from ..pose import PoseSequence

    with explained(as_json):
        settings = read_settings(chosen)  # before anything is loaded
        order = {"priority": priority, "deadline": deadline}
        for_server = [*connection, *(name for name, value in order.items() if value)]
        if for_server and not server:
            raise SettingsError(
                f"--{for_server[0].replace('_', '-')} is for a server.", remedy="Name it: --server."
            )
        if server and motion_kind != "auto":
            raise SettingsError(
                "a server tells by itself what a motion is.",
                remedy="Leave --motion-kind out.",
                field="motion_kind",
            )
        check_output(output, [image, *motion, *([reference_pose] if reference_pose else [])])
        pose = PoseSequence.load(reference_pose) if reference_pose else None
        with (
            Reporter(as_json, output) as reporter,
            tempfile.TemporaryDirectory(prefix="mimicmotion-") as folder,
        ):
            image, *motions = (whole_file(path, Path(folder)) for path in (image, *motion))
            inputs: Given = {"image": image, "motion": motions, "reference_pose": pose}
            if server:
                inputs |= order
                done = _on_server(connect(server, connection), inputs, settings, output, reporter)
            else:
                limits, captured = Limits(**limit_values(limit)), graphs == "on"
                options = {"device": device, "threads": threads, "limits": limits, "graphs": captured}
                inputs |= {"estimator": estimator, "motion_kind": motion_kind}
                done = _in_process(bundle, options, inputs, settings, output, reporter)
        reporter.note(done.pop("note"))
        reporter.line({"event": "done", "output": output, **done})
        size = "x".join(map(str, done["size"]))
        reporter.say(f"{output}: {done['frames']} frames, {size}, {done['fps']:g} per second")


def _in_process(
    bundle: str, options: Given, inputs: Given, settings: Given, output: str, reporter: Reporter
) -> dict[str, Any]:
    from ..animator import Animator
    from ..media.writer import VideoWriter

    with Animator.load(bundle, **options) as animator:
        reporter.note(animator.note)
        animation = animator.stream(**inputs, settings=animator.settings(**settings))
        fps, size = animation.fps, animation.size
        with VideoWriter(output, fps=fps, size=size, audio=animation.audio) as writer:
            for event in animation:
                reporter.show(event)
                for frame in event.frames if event.frames is not None else ():
                    writer.write(frame)
        resolved = animation.settings.to_dict()
        done = {
            "frames": animation.frames,
            "held": animation.held,
            "fps": fps,
            "size": size,
            "note": writer.note,
        }
        return {**done, "settings": resolved}


def _on_server(
    connected: Client, inputs: Given, settings: Given, output: str, reporter: Reporter
) -> dict[str, Any]:
    from ..media.writer import VideoWriter

    motion, *others = inputs["motion"]
    if others or motion.is_dir():
        raise MotionError(
            f"{motion} is a folder." if not others else "a server takes one motion.",
            remedy="Send a video or keypoints to a server.",
            field="motion",
        )
    inputs["motion"] = motion
    as_mp4 = (
        Path(output).suffix.lower() == ".mp4"
        and not Path(output).is_symlink()
        and not is_stream(Path(output))
    )
    if not as_mp4 and output != "-" and not is_stream(Path(output)):  # refused now rather than after the work
        VideoWriter(output, fps=1, size=(64, 64)).abort()
    with connected as client, tempfile.TemporaryDirectory() as folder:
        received = Path(output) if as_mp4 else Path(folder) / "received.mp4"
        animation = client.animate(**inputs, settings=settings, output=received)
        for event in animation:
            reporter.show(event)
        note = ""
        if not as_mp4:
            try:
                note = convert(received, output)
            except OutputError as error:
                kept = Path(tempfile.mkdtemp(prefix="mimicmotion-")) / "video.mp4"
                shutil.copyfile(received, kept)
                remedy = f"The finished video was kept as {kept}."
                raise OutputError(error.message, remedy=remedy, field="output") from error
        done = animation.result().done.to_dict()
        said = {key: value for key, value in done.items() if key not in ("event", "sequence")}
        return {**said, "note": said["note"] or note}
