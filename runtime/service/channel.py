"""How clients reach a server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc

from ..errors import ServiceError

OPTIONS = [
    ("grpc.max_receive_message_length", 4 * 2**20),
    # A queued job's stream may be silent for long: find out when the server is gone.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
]


@dataclass(frozen=True, slots=True)
class ClientTls:
    """PEM files: the authority behind the server's certificate (None: the system's), and our own pair."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises `ServiceError` if a file cannot be read."""
        try:
            ca, key, certificate = (
                path.read_bytes() if path is not None else None
                for path in (self.ca, self.key, self.certificate)
            )
        except OSError as error:
            raise ServiceError(f"{error.filename} cannot be read: {error.strerror}.", field="tls") from error
        return grpc.ssl_channel_credentials(ca, key, certificate)
