"""Everything about a server that its owner may choose, on one screen."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ServiceError
from ..limits import Limits
from .jobs import Keep

ANIMATOR = "mimicmotion_trt.animator:Animator.load"


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files. With `client_ca`, only clients with a certificate signed by it are let in."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How an engine process gets its animator: `factory` ("module:callable") called with the other fields."""

    factory: str
    bundle: str | Path
    device: str
    threads: int | None
    limits: Limits
    graphs: bool = True


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """What `AnimationServer` and `serve` need to know. Raises `ServiceError` for values that cannot work."""

    bundle: str | Path = "tiny"
    """Name or folder of the bundle that every engine loads."""
    host: str = "127.0.0.1"
    port: int = 50051
    """0 takes a free one."""
    devices: tuple[str, ...] = ("auto",)
    """One engine process for each."""
    threads: int | None = None
    """CPU threads of each engine; None leaves it to the animator."""
    limits: Limits = field(default_factory=Limits)
    graphs: bool = True
    """On a GPU each step is one captured CUDA graph."""
    tls: Tls | None = None
    max_queue: int = 32
    """Jobs that may wait (being uploaded included) before callers are sent away."""
    max_calls: int = 512
    """Calls served at once; a caller that stops reading holds up to 5 MiB of memory."""
    keep: Keep = field(default_factory=Keep)
    folder: Path | None = None
    """Where uploads and videos lie; None makes a temporary folder that goes with the server."""
    upload_patience: float = 60.0
    """Seconds of silence after which an unfinished upload is dropped."""
    grace: float = 30.0
    """Seconds that running jobs get to finish when the server is told to stop."""
    ready_file: Path | None = None
    """Written with "host:port" when the first engine is warm, removed at the end."""
    json_logs: bool = False
    animator: str = ANIMATOR
    """"module:callable" that makes the animator in the engine process."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ServiceError(f"port is {self.port}.", remedy="Choose 0 to 65535.", field="port")
        if not self.devices:
            raise ServiceError("No device is given.", remedy="Name at least one.", field="devices")
        if self.max_queue < 1:
            raise ServiceError(
                f"max_queue is {self.max_queue}.", remedy="Choose 1 or more.", field="max_queue"
            )
        if self.max_calls < 1:
            raise ServiceError(
                f"max_calls is {self.max_calls}.", remedy="Choose 1 or more.", field="max_calls"
            )
        if self.grace < 0:
            raise ServiceError(f"grace is {self.grace}.", remedy="Choose 0 or more.", field="grace")
