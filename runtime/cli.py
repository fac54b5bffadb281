"""The command line: `mimicmotion-trt animate | serve | jobs | new-token | pose | inspect | doctor`."""

from __future__ import annotations

import inspect as inspection
import io
import json
import shutil
import sys
import tempfile
import warnings
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_type_hints

import typer

from . import __version__
from .console import Reporter, explained
from .errors import MotionError, OutputError, SettingsError
from .files import motion_errors
from .flags import Given, make_flag, with_flags
from .limits import Limits
from .service_commands import connect, connection_flags, jobs, limit_values, new_token, serve
from .settings import Framing, Settings, driver_of, make_settings, parse_size
from .validation import field_docs

if TYPE_CHECKING:
    from .pose import PoseSequence
    from .service import Client

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
)

app.command()(serve)
app.command("new-token")(new_token)
app.add_typer(jobs, name="jobs")

PANEL = "Settings (the bundle's own unless given)"

AsJson = Annotated[bool, typer.Option("--json", help="One line of JSON for each event, and for the outcome.")]
BundleName = Annotated[str, typer.Option(help="Bundle, by name or folder.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; every core if not given.")]
Estimator = Annotated[str, typer.Option(help="mediapipe, or dwpose (needs its files).")]
Graphs = Annotated[
    Literal["on", "off"], typer.Option(help="On a GPU, run each step as one captured CUDA graph.")
]
LimitFlags = Annotated[
    list[str] | None, typer.Option("--limit", help="NAME=NUMBER, for instance frames=500.")
]


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """One picture of a person and a motion in, a video of that person doing that motion out."""
    if show:
        print(__version__)
        raise typer.Exit


def settings_flags() -> list[inspection.Parameter]:
    """A flag for each field of `Settings`: type, choices and help are the field's own."""
    hints, docs = get_type_hints(Settings), field_docs(Settings)
    flags = []
    for f in fields(Settings):
        shown = " ".join(map(str, f.default)) if isinstance(f.default, tuple) else f.default
        hint, metavar = hints[f.name], None
        if hint | None == tuple[int, int] | None:  # a size
            hint, metavar = str, "WIDTHxHEIGHT"
        elif hint | None == tuple[float, float] | None:
            metavar = "NUMBER NUMBER"
        elif get_args(hint)[1:] == (...,):  # several, in one text
            hint, metavar, shown = str, "NAME,NAME", str(shown).replace(" ", ",")
        words = docs[f.name] + ("" if f.default is None else f" [{shown}]")
        flags.append(make_flag(f.name, hint, help=words, panel=PANEL, metavar=metavar))
    return flags


def read_settings(chosen: Given) -> Given:
    """The settings that are named, sizes read from their text; raises `SettingsError` if they cannot be."""
    values = chosen | ({"size": parse_size(chosen["size"])} if "size" in chosen else {})
    Settings.from_dict(values)
    return values


@app.command()
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
    from .pose import PoseSequence

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


def check_output(output: str, inputs: list[Path]) -> None:
    """Raise `OutputError` if the result would be written over one of its inputs."""
    path = Path(output)
    if "%" in path.name:
        path = path.parent
    for given in inputs:
        if path.exists() and given.exists() and path.samefile(given) and not is_stream(path):
            raise OutputError(
                f"the output {output} is an input too.", remedy="Choose another output.", field="output"
            )


def whole_file(path: Path, folder: Path) -> Path:
    """A file that can be read more than once: the standard input (`-`) and pipes are copied into `folder`."""
    if str(path) != "-" and not is_stream(path):
        return path
    copy = folder / f"input{len(list(folder.iterdir()))}"
    with motion_errors(path), copy.open("wb") as file:
        source = open(0, "rb", closefd=False) if str(path) == "-" else path.open("rb")  # noqa: SIM115
        with source:
            shutil.copyfileobj(source, file)
    return copy


def is_stream(path: Path) -> bool:
    """Whether this is a pipe or a device; raises `MotionError` for a path that cannot be looked at."""
    with motion_errors(path):
        return path.exists() and (path.is_fifo() or path.is_char_device())


def _in_process(
    bundle: str, options: Given, inputs: Given, settings: Given, output: str, reporter: Reporter
) -> dict[str, Any]:
    from .animator import Animator
    from .media.writer import VideoWriter

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
    from .media.writer import VideoWriter

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


def convert(video: Path, output: str) -> str:
    """Write a video in another format, sound included; returns what was lost of it."""
    from .media.reader import VideoReader
    from .media.writer import VideoWriter

    reader = VideoReader(video)
    audio = video if reader.has_audio else None
    with VideoWriter(output, fps=reader.fps, size=reader.size, audio=audio) as writer:
        for _, frame in reader.frames():
            writer.write(frame)
    return writer.note


