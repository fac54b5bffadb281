"""Every field of `Settings` as a command-line flag, made from the dataclass itself."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any, get_type_hints

import typer

from .console import explained
from .settings import Settings, parse_size

PANEL = "Settings (the bundle's own unless given)"
Chosen = dict[str, Any]
"""The settings that the command line names."""


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameter `chosen` becomes one flag for each field of `Settings`."""
    signature = inspect.signature(command, eval_str=True)
    own = [parameter for name, parameter in signature.parameters.items() if name != "chosen"]
    names = [f.name for f in fields(Settings)]

    def run(**values: Any) -> None:
        chosen = {name: value for name in names if (value := values.pop(name)) is not None}
        if "size" in chosen:
            with explained(bool(values.get("as_json"))):
                chosen["size"] = parse_size(chosen["size"])
        command(**values, chosen=chosen)

    parameters = own + _parameters()
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__doc__, run.__name__ = command.__doc__, command.__name__
    return run


def field_docs(kind: type) -> dict[str, str]:
    """The docstrings that stand under the fields of a dataclass."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for field, following in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(following, ast.Expr):
            assert isinstance(field.target, ast.Name)
            docs[field.target.id] = str(ast.literal_eval(following.value))
    return docs


def _parameters() -> list[inspect.Parameter]:
    hints, docs = get_type_hints(Settings), field_docs(Settings)
    parameters = []
    for f in fields(Settings):
        help_text = docs[f.name] + ("" if f.default is None else f" [{_plain(f.default)}]")
        metavar = {"guidance": "MIN MAX", "guidance_interval": "LOW HIGH", "size": "WIDTHxHEIGHT"}.get(f.name)
        option = typer.Option(help=help_text, rich_help_panel=PANEL, metavar=metavar, show_default=False)
        annotation = Annotated[_flag_type(f.name, hints[f.name]), option]  # type: ignore[valid-type]
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(f.name, kind, default=None, annotation=annotation))
    return parameters


def _flag_type(name: str, hint: Any) -> Any:
    if name == "size":
        return str | None
    if name in ("guidance", "guidance_interval"):
        return tuple[float, float] | None
    if name == "rescale":
        return bool | None
    for kind in (int, float):
        if hint in (kind, kind | None):
            return kind | None
    return str | None


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
