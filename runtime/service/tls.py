"""Certificates and keys in PEM files, for both ends; what is wrong with a file is told by its name."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ..errors import ServiceError
from ..validation import checked

if TYPE_CHECKING:
    import grpc  # loaded late: engine processes read their configuration without it


@checked(ServiceError, prefix="tls.")
@dataclass(frozen=True)
class Tls:
    """What a server needs; PEM files."""

    certificate: Path | None = None
    """PEM file of the server's certificate, and of those between it and its authority."""
    key: Path | None = None
    """PEM file of the certificate's private key."""
    client_ca: Path | None = None
    """PEM file of an authority: only clients with a certificate signed by it are let in."""

    def __post_init__(self) -> None:
        if self.certificate is None or self.key is None:
            raise ServiceError(
                "TLS needs a certificate and its key.",
                remedy="Give both files: --tls-cert and --tls-key.",
                field="tls",
            )

    def credentials(self) -> grpc.ServerCredentials:
        """Raises `ServiceError` naming the file that cannot be used."""
        import grpc

        assert self.certificate is not None
        assert self.key is not None
        pair = read_pair(self.certificate, self.key)
        ca = read_authority(self.client_ca) if self.client_ca is not None else None
        return grpc.ssl_server_credentials([pair], ca, ca is not None)


@checked(ServiceError, prefix="tls.")
@dataclass(frozen=True)
class ClientTls:
    """What a client needs: the authority behind the server's certificate (None: the system's), and its own pair."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises `ServiceError` naming the file that cannot be used."""
        import grpc

        key = certificate = None
        if self.certificate is not None and self.key is not None:
            key, certificate = read_pair(self.certificate, self.key)
        elif self.certificate is not None or self.key is not None:
            raise ServiceError(
                "A client's certificate and its key belong together.", remedy="Give both.", field="tls"
            )
        ca = read_authority(self.ca) if self.ca is not None else None
        return grpc.ssl_channel_credentials(ca, key, certificate)


def read_pair(certificate: Path, key: Path) -> tuple[bytes, bytes]:
    """(key, certificate): the files' bytes, once they are known to belong together. Raises `ServiceError`."""
    pair = _read(key, "key"), read_authority(certificate, "certificate")

    def password() -> NoReturn:
        raise _wrong(key, "is encrypted with a password", "Give a key without one.", "key")

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            remedy = "Give the key that the certificate was made with."
            raise _wrong(key, f"is not the key of {certificate}", remedy, "key") from error
        raise _wrong(key, "holds no private key in PEM form", "Check the file.", "key") from error
    return pair


def read_authority(path: Path, field: str = "client_ca") -> bytes:
    """The file's bytes, once it is known to hold certificates. Raises `ServiceError`."""
    data = _read(path, field)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError as error:
        raise _wrong(path, "holds no certificate in PEM form", "Check the file.", field) from error
    return data


def _read(path: Path, field: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
        raise _wrong(path, problem, "Check the path and its permissions.", field) from error


def _wrong(path: Path, what: str, remedy: str, field: str) -> ServiceError:
    return ServiceError(f"{path} {what}.", remedy=remedy, field=f"tls.{field}")