@app.command()
def pose(
    source: Annotated[
        Path | None, typer.Argument(help="Video or picture of a person; with --image the motion, or nothing.")
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="SOURCE as keypoints (.npz, .json) or drawn: a folder/ or a video.")
    ] = None,
    form: Annotated[
        Literal["mimicmotion", "openpose", "coco-wholebody"],
        typer.Option("--format", help="Of a .json; openpose is ComfyUI's POSE_KEYPOINT too."),
    ] = "mimicmotion",
    estimator: Estimator = "mediapipe",
    stride: Annotated[int, typer.Option(help="Look at every n-th frame.")] = 1,
    threads: Threads = None,
    picture: Annotated[Path | None, typer.Option(help="Also write the poses, drawn side by side.")] = None,
    person: Annotated[str | None, typer.Option(help="Who of several people, as in animate.")] = None,
    image: Annotated[Path | None, typer.Option(help="A reference picture, for --sheet.")] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(help="Write what animate would make of --image: its part, its pose, SOURCE fitted."),
    ] = None,
    driver: Annotated[str | None, typer.Option(help="With --image: who of several people in SOURCE.")] = None,
    framing: Annotated[
        Framing, typer.Option(help="With --image: person, centre or pad, as in animate.")
    ] = "person",
    size: Annotated[str, typer.Option(help="With --image: WIDTHxHEIGHT; the bundle's own if empty.")] = "",
    bundle: BundleName = "tiny",
    as_json: AsJson = False,
) -> None:
    """Find the keypoints of the person in a video or picture; or show what of a picture would be animated."""
    from .motion import folder_of_keypoints, is_keypoints
    from .pose import PoseSequence, estimate_poses

    with explained(as_json):
        if (image is None) != (sheet is None) or (source is None and (image is None or output is not None)):
            raise SettingsError(
                "there is nothing to do.",
                remedy="Give a video or picture with --output, or --image with --sheet.",
                field="source",
            )
        named = {"person": person, "driver": driver, "framing": framing}
        settings = read_settings({**named, **({"size": size} if size else {})})
        poses = None
        if source is not None and output is not None:
            check_output(output, [source])
        if source is not None and source.is_dir():
            poses = folder_of_keypoints(source, Limits()).strided(stride)
        elif source is not None and is_keypoints(source):
            poses = PoseSequence.load(source).strided(stride)
        elif source is not None:
            who = driver_of(Settings(**settings)) if image else Settings(**settings).person
            poses = estimate_poses(source, estimator, stride=stride, threads=threads, person=who)
        values: Given = {}
        if poses is not None:
            values |= _write_poses(poses, output, form, picture)
        if image is not None and sheet is not None:
            values |= _write_preview(image, poses, settings, sheet, bundle, estimator, threads)
        if as_json:
            print(json.dumps({"event": "done", **values}))
        elif poses is not None:
            seen = (
                f"{len(poses)} frames at {poses.fps:g} per second, a person in {values['frames_with_person']}"
            )
            print(f"{output or source}: {seen}")
        if sheet is not None and not as_json:
            print(f"{sheet}: of the picture, {values['crop']} (left, top, right, bottom) would be animated")


def _write_poses(poses: PoseSequence, output: str | None, form: str, picture: Path | None) -> Given:
    """Write keypoints, and a drawing of them; returns what there is to say of them."""
    from .pose.formats import save_poses

    if output is not None:
        save_poses(poses, output, form)
    if picture is not None:
        _draw_sheet(poses, picture)
    seen = int((poses.body_score.max(axis=1) > 0).sum())
    said = {"output": str(output)} if output is not None else {}
    return {**said, "frames": len(poses), "frames_with_person": seen, "fps": poses.fps}


def _write_preview(
    image: Path,
    motion: PoseSequence | None,
    settings: Given,
    sheet: Path,
    bundle: str,
    estimator: str,
    threads: int | None,
) -> Given:
    """Write what would be animated; returns where it is and the part of the picture that is taken."""
    from .bundles import load_bundle
    from .media.picture import write_picture
    from .preview import preview_sheet

    manifest = load_bundle(bundle).manifest
    chosen = make_settings(manifest.defaults, settings)
    drawn, crop = preview_sheet(image, motion, chosen, manifest.sizes, estimator=estimator, threads=threads)
    write_picture(sheet, drawn)
    return {"sheet": str(sheet), "crop": list(crop)}


def _draw_sheet(poses: Any, path: Path) -> None:
    from .media.picture import write_picture
    from .media.sheet import contact_sheet, evenly
    from .pose import draw_poses

    width, height = poses.size
    scale = 256 / max(width, height)
    drawn = draw_poses(
        poses.take(evenly(len(poses), 8)), max(1, round(height * scale)), max(1, round(width * scale)), 1024
    )
    write_picture(path, contact_sheet([("poses", list(drawn))]))


@app.command()
def inspect(
    bundle: Annotated[str, typer.Argument(help="Bundle, by name or folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest.")] = False,
) -> None:
    """Check a bundle's files and say what it holds."""
    from rich.console import Console

    from .bundles import load_bundle
    from .console import show_bundle

    with explained(as_json):
        found = load_bundle(bundle)
        if as_json:
            print(json.dumps(json.loads(found.manifest.to_json())))
        else:
            show_bundle(found, Console(markup=False))


@app.command()
def doctor(
    bundle: Annotated[str, typer.Option(help="Bundle, by name or folder; all that are found if empty.")] = "",
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT of the video; the bundle's own if empty.")] = "",
    frames: Annotated[int | None, typer.Option(help="Its frames; one segment if not given.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Its length instead, at 15 frames a second.")] = None,
    jobs: Annotated[int, typer.Option(help="Jobs at once, as with serve --limit jobs=N.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Say what this machine runs, what is missing, and what an animation would need here."""
    from rich.console import Console

    from .doctor import Question, examine, show

    with explained(as_json):
        question = Question.of(parse_size(size) if size else None, frames, seconds, jobs)
        report = examine(bundle, question)
        if as_json:
            print(json.dumps(report.to_dict()))
        else:
            show(report, Console(highlight=False, markup=False, soft_wrap=True), every_choice=bool(bundle))


def main() -> None:
    """Entry point of `mimicmotion-trt`."""
    for stream in (sys.stdout, sys.stderr):  # a name may have letters that the terminal cannot show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.filterwarnings("ignore", module=r"PIL\.")  # what is wrong with a picture is said by our error
    app()
