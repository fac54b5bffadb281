"""Commands and their flags: one for each field of a model, and a help text that fits on the screen."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from typer.core import TyperCommand, TyperGroup

from .console import explained
from .errors import InputError, MimicMotionError
from .validation import explain

Given = dict[str, Any]
"""The flags that the command line names, by their names."""
Command = Callable[..., None]
WORDS = {
    "str": "TEXT",
    "int": "NUMBER",
    "int range": "NUMBER",
    "float": "NUMBER",
    "float range": "NUMBER",
    "file": "FILE",
    "path": "FILE",
}
"""Plain words for the types of values."""
FLAG_WIDTH = 37
"""Columns for a flag and its value; the text of a wider one begins on the next line."""
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 120}


# ---- help ----


class HelpCommand(TyperCommand):
    """A command whose help has a section for each panel, a line for each flag, and the docstring's examples."""

    panels: tuple[str, ...] = ()
    """Those that come first, in their order."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As Typer's; a value of the wrong type is one of our errors."""
        as_json = "--json" in args  # the parser empties the list
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            fault = error.__cause__
            if not isinstance(fault, ValidationError) or error.param is None or not error.param.name:
                raise
            if (own := fault.errors()[0]).get("ctx", {}).get("error"):  # a check of a flag's own
                error.message = error.message.removeprefix("Value error, ")
                raise
            with explained(as_json):
                raise self.wrong_value(error.param.name, own["input"], fault) from None

    def wrong_value(self, name: str, value: object, fault: ValidationError) -> MimicMotionError:
        """The error for a flag's value that pydantic does not take."""
        return explain(fault, InputError, name=name)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """What has a name of its own stands in the usage as it is."""
        places = [param for param in self.params if param.param_type_name == "argument"]
        pieces = [param.metavar or str(param.name).upper() for param in places]
        return ["[OPTIONS]", *pieces] if pieces else super().collect_usage_pieces(ctx)

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """What the command does; its examples come at the end."""
        text, _ = split_examples(self.help or "")
        _write_text(formatter, text)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The flags, panel by panel, in the order in which panels are first named."""
        write_flags(self, ctx, formatter, self.panels)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _write_examples(self.help or "", formatter)


class HelpGroup(TyperGroup):
    """A group of commands with the same kind of help: its commands first, by their panels."""

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        text, _ = split_examples(self.help or "")
        _write_text(formatter, text)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            if not command.hidden:
                told = " ".join(split_examples(command.help or "")[0].split())
                panel = command.rich_help_panel or "Commands"
                panels.setdefault(panel, []).append((name, first_sentence(told)))
        width = max(len(name) for rows in panels.values() for name, _ in rows)
        for panel, rows in panels.items():
            with formatter.section(_title(panel)):
                formatter.write_dl([(name.ljust(width), text) for name, text in rows])
        write_flags(self, ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _write_examples(self.help or "", formatter)


class App(typer.Typer):
    """A Typer app whose commands and groups have this help, `-h` too."""

    def __init__(self, *, cls: type[TyperGroup] = HelpGroup, **options: Any) -> None:
        options = {"add_completion": False, "pretty_exceptions_enable": False, **options}
        super().__init__(cls=cls, rich_markup_mode=None, context_settings=CONTEXT, **options)

    def command(  # type: ignore[override]
        self, name: str | None = None, *, cls: type[TyperCommand] | None = None, **options: Any
    ) -> Callable[[Command], Command]:
        """As Typer's, with `HelpCommand` unless another class is given."""
        options.setdefault("context_settings", CONTEXT)
        return super().command(name, cls=cls or HelpCommand, **options)


def split_examples(text: str) -> tuple[str, list[str]]:
    """A docstring without its paragraphs of command lines, and these lines."""
    told, examples = [], []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        lines = [line.strip() for line in paragraph.splitlines()]
        if all(line.startswith("mimicmotion-trt ") for line in lines):
            examples += lines
        else:
            told.append(paragraph)
    return "\n\n".join(told), examples


def write_flags(command: Any, ctx: Any, formatter: Any, first: tuple[str, ...] = ()) -> None:
    """A section for each panel, with a line for each flag."""
    panels: dict[str, list[tuple[str, str]]] = {panel: [] for panel in first}
    for param in command.get_params(ctx):
        if not param.hidden:
            panel = getattr(param, "rich_help_panel", None) or "Options"
            text = plain_help(param.get_help_record(ctx)[1] or "")
            panels.setdefault(panel, []).append((flag_names(param, ctx), text))
    rows = [row for rows in panels.values() for row in rows]
    width = max((len(names) for names, _ in rows if len(names) < FLAG_WIDTH), default=0)
    for panel, rows in panels.items():
        with formatter.section(_title(panel)):
            formatter.write_dl([(names.ljust(width), text) for names, text in rows], width)


def flag_names(param: Any, ctx: Any) -> str:
    """`-o, --output FILE`: short names first, then the kind of value in plain words, or its choices."""
    if param.param_type_name == "argument":
        return str(param.metavar or param.name.upper())
    names = ", ".join(sorted(param.opts, key=len))
    if param.secondary_opts:
        names = f"--[no-]{names.removeprefix('--')}"
    if param.is_flag or param.count:
        return names
    kind = param.metavar or param.display_type(ctx).strip("<>").removeprefix("list[").removesuffix("]")
    return f"{names} {WORDS.get(kind, kind)}"


def plain_help(text: str) -> str:
    """Help as Typer words it, its ranges in words, without the defaults of flags that are off."""
    text = re.sub(r"([\d.]+)<=x<=([\d.]+)", r"\1 to \2", text)
    text = re.sub(r"x>=([\d.]+)", r"\1 or more", text)
    text = re.sub(r"(\[default: [\d.]+)\.0(?=[;\]])", r"\1", text)
    text = re.sub(r" +\[default: no-[\w-]+\]", "", text)
    return re.sub(r"(?<!\.)\.?( +\[|$)", lambda end: end[1] and " [", text)


def _title(panel: str) -> str:
    return str(typer.style(panel, bold=True))


def _write_text(formatter: Any, text: str) -> None:
    formatter.write_paragraph()
    with formatter.indentation():
        formatter.write_text(text)


def _write_examples(text: str, formatter: Any) -> None:
    """As they stand, so that they can be copied."""
    if examples := split_examples(text)[1]:
        with formatter.section(_title("Examples")):
            for line in examples:
                formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


def first_sentence(text: str) -> str:
    """Of a docstring, what fits into a line of help: up to the first full stop or semicolon."""
    return re.split(r"(?<=\.)\s|;\s", text, maxsplit=1)[0].removesuffix(".")


# ---- flags that follow a model ----


def make_flag(
    name: str, hint: Any, *words: str, help: str, panel: str | None = None, **shown: Any
) -> inspect.Parameter:
    """A flag that is None unless it is given; `words` are its names if `--name` is not the only one."""
    option = typer.Option(*words, help=help, rich_help_panel=panel, show_default=False, **shown)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[hint | None, option]
    )


def with_flags(parameter: str, flags: list[inspect.Parameter]) -> Callable[[Command], Command]:
    """Decorates a command: its `parameter`, a `Given`, becomes these flags."""

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        own = [known for name, known in signature.parameters.items() if name != parameter]

        def run(**values: Any) -> None:
            given = {flag.name: values.pop(flag.name) for flag in flags}
            given = {name: value for name, value in given.items() if value is not None}
            command(**values, **{parameter: given})

        parameters = [*own, *flags]
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {known.name: known.annotation for known in parameters}
        run.__doc__, run.__name__ = command.__doc__, command.__name__
        return run

    return decorate
