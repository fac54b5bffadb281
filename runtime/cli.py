"""The command line: `mimicmotion-trt animate | serve | pose | inspect | doctor`."""

from __future__ import annotations

import ast
import inspect as inspection
import json
import tempfile
import textwrap
import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer

from . import __version__
from .console import Reporter, explained
from .errors import LimitError, MotionError, SettingsError
from .limits import Limits
from .settings import Settings, parse_size

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
)

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
Chosen = dict[str, Any]
"""What the command line names, by name."""


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """One picture of a person and a motion in, a video of that person doing that motion out."""
    if show:
        print(__version__)
        raise typer.Exit


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameter `chosen` becomes one flag for each field of `Settings`."""
    signature = inspection.signature(command, eval_str=True)
    own = [parameter for name, parameter in signature.parameters.items() if name != "chosen"]
    flags = settings_flags()

    def run(**values: Any) -> None:
        given = {flag.name: values.pop(flag.name) for flag in flags}
        command(**values, chosen={name: value for name, value in given.items() if value is not None})

    parameters = [*own, *flags]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__doc__, run.__name__ = command.__doc__, command.__name__
    return run


def settings_flags() -> list[inspection.Parameter]:
    """A flag for each field of `Settings`: type, choices and help are the field's own."""
    hints, docs = get_type_hints(Settings), field_docs(Settings)
    flags = []
    for f in fields(Settings):
        shown = " ".join(map(str, f.default)) if isinstance(f.default, tuple) else f.default
        option = typer.Option(
            help=docs[f.name] + ("" if f.default is None else f" [{shown}]"),
            rich_help_panel=PANEL,
            show_default=False,
        )
        hint = hints[f.name] | None
        if hint == tuple[int, int] | None:  # a size
            option.metavar, hint = "WIDTHxHEIGHT", str | None
        elif hint == tuple[float, float] | None:
            option.metavar = "NUMBER NUMBER"
        annotation = Annotated[hint, option]  # type: ignore[valid-type]
        kind = inspection.Parameter.KEYWORD_ONLY
        flags.append(inspection.Parameter(f.name, kind, default=None, annotation=annotation))
    return flags


