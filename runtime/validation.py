"""Checked values of callers: pydantic checks configuration, and this module turns what it finds into our errors.

    @checked(SettingsError, prefix="settings.")
    @dataclass(frozen=True)
    class Settings:
        steps: Annotated[int, Whole(1, 1000)] = 25

Such a class stays a dataclass: `replace`, `fields` and `asdict` work on it, and so does
`pydantic.TypeAdapter(Settings).json_schema()`.
"""

from __future__ import annotations

import ast
import inspect
import math
import numbers
import re
import textwrap
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError, core_schema

from .errors import MimicMotionError, SettingsError

T = TypeVar("T")


class HasArray(Protocol):
    """A tensor of PyTorch, for instance."""

    def __array__(self) -> NDArray[Any]: ...


class HasArrayInterface(Protocol):
    """A picture of Pillow, for instance."""

    @property
    def __array_interface__(self) -> dict[str, Any]: ...


ArrayLike = NDArray[Any] | HasArray | HasArrayInterface
"""What numpy reads as it lies in memory."""


def checked(kind: type[MimicMotionError], *, prefix: str = "") -> Callable[[type[T]], type[T]]:
    """Check a frozen dataclass when it is built: a wrong value or an unknown key raises `kind`.

    The error's `field` is `prefix` and the field's name. Checks of several fields together belong into
    `__post_init__`, which may raise our errors itself.
    """

    def wrap(cls: type[T]) -> type[T]:
        config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
        made: Any = pydantic_dataclass(cls, frozen=True, config=config)
        init = made.__init__

        def build(self: Any, *args: Any, **values: Any) -> None:
            try:
                init(self, *args, **values)
            except ValidationError as error:
                known = [field.name for field in fields(made)]
                raise explain(error, kind, prefix=prefix, known=known) from None

        made.__init__ = build
        made.__doc__ = cls.__doc__
        made.__repr__ = cls.__repr__
        return made  # type: ignore[no-any-return]

    return wrap


def explain(
    error: ValidationError,
    kind: type[MimicMotionError],
    *,
    prefix: str = "",
    what: str = "",
    name: str = "",
    known: Collection[str] = (),
) -> MimicMotionError:
    """The first fault that pydantic found, as one of our errors.

    `what` names the thing that has the fault, `name` a value that stands alone.
    """
    first = error.errors(include_url=False)[0]
    path = ".".join(part for part in first["loc"] if isinstance(part, str)) or name
    message, remedy = _texts(first, path, known)
    return kind(f"{what}: {message}" if what else message, remedy=remedy, field=f"{prefix}{path}")


def _texts(fault: ErrorDetails, path: str, known: Collection[str]) -> tuple[str, str]:
    """(what is wrong, what to do)."""
    value, context = f"{fault['input']!r:.200}", fault.get("ctx", {})
    match fault["type"]:
        case "unexpected_keyword_argument" | "extra_forbidden":
            return f"unknown key {path!r}.", f"Known keys: {', '.join(known)}." if known else ""
        case "missing" | "missing_argument" | "missing_keyword_only_argument":
            return f"{path} is missing.", "Give it."
        case "literal_error":
            return f"{path} is {value}.", f"Choose one of {_choices(context['expected'])}."
        case "bool_type" | "bool_parsing":
            return f"{path} is {value}.", "Choose true or false."
        case "int_parsing" | "int_from_float":
            return f"{path} is {value}.", "Give a whole number."
        case "float_parsing":
            return f"{path} is {value}.", "Give a number."
    return f"{path} is {value}.", context.get("remedy") or f"{fault['msg']}."


def _choices(expected: str) -> str:
    """`a, b, c` from pydantic's `'a', 'b' or 'c'`."""
    return expected.replace("'", "").replace(" or ", ", ")


@dataclass(frozen=True)
class Number:
    """A number from `low` to `high` (None: any above); numpy's numbers are taken, bools and texts are not."""

    low: float
    high: float | None = None
    kind: ClassVar[Any]
    name: ClassVar[str]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema: Any = core_schema.int_schema if self.kind is int else core_schema.float_schema
        return core_schema.no_info_before_validator_function(self.check, schema(ge=self.low, le=self.high))

    @property
    def range(self) -> str:
        return f"{self.low} or more" if self.high is None else f"{self.low} to {self.high}"

    def check(self, value: Any) -> float:
        try:
            if not isinstance(value, numbers.Real) or isinstance(value, bool) or self.kind(value) != value:
                raise TypeError
            plain: float = self.kind(value)
        except (TypeError, ValueError, OverflowError):
            raise remedied(f"Give a {self.name} number, {self.range}.") from None
        if not math.isfinite(plain) or plain < self.low or (self.high is not None and plain > self.high):
            raise remedied(f"Choose {self.range}.")
        return plain


