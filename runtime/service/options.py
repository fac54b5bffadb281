"""What `ServiceConfig` is made from: flags, the environment, a TOML file. The first that names a value decides it.

A nested value is one option: `tls.certificate` of the model is `tls_certificate`, in the environment
`MIMICMOTION_SERVE_TLS_CERTIFICATE`, and `certificate` in the file's table `[tls]`.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

from ..errors import ServiceError
from ..validation import field_docs
from .config import ServiceConfig, load_animator
from .tokens import read_tokens

PREFIX = "MIMICMOTION_SERVE_"
FILE = f"{PREFIX}CONFIG"
"""Names the TOML file, as the flag --config does."""
NOT_OPTIONS = ("load",)
Values = dict[str, Any]
"""Of options, by their names."""


@dataclass(frozen=True)
class Option:
    """One value that can be chosen."""

    path: tuple[str, ...]
    """Where it lies in the model."""
    hint: Any
    """Its type."""
    default: Any
    doc: str

    @property
    def name(self) -> str:
        return "_".join(self.path)

    def parse(self, text: str) -> Any:
        """A value of the environment: a text is taken as it is, a list is cut at commas, all else is TOML."""
        kinds = set(get_args(self.hint) or (self.hint,)) - {type(None)}
        if kinds <= {str, Path}:
            return text
        if get_origin(self.hint) is tuple:
            return [part.strip() for part in text.split(",")]
        try:
            return tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            return text  # what is wrong with it is told by the model


def list_options(model: Any = ServiceConfig, path: tuple[str, ...] = ()) -> list[Option]:
    """Every option, in the model's order."""
    hints, docs, found = get_type_hints(model), field_docs(model), []
    for field in fields(model):
        hint, here = hints[field.name], (*path, field.name)
        nested = next((kind for kind in (hint, *get_args(hint)) if is_dataclass(kind)), None)
        if nested is not None:
            found += list_options(nested, here)
        elif field.name not in NOT_OPTIONS:
            found.append(Option(here, hint, _default(field), docs.get(field.name, "")))
    return found


def _default(field: Field[Any]) -> Any:
    return None if field.default is MISSING else field.default


def read_file(path: Path) -> Values:
    """The options of a TOML file. Raises `ServiceError` for a file that is none and for keys that are not known."""
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise _refused(f"{path} cannot be read: {error.strerror}.", "Check the path.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _refused(f"{path} is no TOML file: {error}.", "Check it.") from error
    known = {option.path: option.name for option in list_options()}
    tables = {path[0] for path in known if len(path) > 1}
    values = {}
    for key, value in content.items():
        inner = value.items() if key in tables and isinstance(value, dict) else None
        for where, each in (
            [((key,), value)] if inner is None else [((key, name), each) for name, each in inner]
        ):
            if where not in known:
                names = ", ".join(".".join(path) for path in known)
                raise _refused(f"{path}: unknown key {'.'.join(where)!r}.", f"Known keys: {names}.")
            values[known[where]] = each
    return values


def read_environment(environment: Mapping[str, str] = os.environ) -> Values:
    """The options of variables; raises `ServiceError` for one with our prefix that is not known."""
    known = {f"{PREFIX}{option.name.upper()}": option for option in list_options()}
    values = {}
    for variable, text in environment.items():
        if not variable.startswith(PREFIX) or variable == FILE:
            continue
        if variable not in known:
            raise _refused(f"unknown variable {variable}.", f"Known variables: {', '.join(known)}.")
        values[known[variable].name] = known[variable].parse(text)
    return values


def _refused(message: str, remedy: str) -> ServiceError:
    return ServiceError(message, remedy=remedy, field="config")


def make_config(
    flags: Values, file: Path | None = None, environment: Mapping[str, str] = os.environ
) -> ServiceConfig:
    """The configuration from all three sources; raises `ServiceError` for values that cannot work."""
    named = file or (Path(environment[FILE]) if environment.get(FILE) else None)
    values = (read_file(named) if named is not None else {}) | read_environment(environment) | flags
    nested: dict[str, Any] = {}
    for option in list_options():
        if option.name in values:
            table = nested
            for part in option.path[:-1]:
                table = table.setdefault(part, {})
            table[option.path[-1]] = values[option.name]
    return ServiceConfig(**nested)


def in_force(config: ServiceConfig) -> dict[str, Any]:
    """Every option's value, as JSON takes it and a file may give it; without passwords."""
    shown: dict[str, Any] = {}
    for option in list_options():
        value: Any = config
        for part in option.path:
            value = getattr(value, part) if value is not None else None
        table = shown
        for part in option.path[:-1]:
            table = table.setdefault(part, {})
        table[option.path[-1]] = _plain(value)
    return shown


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, str) and "@" in value and urlsplit(value).password:
        return value.replace(f":{urlsplit(value).password}@", ":…@")
    return list(value) if isinstance(value, tuple) else value


def check_files(config: ServiceConfig) -> None:
    """Raise what would keep a server of this configuration from starting: the first file that cannot be used."""
    if config.tls is not None:
        config.tls.credentials()
    if config.tokens is not None:
        read_tokens(config.tokens)
    store = config.store and next(
        place for place in (config.store, *config.store.absolute().parents) if place.exists()
    )
    ready = config.ready_file and config.ready_file.parent
    for name, folder in (("store", store), ("folder", config.folder), ("ready_file", ready)):
        if folder is not None and not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
            raise ServiceError(
                f"{folder} is no folder that can be written.",
                remedy="Make it, or choose another.",
                field=name,
            )
    if config.load is load_animator:
        from ..bundles import load_bundle
        from ..lora import Loras

        Loras.open(load_bundle(config.bundle), config.loras)
