"""Everything about a server that its owner may choose, on one screen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from ..denoise.checkpoint import SHARE
from ..errors import ServiceError
from ..limits import Limits
from ..validation import Real, Whole, check_device, checked
from .tls import Tls

MOST = 10**6
CLIENT_PART = 0.75
"""The part of places and calls that one client may have unless its number is given."""


@checked(ServiceError, prefix="keep.")
@dataclass(frozen=True)
class Keep:
    """How much of finished jobs is kept; the oldest go first."""

    jobs: Annotated[int, Whole(0)] = 200
    """Finished jobs that are kept."""
    bytes: Annotated[int, Whole(0)] = 8 * 2**30
    """Bytes of their videos."""
    seconds: Annotated[float, Real(0.0, 10.0**10)] = 3600.0
    """Seconds after their end."""


@dataclass(frozen=True)
class EngineConfig:
    """What an engine process gets when it is spawned."""

    bundle: str | Path
    device: str
    threads: int | None
    limits: Limits
    graphs: bool
    checkpoint_share: float
    load: Callable[[EngineConfig], Any]
    """Makes the animator in the engine process: a function of a module, as it is pickled by its name."""
    loras: Mapping[str, Path] = field(default_factory=dict)
    """LoRA files by the names by which jobs choose them."""


def load_animator(config: EngineConfig) -> Any:
    """The `Animator` of an engine process."""
    from ..animator import Animator

    return Animator.load(
        config.bundle,
        device=config.device,
        threads=config.threads,
        limits=config.limits,
        graphs=config.graphs,
        loras=config.loras,
    )


@checked(ServiceError)
@dataclass(frozen=True)
class ServiceConfig:
    """What `AnimationServer` and `serve` need to know. Raises `ServiceError` for values that cannot work."""

    bundle: str | Path = "tiny"
    """Name or folder of the bundle that every engine loads."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all."""
    port: Annotated[int, Whole(0, 65535)] = 50051
    """Port to listen on, 0 for a free one."""
    devices: tuple[str, ...] = ("auto",)
    """auto, cpu, cuda or cuda:N: one engine process for each."""
    threads: int | None = None
    """CPU threads of each engine; None leaves it to the animator."""
    limits: Limits = field(default_factory=Limits)
    graphs: bool = True
    """On a GPU each step is one captured CUDA graph."""
    lora: tuple[str, ...] = ()
    """A LoRA that jobs may choose by its name; repeat."""
    tls: Tls | None = None
    tokens: Path | None = None
    """File of bearer tokens (`mimicmotion-trt new-token`): callers need one, and see their own jobs only."""
    reflection: bool = True
    """Tell callers the schema."""
    metrics_port: Annotated[int, Whole(0, 65535)] | None = None
    """Port of Prometheus metrics on the same host, 0 for a free one; none unless given."""
    traces: str = ""
    """Address (http://HOST:PORT) of an OpenTelemetry collector (OTLP over gRPC); none unless given."""
    max_queue: Annotated[int, Whole(1, MOST)] = 32
    """Jobs that may wait (being uploaded included) before callers are sent away."""
    client_queue: Annotated[int, Whole(1, MOST)] | None = None
    """Of these, places of one client (a token, or an address); three quarters if not given."""
    max_queue_seconds: Annotated[float, Real(1.0, 10**9)] = 3600.0
    """Predicted seconds of waiting jobs, for each job that the engines run at once, before callers are sent away."""
    max_calls: Annotated[int, Whole(1, MOST)] = 512
    """Calls served at once; a caller that stops reading holds up to 5 MiB of memory."""
    client_calls: Annotated[int, Whole(1, MOST)] | None = None
    """Of these, calls of one client; three quarters if not given."""
    keep: Keep = field(default_factory=Keep)
    store: Path | None = None
    """Folder of jobs that outlive the server, of one server at a time; None: jobs end with the server."""
    folder: Path | None = None
    """Without a store: where the temporary folder with uploads and videos is made; None takes the system's place."""
    upload_patience: Annotated[float, Real(0.0, MOST)] = 60.0
    """Seconds of silence after which an unfinished upload is dropped."""
    upload_rate: Annotated[float, Real(1.0, 10.0**12)] = 16384.0
    """Bytes per second that an upload has to bring on the whole, after its first `upload_patience` seconds."""
    grace: Annotated[float, Real(0.0, MOST)] = 30.0
    """Seconds that running jobs get to finish when the server is told to stop."""
    engine_patience: Annotated[float, Real(0.1, MOST)] = 30.0
    """An engine that says nothing for so many seconds hangs and is killed; longer where steps are predicted to take
    long, and 20 times as long before anything was measured."""
    checkpoint_share: Annotated[float, Real(0.0, MOST)] = SHARE
    """Part of a job's time that the writing of its checkpoints may take."""
    ready_file: Path | None = None
    """Written with "host:port" when the first engine is warm, removed at the end."""
    json_logs: bool = False
    """Log lines as JSON."""
    load: Callable[[EngineConfig], Any] = load_animator
    """Makes the animator in each engine process; tests put another in its place."""

    def __post_init__(self) -> None:
        if not self.devices:
            raise ServiceError("no device is given.", remedy="Name at least one.", field="devices")
        for device in self.devices:
            check_device(device, ServiceError, "devices")
        named = [text.partition("=")[::2] for text in self.lora]
        if not all(name and file for name, file in named) or len(dict(named)) < len(named):
            remedy = "Give NAME=FILE, each name once."
            raise ServiceError(f"lora is {list(self.lora)}.", remedy=remedy, field="lora")

    @property
    def places(self) -> int:
        """In the queue, of one client."""
        return self.client_queue or math.ceil(self.max_queue * CLIENT_PART)

    @property
    def calls(self) -> int:
        """At once, of one client."""
        return self.client_calls or math.ceil(self.max_calls * CLIENT_PART)

    @property
    def loras(self) -> dict[str, Path]:
        """LoRA files by their names."""
        return {name: Path(file) for name, _, file in (text.partition("=") for text in self.lora)}

    def check_bundle(self) -> None:
        """Raise `BundleError` if there is no such bundle, or if its manifest is damaged; no engine is read."""
        if self.load is load_animator:
            from ..bundles import find_bundle
            from ..engines import Manifest

            Manifest.load(find_bundle(self.bundle))

    def engines(self) -> list[EngineConfig]:
        """One for each device."""
        return [
            EngineConfig(
                self.bundle,
                device,
                self.threads,
                self.limits,
                self.graphs,
                self.checkpoint_share,
                self.load,
                self.loras,
            )
            for device in self.devices
        ]