class Whole(Number):
    """A whole number; 4.0 is taken too."""

    kind, name = int, "whole"


class Real(Number):
    """A finite number; whole ones are taken too."""

    kind, name = float, "finite"


@dataclass(frozen=True)
class Pair:
    """Two values, from any iterable of two; with `repeat`, one number stands for both."""

    of: str
    """What a value is, for the error: `whole numbers`."""
    repeat: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.check, handler(source))

    def check(self, value: Any) -> Any:
        if value is None:
            return None
        if self.repeat and isinstance(value, numbers.Real):
            return value, value
        try:
            first, second = value
        except (TypeError, ValueError):
            raise remedied(f"Give a pair of {self.of}.") from None
        return first, second


def remedied(remedy: str) -> PydanticCustomError:
    """What a validator raises: the value is wrong, and `remedy` says what to do."""
    return PydanticCustomError("remedied", "{remedy}", {"remedy": remedy})


def known_keys(
    values: Mapping[str, Any], cls: Any, kind: type[MimicMotionError], *, prefix: str, noun: str
) -> None:
    """Raise `kind` for the first key that is no field of a dataclass; `noun` is what a key is called."""
    known = [field.name for field in fields(cls)]
    for key in values:
        if key not in known:
            raise kind(
                f"unknown {noun} {key!r}.",
                remedy=f"Known {noun}s: {', '.join(known)}.",
                field=f"{prefix}{key}",
            )


def field_docs(kind: type) -> dict[str, str]:
    """The docstrings that stand under the fields of a dataclass."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for field, following in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(following, ast.Expr):
            assert isinstance(field.target, ast.Name)
            docs[field.target.id] = " ".join(str(ast.literal_eval(following.value)).split())
    return docs


def check_array(values: Any, shape: tuple[int | None, ...], name: str) -> NDArray[np.float32]:
    """Finite float32 of a shape (None: any size of at least 1) that a caller gave; raises `SettingsError`."""
    try:
        given = np.asarray(values, np.float32)
    except (TypeError, ValueError, RuntimeError):  # text, ragged lists, tensors of a GPU or with a gradient
        given = np.empty(0, np.float32)
    fits = given.ndim == len(shape) and all(
        size == (wanted or max(size, 1)) for size, wanted in zip(given.shape, shape, strict=True)
    )
    if not fits or not np.isfinite(given).all():
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise SettingsError(
            f"{name} is {described(values)}{', and not finite' if fits else ''}.",
            remedy=f"Give finite float32 [{wanted}].",
            field=name,
        )
    return given


def plain_array(value: Any, kind: type[MimicMotionError], field: str) -> Any:
    """The array of what has one (`ArrayLike`); anything else as it is.

    Raises `kind` for one that numpy cannot read: a tensor of a GPU, or one with a gradient.
    """
    known = hasattr(value, "__array__") or hasattr(value, "__array_interface__")
    if isinstance(value, np.ndarray) or not known:
        return value
    try:
        return np.asarray(value)
    except (TypeError, RuntimeError, ValueError, OSError) as error:
        raise kind(
            f"{field} is a {type(value).__name__} that numpy cannot read: {error!s:.200}",
            remedy="Give it in the memory of the CPU, for a tensor `tensor.detach().cpu()`.",
            field=field,
        ) from error


def check_device(device: object, kind: type[MimicMotionError], field: str = "device") -> None:
    """Raise `kind` unless it is auto, cpu, cuda or cuda:N."""
    if not (isinstance(device, str) and re.fullmatch(r"auto|cpu|cuda(:\d+)?", device)):
        remedy = "Choose auto, cpu, cuda or cuda:1 (by number)."
        raise kind(f"device is {device!r}.", remedy=remedy, field=field)


def described_clip(frames: int, size: tuple[int, int], fps: float) -> str:
    """A clip for people: `72 frames of 576x1024, 15 fps, 4.8 s`; 0 frames are not known yet."""
    seconds = f", {frames / fps:.1f} s" if frames else ""
    return f"{frames or '?'} frame{'s' * (frames != 1)} of {size[0]}x{size[1]}, {fps:g} fps{seconds}"


def described(value: object) -> str:
    """What a caller gave, for an error: `uint8[3, 4]`, `a list`, `an int`, `None`."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    name = type(value).__name__
    return "None" if value is None else f"a{'n' * (name[0] in 'aeiouAEIO')} {name}"