def field_docs(kind: type) -> dict[str, str]:
    """The docstrings that stand under the fields of a dataclass."""
    body = ast.parse(textwrap.dedent(inspection.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for field, following in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(following, ast.Expr):
            assert isinstance(field.target, ast.Name)
            docs[field.target.id] = str(ast.literal_eval(following.value))
    return docs


def read_settings(chosen: Chosen) -> Chosen:
    """The settings that are named, sizes read from their text; raises `SettingsError` if they cannot be."""
    values = chosen | ({"size": parse_size(chosen["size"])} if "size" in chosen else {})
    Settings.from_dict(values)
    return values


@app.command()
@with_settings
def animate(
    *,
    image: Annotated[Path, typer.Option(help="Picture of the person.")],
    motion: Annotated[
        Path, typer.Option(help="Driving video, keypoints (.npz, .json) or folder of pose pictures.")
    ],
    output: Annotated[
        Path, typer.Option(help=".mp4 .mov .mkv .webm .gif, or PNGs: folder/ or folder/%04d.png.")
    ],
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
    chosen: Chosen,
) -> None:
    """Animate a picture, in this process or on a server."""
    from .pose import PoseSequence

    with explained(as_json):
        settings = read_settings(chosen)  # before anything is loaded
        pose = PoseSequence.load(reference_pose) if reference_pose else None
        inputs: Chosen = {"image": image, "motion": motion, "reference_pose": pose}
        with Reporter(as_json) as reporter:
            if server:
                inputs |= {"priority": priority, "deadline": deadline}
                done = _on_server(server, inputs, settings, output, reporter)
            else:
                limits, captured = parse_limits(limit), graphs == "on"
                options = {"device": device, "threads": threads, "limits": limits, "graphs": captured}
                inputs["estimator"] = estimator
                done = _in_process(bundle, options, inputs, settings, output, reporter)
        reporter.line({"event": "done", "output": str(output), **done})
        if not as_json:
            size = "x".join(map(str, done["size"]))
            print(f"{output}: {done['frames']} frames, {size}, {done['fps']:g} per second")


def _in_process(
    bundle: str, options: Chosen, inputs: Chosen, settings: Chosen, output: Path, reporter: Reporter
) -> dict[str, Any]:
    from .animator import Animator
    from .media.writer import VideoWriter

    with Animator.load(bundle, **options) as animator:
        if animator.note:
            reporter.line({"event": "note", "note": animator.note})
            if not reporter.as_json:
                typer.echo(f"note: {animator.note}", err=True)
        animation = animator.stream(**inputs, settings=animator.settings(**settings))
        fps, size = animation.fps, animation.size
        with VideoWriter(output, fps=fps, size=size, audio=animation.audio) as writer:
            for event in animation:
                reporter.show(event)
                for frame in event.frames if event.frames is not None else ():
                    writer.write(frame)
        resolved = animation.settings.to_dict()
        return {"frames": animation.frames, "fps": fps, "size": size, "settings": resolved}


def _on_server(
    server: str, inputs: Chosen, settings: Chosen, output: Path, reporter: Reporter
) -> dict[str, Any]:
    from .media.writer import VideoWriter
    from .service import Client

    motion, as_mp4 = inputs["motion"], output.suffix.lower() == ".mp4"
    if motion.is_dir():
        raise MotionError(
            f"{motion} is a folder.", remedy="Send a video or keypoints to a server.", field="motion"
        )
    if not as_mp4:  # refused now rather than after the work
        VideoWriter(output, fps=1, size=(64, 64)).abort()
    with Client(server) as client, tempfile.TemporaryDirectory() as folder:
        received = output if as_mp4 else Path(folder) / "received.mp4"
        animation = client.animate(**inputs, settings=settings, output=received)
        for event in animation:
            reporter.show(event)
        if not as_mp4:
            convert(received, output)
        done = animation.result().done.to_dict()
        return {name: value for name, value in done.items() if name not in ("event", "sequence")}


def convert(video: Path, output: Path) -> None:
    """Write a video in another format, sound included."""
    from .media.reader import VideoReader
    from .media.writer import VideoWriter

    reader = VideoReader(video)
    audio = video if reader.has_audio else None
    with VideoWriter(output, fps=reader.fps, size=reader.size, audio=audio) as writer:
        for _, frame in reader.frames():
            writer.write(frame)


@app.command()
def serve(
    bundle: BundleName = "tiny",
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 50051,
    device: Annotated[list[str] | None, typer.Option(help="One engine process for each; repeat.")] = None,
    threads: Threads = None,
    graphs: Graphs = "on",
    limit: LimitFlags = None,
    max_queue: Annotated[int, typer.Option(help="Jobs that may wait.")] = 32,
    grace: Annotated[float, typer.Option(help="Seconds that running jobs get when told to stop.")] = 30.0,
    folder: Annotated[Path | None, typer.Option(help="Where uploads and videos lie.")] = None,
    ready_file: Annotated[Path | None, typer.Option(help="Written with HOST:PORT once warm.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM certificate; with --tls-key.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM key.")] = None,
    tls_client_ca: Annotated[Path | None, typer.Option(help="Let in only clients signed by this.")] = None,
    json_logs: Annotated[bool, typer.Option(help="Log lines as JSON.")] = False,
) -> None:
    """Serve `mimicmotion.v1.AnimationService` until SIGTERM, then drain."""
    from .service import ServiceConfig, Tls
    from .service import serve as run

    with explained():
        if (tls_cert is None) != (tls_key is None):
            raise SettingsError("TLS needs both --tls-cert and --tls-key.", field="tls")
        tls = Tls(tls_cert, tls_key, tls_client_ca) if tls_cert and tls_key else None
        run(
            ServiceConfig(
                bundle=bundle,
                host=host,
                port=port,
                devices=tuple(device or ("auto",)),
                threads=threads,
                limits=parse_limits(limit),
                graphs=graphs == "on",
                tls=tls,
                max_queue=max_queue,
                grace=grace,
                folder=folder,
                ready_file=ready_file,
                json_logs=json_logs,
            )
        )


@app.command()
def pose(
    source: Annotated[Path, typer.Argument(help="Video or picture of a person.")],
    output: Annotated[Path, typer.Option(help="Keypoints: .npz or .json.")],
    estimator: Estimator = "mediapipe",
    stride: Annotated[int, typer.Option(help="Look at every n-th frame.")] = 1,
    threads: Threads = None,
    picture: Annotated[Path | None, typer.Option(help="Also write the poses, drawn side by side.")] = None,
    as_json: AsJson = False,
) -> None:
    """Find the keypoints of the person in a video or picture."""
    from .pose import estimate_poses

    with explained(as_json):
        poses = estimate_poses(source, estimator, stride=stride, threads=threads)
        poses.save(output)
        if picture is not None:
            _draw_sheet(poses, picture)
        seen = int((poses.body_score.max(axis=1) > 0).sum())
        values = {"output": str(output), "frames": len(poses), "frames_with_person": seen, "fps": poses.fps}
        if as_json:
            print(json.dumps({"event": "done", **values}))
        else:
            print(f"{output}: {len(poses)} frames at {poses.fps:g} per second, a person in {seen}")


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


def parse_limits(flags: list[str] | None) -> Limits:
    """Limits of NAME=NUMBER flags; raises `LimitError`."""
    names = [f.name for f in fields(Limits)]
    values: dict[str, int] = {}
    for flag in flags or ():
        name, _, number = flag.partition("=")
        if name not in names or not number.isdecimal():
            raise LimitError(f"limit {flag!r} is not NAME=NUMBER.", remedy=f"Names: {', '.join(names)}.")
        values[name] = int(number)
    return Limits(**values)


def main() -> None:
    """Entry point of `mimicmotion-trt`."""
    warnings.filterwarnings("ignore", module=r"PIL\.")  # what is wrong with a picture is said by our error
    app()
