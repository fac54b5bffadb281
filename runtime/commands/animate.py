"""`mimicmotion-trt animate`: a picture and a motion to a video, in this process or on a server."""

from __future__ import annotations

import inspect
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..console import Reporter, explained
from ..errors import MotionError, OutputError, SettingsError, counted
from ..events import joined_notes
from ..flags import Given, make_flag, with_flags
from ..limits import Limits
from ..service.commands import connect, connection_flags, limit_values
from ..settings import MOST_VIDEOS, Settings, split_lora
from .files import (
    check_files,
    check_output,
    check_read_once,
    convert,
    is_stream,
    preview_path,
    whole_file,
)
from .options import explain_setting, read_settings, refuse, settings_flags

if TYPE_CHECKING:
    from ..events import Progress
    from ..facts import Facts
    from ..media.writer import VideoWriter
    from ..pipeline import Animation
    from ..service import Client
    from ..service.delivery import ReceivedVideo


IO, MOTION, SPEED, SERVER, EXPERT = "Input/Output", "Motion", "Speed", "Server", "Expert"
OWN_MOTION = {"stride": 1, "frames": None, "driver": None, "fps": None, "start": 0.0, "end": None}
"""Settings that take a finished video as it is."""
PictureAndMotion = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="IMAGE MOTION...",
        show_default=False,
        rich_help_panel=IO,
        help="A person; a driving video, keypoints or pose pictures.",
    ),
]


def here_flags() -> list[inspect.Parameter]:
    """What says how the work is done in this process; a server has its own way."""
    kinds = Literal["auto", "video", "pose-video"]
    on_off = Literal["on", "off"]
    finders = Literal["mediapipe", "dwpose"]
    return [
        make_flag("bundle", str, help="Bundle, by name or folder. [default: tiny]", panel=IO, metavar="NAME"),
        make_flag("motion_kind", kinds, help="What a video shows: a person, or skeletons.", panel=MOTION),
        make_flag("estimator", finders, help="What finds people; dwpose needs its files.", panel=MOTION),
        make_flag("device", str, help="auto, cpu, cuda or cuda:N.", panel=SPEED, metavar="NAME"),
        make_flag("threads", int, help="CPU threads; every core if not given.", panel=SPEED),
        make_flag("graphs", on_off, help="On a GPU, each step as one captured CUDA graph.", panel=SPEED),
        make_flag(
            "limit", list[str], help="For instance frames=500; repeat.", panel=EXPERT, metavar="NAME=NUMBER"
        ),
    ]


def server_flags() -> list[inspect.Parameter]:
    """Who does the work instead, and in which order."""
    return [
        make_flag("server", str, help="Server that does the work.", panel=SERVER, metavar="HOST:PORT"),
        make_flag(
            "priority", int, help="Jobs of a higher priority go first, -9 to 9. [default: 0]", panel=SERVER
        ),
        make_flag(
            "deadline",
            float,
            help="Refused where it cannot be ready so soon.",
            panel=SERVER,
            metavar="SECONDS",
        ),
        *connection_flags(SERVER),
    ]


