"""Everything about a server that its owner may choose, on one screen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from ..checkpoint import SHARE
from ..errors import ServiceError
from ..limits import Limits
from ..validation import Real, Whole, checked

MOST = 10**6


@dataclass(frozen=True)
class Tls:
    """PEM files. With `client_ca`, only clients with a certificate signed by it are let in."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


def read_pem(*paths: Path | None) -> list[Any]:
    """The bytes of each file; None for one that is not given. Raises `ServiceError` if one cannot be read."""
    try:
        return [path.read_bytes() if path is not None else None for path in paths]
    except OSError as error:
        raise ServiceError(f"{error.filename} cannot be read: {error.strerror}.", field="tls") from error


@dataclass(frozen=True)
class Keep:
    """How much of finished jobs is kept; the oldest go first."""

    jobs: int = 200
    bytes: int = 8 * 2**30
    """Of their videos."""
    seconds: float = 3600.0


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


def load_animator(config: EngineConfig) -> Any:
    """The `Animator` of an engine process."""
    from ..animator import Animator

    return Animator.load(
        config.bundle,
        device=config.device,
        threads=config.threads,
        limits=config.limits,
        graphs=config.graphs,
    )


@checked(ServiceError)
@dataclass(frozen=True)
class ServiceConfig:
    """What `AnimationServer` and `serve` need to know. Raises `ServiceError` for values that cannot work."""

    bundle: str | Path = "tiny"
    """Name or folder of the bundle that every engine loads."""
    host: str = "127.0.0.1"
    port: Annotated[int, Whole(0, 65535)] = 50051
    """0 takes a free one."""
    devices: tuple[str, ...] = ("auto",)
    """One engine process for each."""
    threads: int | None = None
    """CPU threads of each engine; None leaves it to the animator."""
    limits: Limits = field(default_factory=Limits)
    graphs: bool = True
    """On a GPU each step is one captured CUDA graph."""
    tls: Tls | None = None
    max_queue: Annotated[int, Whole(1, MOST)] = 32
    """Jobs that may wait (being uploaded included) before callers are sent away."""
    max_queue_seconds: Annotated[float, Real(1.0, 10**9)] = 3600.0
    """Predicted seconds of waiting jobs, for each job that the engines run at once, before callers are sent away."""
    max_calls: Annotated[int, Whole(1, MOST)] = 512
    """Calls served at once; a caller that stops reading holds up to 5 MiB of memory."""
    keep: Keep = field(default_factory=Keep)
    folder: Path | None = None
    """Where uploads and videos lie; None makes a temporary folder that goes with the server."""
    upload_patience: float = 60.0
    """Seconds of silence after which an unfinished upload is dropped."""
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
    load: Callable[[EngineConfig], Any] = load_animator
    """Makes the animator in each engine process; tests put another in its place."""

    def __post_init__(self) -> None:
        if not self.devices:
            raise ServiceError("no device is given.", remedy="Name at least one.", field="devices")

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
            )
            for device in self.devices
        ]
