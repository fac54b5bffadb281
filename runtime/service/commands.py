"""The commands of the service: `serve`, `new-token`, `jobs`; and how commands reach a server."""

from __future__ import annotations

import inspect
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer

from ..console import Reporter, explained
from ..errors import LimitError, ServiceError
from ..events import Done
from ..flags import App, Given, first_sentence, make_flag, with_flags
from ..limits import Limits
from .options import Option, check_files, in_force, list_options, make_config
from .tokens import PRIORITIES, add_token

if TYPE_CHECKING:
    from ..service import Client
    from .wire import JobInfo

NAMES = {"devices": "--device", "tls_certificate": "--tls-cert"}
"""Flags that are not called like their option."""
KINDS = {"bundle": "NAME", "host": "HOST", "traces": "URL"}
"""Of texts: what stands for them in the help."""
TOKEN_VARIABLE = "MIMICMOTION_TOKEN"
LOAD, RUNNING = "How much it takes", "Running"
PANELS = {
    "Engines": ("bundle", "lora", "devices", "threads", "graphs"),
    "Who may call": ("host", "port", "tls", "tokens", "reflection"),
    LOAD: (
        "max_queue", "max_queue_seconds", "client_queue", "max_calls", "client_calls", "upload_patience",
        "upload_rate",
    ),
    "What is kept": ("store", "folder", "keep", "checkpoint_share"),
    RUNNING: ("metrics_port", "traces", "json_logs", "ready_file", "grace", "engine_patience"),
}  # fmt: skip
"""The options of `serve`, by the section of its help."""


# ---- flags ----


def serve_flags() -> list[inspect.Parameter]:
    """One for each option of `ServiceConfig`, panel by panel; all limits together are `--limit`."""
    options = [option for option in list_options() if option.path[0] != "limits"]
    options.sort(key=lambda option: list(PANELS).index(_panel(option)))
    limit = make_flag(
        "limit",
        list[str],
        help="For instance frames=500; repeat. A wrong name lists all.",
        panel=LOAD,
        metavar="NAME=NUMBER",
    )
    return [*map(_serve_flag, options), limit]


def _panel(option: Option) -> str:
    return next((panel for panel, names in PANELS.items() if option.path[0] in names), RUNNING)


def _serve_flag(option: Option) -> inspect.Parameter:
    word = NAMES.get(option.name, f"--{option.name.replace('_', '-')}")
    hint, default, metavar = option.hint, option.default, None
    if option.name == "devices":
        hint, default, metavar = list[str], "auto", "NAME"
    elif option.name == "lora":
        hint, default, metavar = list[str], "", "NAME=FILE"
    elif option.name == "graphs":
        hint, default = Literal["on", "off"], "on"
    elif hint is bool:
        word = f"{word}/--no-{word[2:]}"
        default = "on" if default else "off"
    elif option.name in KINDS:
        hint, metavar = str, KINDS[option.name]
    elif Path in (hint, *get_args(hint)):
        metavar = "FILE" if option.name not in ("store", "folder") else "FOLDER"
    elif hint is not str and get_origin(hint) is not Literal:
        metavar = "NUMBER"
    text = first_sentence(option.doc) + ("" if default in (None, "") else f" [default: {default}]")
    return make_flag(option.name, hint, word, help=text, panel=_panel(option), metavar=metavar)


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

    def flag(name: str, hint: Any, help: str, **more: Any) -> inspect.Parameter:
        return make_flag(name, hint, *more.pop("words", ()), help=help, panel=panel, **more)

    return [
        flag("tls", bool, "Speak TLS and trust this system's authorities.", words=["--tls"]),
        flag("tls_ca", Path, "Certificate of the server's authority; implies --tls.", metavar="FILE"),
        flag("tls_cert", Path, "Certificate of this client; implies --tls.", metavar="FILE"),
        flag("tls_key", Path, "Its key.", metavar="FILE"),
        flag("token_file", Path, f"File with the token; else ${TOKEN_VARIABLE}.", metavar="FILE"),
        flag("patience", float, "How long to try again after the server went away [60].", metavar="SECONDS"),
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
    more = {name: connection[name] for name in ("patience",) if name in connection}
    return Client(server, tls=tls, token=token.strip(), **more)


# ---- serve ----


@with_flags("chosen", serve_flags())
def serve(
    *,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TOML file of options, named like the flags.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Say what is in force, and do not serve.")] = False,
    chosen: Given,
) -> None:
    """Serve animations over gRPC until Ctrl-C or SIGTERM; running jobs are finished first.

    Options come from flags, then from MIMICMOTION_SERVE_… in the environment, then from the file.

        mimicmotion-trt serve --bundle tiny --store jobs
        mimicmotion-trt serve --host 0.0.0.0 --tls-cert server.pem --tls-key server.key --tokens tokens
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
    priority: Annotated[int, typer.Option(help="The highest priority of its jobs.")] = PRIORITIES,
) -> None:
    """Make a token for a client of a server. It is printed this once; the file has its hash.

    mimicmotion-trt new-token alice --tokens tokens
    mimicmotion-trt new-token root --admin --tokens tokens
    """
    with explained():
        print(add_token(tokens, name, admin=admin, priority=priority))


# ---- jobs ----

HERE = "localhost:50051"
JOBS = """List, watch and cancel the jobs of a server.

mimicmotion-trt jobs list
mimicmotion-trt jobs watch 3f1c -o out.mp4
"""
jobs = App(no_args_is_help=True, help=JOBS)
Server = Annotated[
    str, typer.Option(metavar="HOST:PORT", help=f"The server. [default: {HERE}]", show_default=False)
]
Job = Annotated[str, typer.Argument(help="Its name, as `jobs list` shows it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print a line of JSON for each job or event.")]


@jobs.command("list")
@with_flags("connection", connection_flags())
def list_jobs(*, server: Server = HERE, as_json: AsJson = False, connection: Given) -> None:
    """List the jobs that a server knows, newest first.

    mimicmotion-trt jobs list
    mimicmotion-trt jobs list --server gpu-host:50051 --tls-ca ca.pem --token-file token
    """
    with explained(as_json), connect(server, connection) as client:
        for info in client.list():
            _show(info, as_json)


@jobs.command()
@with_flags("connection", connection_flags())
def watch(
    job: Job,
    *,
    server: Server = HERE,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write the video there (.mp4).")
    ] = None,
    as_json: AsJson = False,
    connection: Given,
) -> None:
    """Follow a job from its beginning to its end.

    mimicmotion-trt jobs watch 3f1c
    mimicmotion-trt jobs watch 3f1c -o out.mp4
    """
    with explained(as_json), connect(server, connection) as client, Reporter(as_json) as reporter:
        for event in client.watch(job, output=output):
            reporter.show(event)
            if isinstance(event, Done):
                reporter.say(f"{output or job}: {event}")


@jobs.command()
@with_flags("connection", connection_flags())
def cancel(job: Job, *, server: Server = HERE, as_json: AsJson = False, connection: Given) -> None:
    """Stop a job: at once while it waits, within a denoising step while it runs.

    mimicmotion-trt jobs cancel 3f1c
    mimicmotion-trt jobs cancel 3f1c --server gpu-host:50051
    """
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