@with_flags("here", here_flags())
@with_flags("chosen", settings_flags())
@with_flags("there", server_flags())
def animate(
    files: PictureAndMotion = None,
    *,
    image: Annotated[
        Path | None,
        typer.Option("-i", "--image", metavar="FILE", help="IMAGE as a flag.", rich_help_panel=IO),
    ] = None,
    motion: Annotated[
        list[Path] | None,
        typer.Option(
            "-m",
            "--motion",
            metavar="FILE",
            help="MOTION as a flag; - reads one, repeat for a row.",
            rich_help_panel=IO,
        ),
    ] = None,
    output: Annotated[
        str,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help=".mp4 .mov .mkv .webm .gif folder/ f/%04d.png -",
            rich_help_panel=IO,
        ),
    ],
    reference_pose: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keypoints of the person in the picture.", rich_help_panel=IO),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(
            metavar="VIDEO",
            help="Settings, bundle and movement of a finished video.",
            rich_help_panel=IO,
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(
            metavar="NUMBER",
            help="So many videos, each with the next seed: out-1.mp4 ...",
            rich_help_panel=IO,
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print a line of JSON for each event and for the outcome.", rich_help_panel=IO
        ),
    ] = False,
    explain: Annotated[
        str | None,
        typer.Option(
            metavar="SETTING",
            help="Say all about a setting, such as framing, and end.",
            is_eager=True,
            callback=explain_setting,
        ),
    ] = None,
    here: Given,
    chosen: Given,
    there: Given,
) -> None:
    """Animate a picture, in this process or on a server.

    Defaults are those of the bundle.

    mimicmotion-trt animate person.jpg dance.mp4 -o out.mp4
    mimicmotion-trt animate person.jpg dance.mp4 -o out.mp4 --server localhost:50051 --steps 10
    """
    from ..media.record import read_facts
    from ..media.writer import numbered_outputs
    from ..pose import PoseSequence

    with explained(as_json):
        before = None if like is None else read_facts(like)
        image, motions = picture_and_motions(list(files or ()), image, list(motion or ()), like)
        settings = read_settings(chosen)  # before anything is loaded
        if before is not None:
            settings = recorded_settings(before, own_motion=motions == [like]) | settings
        if "seeds" in chosen:
            names = [
                name for name, given in (("count", count), ("seed", chosen.get("seed"))) if given is not None
            ]
            refuse(names, "with --seeds", "Leave one of the two out.")
        if count is not None:
            settings["seeds"] = counted_seeds(settings, count)
        outputs = numbered_outputs(output, len(Settings.from_dict(settings).each_seed))
        server, kind = there.pop("server", ""), here.pop("motion_kind", "auto")
        if before is not None and before.settings.lora and not server and "lora" not in chosen:
            raise SettingsError(
                f"the video was made with LoRAs: {', '.join(before.settings.lora)}.",
                remedy="Name their files: --lora FILE:STRENGTH.",
                field="settings.lora",
            )
        if server:
            refuse(here, "with --server", "It is the server's to choose: leave it out.")
        else:
            refuse(there, "without --server", "Name the server: --server HOST:PORT.")
        read = [image, *motions, *(path for path in (reference_pose, like) if path is not None)]
        preview = preview_path(output) if settings.get("preview") else None
        for name in (*outputs, *([] if preview is None else [preview])):
            check_output(str(name), read)
        check_read_once([image, *motions])
        pose = PoseSequence.load(reference_pose) if reference_pose else None
        with (
            Reporter(as_json, output, preview) as reporter,
            tempfile.TemporaryDirectory(prefix="mimicmotion-") as folder,
        ):
            image, *motions = (whole_file(path, Path(folder)) for path in (image, *motions))
            check_files(image, motions, outputs)
            inputs: Given = {"image": image, "motion": motions, "reference_pose": pose, "motion_kind": kind}
            if server:
                inputs |= {name: there.pop(name) for name in ("priority", "deadline") if name in there}
                done = _on_server(connect(server, there), inputs, settings, output, reporter, before)
            else:
                done = _in_process(here, inputs, settings, outputs, reporter, before)
        reporter.note(done.pop("note"))
        reporter.line({"event": "done", "output": outputs[0], **done})
        size = "x".join(map(str, done["size"]))
        for name in outputs:
            reporter.say(f"{name}: {counted(done['frames'], 'frame')}, {size}, {done['fps']:g} per second")
        if preview is not None:
            reporter.say(f"{preview}: the middle frame as the last step saw it")


def picture_and_motions(
    files: list[Path], image: Path | None, motions: list[Path], like: Path | None
) -> tuple[Path, list[Path]]:
    """What is named by its place, and what by a flag, as one; raises `SettingsError` if something is missing.

    Where no motion is named, a finished video that is to be followed is one.
    """
    if image is None and files:
        image, *files = files
    if motions and files:
        raise SettingsError(
            f"{files[0]} is neither the picture nor the motion: both are named already.",
            remedy="Leave it out, or the flags.",
            field="motion",
        )
    motions = motions or files or ([] if like is None else [like])
    if image is None or not motions:
        raise SettingsError(
            f"there is no {'picture' if image is None else 'motion'}.",
            remedy="For instance: mimicmotion-trt animate person.jpg dance.mp4 -o out.mp4",
            field="image" if image is None else "motion",
        )
    return image, motions


def recorded_settings(before: Facts, *, own_motion: bool) -> Given:
    """The settings of a finished video; what they say of its motion does not hold if it is the motion itself."""
    settings = before.settings.to_dict()
    return settings | OWN_MOTION if own_motion else settings


def counted_seeds(settings: Given, count: int) -> tuple[int, ...]:
    """The seeds of `count` videos, from `seed` on. Raises `SettingsError`."""
    if not 1 <= count <= MOST_VIDEOS:
        raise SettingsError(f"count is {count}.", remedy=f"Choose 1 to {MOST_VIDEOS}.", field="count")
    seed = settings.get("seed", 0)
    return tuple(range(seed, seed + count))


def changed(before: Facts | None, now: Facts | None) -> str:
    """A note if a video that is made like another one is not the same."""
    difference = before.difference(now) if before is not None and now is not None else ""
    return f"the video that this one is made like was another build's: {difference}" if difference else ""


