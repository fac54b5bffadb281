"""The command line: `mimicmotion-trt animate | serve | jobs | new-token | pose | inspect | doctor`."""

from __future__ import annotations

import io
import sys
import warnings
from typing import Annotated

import typer

from . import __version__
from .commands.animate import animate
from .commands.doctor import doctor
from .commands.inspect import inspect
from .commands.pose import pose
from .service.commands import jobs, new_token, serve

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
)

for command in (serve, animate, pose, inspect, doctor):
    app.command()(command)
app.command("new-token")(new_token)
app.add_typer(jobs, name="jobs")


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """One picture of a person and a motion in, a video of that person doing that motion out."""
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
