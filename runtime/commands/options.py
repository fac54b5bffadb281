"""Options that several commands have, and those that follow from `Settings`."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import fields
from itertools import pairwise
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
from pydantic import ValidationError

from ..errors import MimicMotionError, SettingsError
from ..flags import Given, HelpCommand, first_sentence, make_flag
from ..settings import Settings, parse_size
from ..validation import field_docs

PANELS = {
    "Input/Output": ("size", "fps", "frames", "stride", "start", "end", "seeds", "background", "preview"),
    "Motion": (
        "rescale", "framing", "person", "driver", "pose_strength", "pose_start", "pose_end", "draw", "face",
        "smooth", "hold", "confidence_floor", "confidence_gain",
    ),
    "Quality": ("steps", "guidance", "seed", "image_strength", "lora", "segment", "overlap", "noise_aug"),
    "Speed": ("schedule", "guidance_interval", "reuse_interval", "layout", "decode_chunk"),
    "Expert": (
        "fusion", "noise", "motion_bucket", "conditioning_fps", "sigma_min", "sigma_max", "canvas",
    ),
}  # fmt: skip
"""Every field of `Settings`, by the section of the help in which its flag stands."""

AsJson = Annotated[
    bool, typer.Option("--json", help="Print a line of JSON for each event and for the outcome.")
]
Estimator = Annotated[
    Literal["mediapipe", "dwpose"], typer.Option(help="What finds people; dwpose needs its files.")
]
Threads = Annotated[int | None, typer.Option(metavar="NUMBER", help="CPU threads; every core if not given.")]


class SettingsCommand(HelpCommand):
    """A command with flags of `Settings`: its help shows the defaults of the bundle that the line names."""

    panels = ("Input/Output", "Motion", "Quality", "Speed", "Server", "Expert")

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words = [word for arg in args for word in arg.split("=", 1)]
        ctx.meta["bundle"] = next((name for flag, name in pairwise(words) if flag == "--bundle"), "tiny")
        return super().parse_args(ctx, args)

    def wrong_value(self, name: str, value: object, fault: ValidationError) -> MimicMotionError:
        """Of a setting, with the range that it has."""
        try:
            if name in field_docs(Settings):
                Settings.from_dict({name: value})
        except SettingsError as error:
            return error
        return super().wrong_value(name, value, fault)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        from ..console import explained

        with explained():
            own = own_defaults(ctx.meta["bundle"])
        params: list[Any] = self.get_params(ctx)
        for param in params:
            if param.name in own:
                param.help = f"{param.help} [default: {own[param.name]}]"
        super().format_options(ctx, formatter)


def own_defaults(bundle: str) -> dict[str, str]:
    """What a bundle does where a setting is not given, by the setting's name, as it would be typed."""
    from ..bundles import find_bundle
    from ..engines import Manifest
    from ..settings import make_settings

    manifest = Manifest.load(find_bundle(bundle))
    settings = make_settings(manifest.defaults, {})
    values = {**settings.to_dict(), "size": " or ".join("x".join(map(str, size)) for size in manifest.sizes)}
    return {name: as_typed(value) for name, value in values.items() if value not in (None, (), "")}


def as_typed(value: Any) -> str:
    """A setting's value as a user would type it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple | list):
        return ("," if isinstance(value[0], str) else " ").join(map(as_typed, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def settings_flags() -> list[inspect.Parameter]:
    """A flag for each field of `Settings`, panel by panel: type, choices and help are the field's own."""
    known = [field.name for field in fields(Settings)]
    named = [(panel, name) for panel, names in PANELS.items() for name in names if name in known]
    others = [("Expert", name) for name in known if name not in {name for _, name in named}]
    hints, docs = get_type_hints(Settings), field_docs(Settings)
    return [_settings_flag(name, hints[name], docs[name], panel) for panel, name in (*named, *others)]


def _settings_flag(name: str, hint: Any, doc: str, panel: str) -> inspect.Parameter:
    plain = next((kind for kind in get_args(hint) if get_origin(kind) is tuple), hint)
    kinds, metavar = get_args(plain), None
    if kinds == (int, int):
        hint, metavar = str, "WIDTHxHEIGHT"
    elif kinds == (float, float):
        metavar = "FROM TO"
    elif kinds == (str, ...):
        hint, metavar = list[str], "NAME[:STRENGTH]"
    elif kinds[1:] == (...,):  # several of a few words, in one text
        hint, metavar = str, ",".join(get_args(kinds[0])) or "NUMBER,NUMBER"
    elif hint in (int, int | None, float, float | None):
        metavar = "NUMBER"
    elif name in ("person", "driver"):
        metavar = "largest|left|2|…"
    return make_flag(name, hint, help=first_sentence(doc).replace("`", ""), panel=panel, metavar=metavar)


def explain_setting(name: str | None) -> None:
    """Print all that there is to say of a setting, and end."""
    if name is None:
        return
    docs, field = field_docs(Settings), name.lstrip("-").replace("-", "_")
    if field not in docs:
        raise typer.BadParameter(f"there is no setting {name!r}; choose one of {', '.join(docs)}.")
    print(f"{field}: {docs[field]}")
    raise typer.Exit


def read_settings(chosen: Given) -> Given:
    """The settings that are named, sizes read from their text; raises `SettingsError` if they cannot be."""
    values = {name: value for name, value in chosen.items() if value != []}
    values |= {"size": parse_size(chosen["size"])} if "size" in chosen else {}
    Settings.from_dict(values)
    return values


def refuse(given: Iterable[str], where: str, remedy: str) -> None:
    """Raise `SettingsError` if any flag of these names is given: it would mean nothing `where` it is."""
    for name in given:
        flag = f"--{name.replace('_', '-')}"
        raise SettingsError(f"{flag} means nothing {where}.", remedy=remedy, field=name)
