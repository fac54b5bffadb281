"""The command line: `mimicmotion-trt animate`, `pose`, `serve`, `jobs`, `new-token`, `inspect`, `doctor`, and those
of other rooms, which are imported when they are run: `build`, `prepare`, `train`, `evaluate`."""

from __future__ import annotations

import importlib
import importlib.util
import io
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from . import __version__
from .commands.animate import animate
from .commands.doctor import doctor
from .commands.inspect import inspect
from .commands.options import SettingsCommand
from .commands.pose import pose
from .flags import App, HelpGroup
from .service.commands import jobs, new_token, serve

ANIMATE, SERVE, BUNDLES, TRAIN = "Animate", "Serve", "Bundles", "Train"


@dataclass(frozen=True)
class Room:
    """A command of a room that this one does not import: it is loaded when it is run, and may need an extra."""

    module: str
    """Under the package; its `app` is the command."""
    extra: str
    needs: tuple[str, ...]
    """Libraries of the extra without which it cannot begin; its help needs none of them."""
    panel: str
    summary: str

    def load(self) -> TyperCommand:
        """The command itself."""
        with self._explained():
            module = importlib.import_module(f"{__package__}.{self.module}")
        command: Any = typer.main.get_command(module.app)
        run = command.callback

        def guarded(**values: Any) -> Any:
            with self._explained():
                for library in self.needs:
                    if importlib.util.find_spec(library) is None:
                        raise ModuleNotFoundError(name=library)
                getattr(module, "tune_environment", lambda: None)()  # not where it is only looked at
                return run(**values)

        command.callback = guarded
        return command  # type: ignore[no-any-return]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """A library that is not installed is named with what installs it."""
        try:
            yield
        except ModuleNotFoundError as error:
            library = (error.name or "").partition(".")[0]
            if library == __package__:
                raise
            told = f"{library} is not installed. Run: pip install 'mimicmotion-trt[{self.extra}]'"
            print(f"error: {told}", file=sys.stderr)
            raise SystemExit(1) from None


ROOMS = {
    "build": Room(
        "export.build_engines",
        "export",
        ("torch", "diffusers", "onnx"),
        BUNDLES,
        "Make a bundle of engines from a checkpoint.",
    ),
    "prepare": Room("training.prepare", "train", (), TRAIN, "Cut recordings into a training set."),
    "train": Room(
        "training.train",
        "train",
        ("torch", "accelerate", "yaml"),
        TRAIN,
        "Train a stage of the model, or a LoRA.",
    ),
    "evaluate": Room(
        "training.evaluate", "train", ("torch",), TRAIN, "Compare a bundle's videos with the truth."
    ),
}


class Commands(HelpGroup):
    """The commands of this room, and those of `ROOMS`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        room = ROOMS.get(name or "")
        return name, command if room is None else room.load(), rest


app = App(cls=Commands, no_args_is_help=True, add_completion=True)
app.command(rich_help_panel=ANIMATE, cls=SettingsCommand)(animate)
app.command(rich_help_panel=ANIMATE)(pose)
app.command(rich_help_panel=SERVE)(serve)
app.add_typer(jobs, name="jobs", rich_help_panel=SERVE)
app.command("new-token", rich_help_panel=SERVE)(new_token)
for name, room in ROOMS.items():
    app.command(name, rich_help_panel=room.panel, help=room.summary)(lambda: None)
app.command(rich_help_panel=BUNDLES)(inspect)
app.command(rich_help_panel=BUNDLES)(doctor)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """One picture of a person and a motion in, a video of that person doing that motion out.

    mimicmotion-trt animate person.jpg dance.mp4 -o out.mp4
    mimicmotion-trt COMMAND --help
    """
    if show:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point of `mimicmotion-trt`."""
    for stream in (sys.stdout, sys.stderr):  # a name may have letters that the terminal cannot show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.filterwarnings("ignore", module=r"PIL\.")  # what is wrong with a picture is said by our error
    app()
