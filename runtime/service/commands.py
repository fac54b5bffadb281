"""The commands of the service: `serve`, `new-token`, `jobs`; and how commands reach a server."""

from __future__ import annotations

import inspect
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..console import Given, Reporter, explained, make_flag, with_flags
from ..errors import LimitError, ServiceError
from ..limits import Limits
from .options import Option, check_files, in_force, list_options, make_config
from .tokens import add_token

if TYPE_CHECKING:
    from ..service import Client
    from .wire import JobInfo

NAMES = {"devices": "--device", "tls_certificate": "--tls-cert"}
"""Flags that are not called like their option."""
TOKEN_VARIABLE = "MIMICMOTION_TOKEN"


# ---- flags ----


def serve_flags() -> list[inspect.Parameter]:
    """One for each option of `ServiceConfig`; all limits together are `--limit`."""
    limit = "NAME=NUMBER, for instance frames=500; names: " + ", ".join(limit_names())
    flags = [_serve_flag(option) for option in list_options() if option.path[0] != "limits"]
    return [*flags, make_flag("limit", list[str], help=f"{limit}.")]


def _serve_flag(option: Option) -> inspect.Parameter:
    word = NAMES.get(option.name, f"--{option.name.replace('_', '-')}")
    hint, default = option.hint, option.default
    if option.name == "devices":
        hint, default = list[str], "auto"
    elif option.name == "graphs":
        hint, default = Literal["on", "off"], "on"
    elif hint is bool:
        word = f"{word}/--no-{word[2:]}"
    elif option.name == "bundle":
        hint = str
    shown = "" if default in (None, "") or hint is bool else f" [{default}]"
    return make_flag(option.name, hint, word, help=option.doc + shown)


def limit_names() -> list[str]:
    return [option.path[-1] for option in list_options(Limits)]


def limit_values(flags: list[str] | None) -> dict[str, int]:
    """NAME=NUMBER flags as numbers by name; raises `LimitError`."""
    values: dict[str, int] = {}
    for flag in flags or ():
        name, _, number = flag.partition("=")
        if name not in limit_names() or not number.isdecimal():
            raise LimitError(
                f"limit {flag!r} is not NAME=NUMBER.", remedy=f"Names: {', '.join(limit_names())}."
            )
        values[name] = int(number)
    return values


def connection_flags(panel: str = "Connection") -> list[inspect.Parameter]:
    """How a server is reached."""
    return [
        make_flag("tls", bool, "--tls", help="Speak TLS and trust this system's authorities.", panel=panel),
        make_flag(
            "tls_ca", Path, help="PEM file of the authority behind the server; implies --tls.", panel=panel
        ),
        make_flag(
            "tls_cert", Path, help="PEM file of this client's certificate; implies --tls.", panel=panel
        ),
        make_flag("tls_key", Path, help="PEM file of its key.", panel=panel),
        make_flag(
            "token_file", Path, help=f"File with the token; ${TOKEN_VARIABLE} if not given.", panel=panel
        ),
    ]


def connect(server: str, connection: Given) -> Client:
    """A client by the flags of `connection_flags`. Raises `ServiceError`."""
    from ..service import Client, ClientTls

    tls = None
    if any(name.startswith("tls") for name in connection):
        tls = ClientTls(*(connection.get(name) for name in ("tls_ca", "tls_cert", "tls_key")))
    token = os.environ.get(TOKEN_VARIABLE, "")
    if (file := connection.get("token_file")) is not None:
        try:
            token = file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ServiceError(
                f"{file} cannot be read: {error}.", remedy="Check it.", field="token"
            ) from error
    return Client(server, tls=tls, token=token.strip())


# ---- serve ----


@with_flags("chosen", serve_flags())
def serve(
    *,
    config: Annotated[Path | None, typer.Option(help="TOML file of options, named like the flags.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Say what is in force, and do not serve.")] = False,
    chosen: Given,
) -> None:
    """Serve `mimicmotion.v1.AnimationService` until SIGTERM, then drain.

    Options come from flags, then from MIMICMOTION_SERVE_… in the environment, then from the file.
    """
    from ..service import serve as run

    with explained():
        limits = {f"limits_{name}": number for name, number in limit_values(chosen.pop("limit", [])).items()}
        made = make_config({name: value for name, value in chosen.items() if value != []} | limits, config)
        if not check:
            run(made)
            return
        check_files(made)
        print(json.dumps(in_force(made), indent=2))


def new_token(
    name: Annotated[str, typer.Argument(help="Whose token it is.")],
    tokens: Annotated[Path, typer.Option(help="The file of tokens that serve reads.")],
    admin: Annotated[bool, typer.Option("--admin", help="May see and cancel everybody's jobs.")] = False,
) -> None:
    """Make a bearer token, add its hash to a file of tokens, and print it: this once."""
    with explained():
        print(add_token(tokens, name, admin=admin))


# ---- jobs ----

jobs = typer.Typer(no_args_is_help=True, help="List, watch and cancel the jobs of a server.")
Server = Annotated[str, typer.Option(help="HOST:PORT of the server.")]
Job = Annotated[str, typer.Argument(help="Its name, as `accepted` told it.")]
AsJson = Annotated[bool, typer.Option("--json", help="One line of JSON for each job or event.")]
HERE = "localhost:50051"


@jobs.command("list")
@with_flags("connection", connection_flags())
def list_jobs(*, server: Server = HERE, as_json: AsJson = False, connection: Given) -> None:
    """List the jobs that a server knows, newest first."""
    with explained(as_json), connect(server, connection) as client:
        for info in client.list():
            _show(info, as_json)


@jobs.command()
@with_flags("connection", connection_flags())
def watch(
    job: Job,
    *,
    server: Server = HERE,
    output: Annotated[Path | None, typer.Option(help="Write the video there (.mp4).")] = None,
    as_json: AsJson = False,
    connection: Given,
) -> None:
    """Follow a job from its beginning to its end."""
    with explained(as_json), connect(server, connection) as client, Reporter(as_json) as reporter:
        for event in client.watch(job, output=output):
            reporter.show(event)


@jobs.command()
@with_flags("connection", connection_flags())
def cancel(job: Job, *, server: Server = HERE, as_json: AsJson = False, connection: Given) -> None:
    """Stop a job: at once while it waits, within a denoising step while it runs."""
    with explained(as_json), connect(server, connection) as client:
        _show(client.cancel(job), as_json)


def _show(info: JobInfo, as_json: bool) -> None:
    if as_json:
        values: dict[str, Any] = asdict(info) | {"settings": info.settings.to_dict()}
        for name in ("progress", "done"):
            event = getattr(info, name)
            values[name] = None if event is None else event.to_dict()
        print(json.dumps(values, default=str))
        return
    about = f"{info.progress}" if info.progress else str(info.error or "")
    pending = " (stops soon)" if info.cancel_pending else ""
    print(f"{info.job}  {info.state}{pending}  {info.request_id} {about}".rstrip())
