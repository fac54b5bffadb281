"""Options that several commands have, and those that follow from `Settings`."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Annotated, Literal, get_type_hints

import typer

from ..console import Given, make_flag
from ..settings import Settings, parse_size
from ..validation import field_docs

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


def settings_flags() -> list[inspect.Parameter]:
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
        words = docs[f.name] + ("" if f.default is None else f" [{shown}]")
        flags.append(make_flag(f.name, hint, help=words, panel=PANEL, metavar=metavar))
    return flags


def read_settings(chosen: Given) -> Given:
    """The settings that are named, sizes read from their text; raises `SettingsError` if they cannot be."""
    values = chosen | ({"size": parse_size(chosen["size"])} if "size" in chosen else {})
    Settings.from_dict(values)
    return values