def _in_process(
    here: Given,
    inputs: Given,
    settings: Given,
    outputs: list[str],
    reporter: Reporter,
    before: Facts | None,
) -> dict[str, Any]:
    from ..animator import Animator

    options: Given = {name: here[name] for name in ("device", "threads") if name in here}
    options |= {"limits": Limits(**limit_values(here.get("limit"))), "graphs": here.get("graphs") != "off"}
    inputs |= {name: here[name] for name in ("estimator",) if name in here}
    bundle = here.get("bundle") or ("tiny" if before is None else before.bundle)
    lora = list(map(split_lora, settings.get("lora") or ()))
    settings = {name: value for name, value in settings.items() if name != "lora"}
    with reporter.during("loading"):
        loaded = Animator.load(bundle, lora=lora, **options)
    with loaded as animator:
        reporter.note(animator.note)
        animation = animator.stream(**inputs, settings=animator.settings(**settings))
        reporter.note(changed(before, animation.facts))
        events = iter(animation)
        note = ""
        for number, name in enumerate(outputs, 1):
            note = write_video(animation, number, name, events, reporter)
        facts = [animation.facts.of_seed(seed) for seed in animation.seeds]
        done = {
            "frames": animation.frames,
            "fps": animation.fps,
            "size": animation.size,
            **facts[0].to_dict(),
        }
        if len(outputs) > 1:
            done["others"] = [
                {"output": name, "seed": seed}
                for name, seed in zip(outputs[1:], animation.seeds[1:], strict=True)
            ]
        return {**done, "seconds": animation.seconds, "note": note}


def write_video(
    animation: Animation, number: int, output: str, events: Iterator[Progress], reporter: Reporter
) -> str:
    """Write the video `number`, whose last frame ends what is taken of the events; returns what was lost of sound."""
    writer, begun = open_writer(animation, output), False
    try:
        with writer:
            for event in events:
                reporter.show(event)
                for frame in event.frames if event.frames is not None else ():
                    begun = True
                    writer.write(frame)
                if begun and writer.frames == animation.frames and number < len(animation.seeds):
                    break
    except OutputError as error:
        if not begun or writer.kept is not None:
            raise
        raise OutputError(error.message, remedy=keep_video(animation), field="output") from error
    return writer.note


def open_writer(animation: Animation, output: str | Path) -> VideoWriter:
    """A writer of the frames; the file says how they were made, as far as is known when the first one comes."""
    from ..media.writer import VideoWriter

    fps, size, audio = animation.fps, animation.size, animation.audio
    return VideoWriter(output, fps=fps, size=size, audio=audio, comment=lambda: animation.facts.to_json())


def keep_video(animation: Animation) -> str:
    """Write the video that is being decoded to the temporary folder, from its start; says where it is, or why not.

    Its frames are decoded again: what took long is not lost where a disk is full or a pipe is closed.
    """
    kept = Path(tempfile.mkdtemp(prefix="mimicmotion-")) / "video.mp4"
    try:
        with open_writer(animation, kept) as writer:
            for frames in animation.frames_again():
                for frame in frames:
                    writer.write(frame)
    except OutputError as error:
        kept.parent.rmdir()
        return f"Nor can it be kept elsewhere: {error.message} Free some space, and animate again."
    return f"The finished video was kept as {kept}."


def _on_server(
    connected: Client,
    inputs: Given,
    settings: Given,
    output: str,
    reporter: Reporter,
    before: Facts | None,
) -> dict[str, Any]:
    from ..media.writer import numbered_outputs

    motion, *others = inputs["motion"]
    if others or motion.is_dir():
        raise MotionError(
            f"{motion} is a folder." if not others else "a server takes one motion at a time.",
            remedy="Send one video or one file of keypoints to a server, or leave --server out.",
            field="motion",
        )
    inputs["motion"] = motion
    as_mp4 = (
        Path(output).suffix.lower() == ".mp4"
        and not Path(output).is_symlink()
        and not is_stream(Path(output))
    )
    with connected as client, tempfile.TemporaryDirectory() as folder:
        received = Path(output) if as_mp4 else Path(folder) / "received.mp4"
        animation = client.animate(**inputs, settings=settings, output=received)
        for event in animation:
            reporter.show(event)
        note, videos = "", animation.result().videos
        if not as_mp4:
            for video, name in zip(videos, numbered_outputs(output, len(videos)), strict=True):
                note = converted(video, name)
        reporter.note(changed(before, animation.result().done.facts))
        done = animation.result().done.to_dict()
        said = {key: value for key, value in done.items() if key not in ("event", "sequence")}
        return {**said, "note": joined_notes(said["note"], note)}


def converted(received: ReceivedVideo, output: str) -> str:
    """Write a received video in another format; returns what was lost of the sound. One that cannot be is kept."""
    assert received.path is not None
    try:
        return convert(received.path, output)
    except OutputError as error:
        kept = Path(tempfile.mkdtemp(prefix="mimicmotion-")) / "video.mp4"
        shutil.copyfile(received.path, kept)
        remedy = f"The finished video was kept as {kept}."
        raise OutputError(error.message, remedy=remedy, field="output") from error
