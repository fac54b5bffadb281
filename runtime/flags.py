"""Flags of the command line that follow a model: one for each field, with the field's type and words."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

Given = dict[str, Any]
"""The flags that the command line names, by their names."""
Command = Callable[..., None]


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
