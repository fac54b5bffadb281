"""A server around the stand-in animator, and a client of it for each test."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mimicmotion_trt.service import Client

from .hosting import Host, hosted


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    with hosted() as running:
        yield running


@pytest.fixture
def client(host: Host) -> Iterator[Client]:
    with Client(host.address) as connected:
        yield connected


@pytest.fixture(scope="session")
def certificates(tmp_path_factory) -> Path:
    """ca.pem, for server and client NAME.pem with NAME.key, encrypted.key."""
    folder: Path = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(*new, "-x509", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test ca", "-days", "2")
    openssl("ec", "-in", "ca.key", "-aes256", "-passout", "pass:secret", "-out", "encrypted.key")
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    for name in ("server", "client"):
        openssl(*new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                "-out", f"{name}.pem", "-days", "2", "-extfile", "names")  # fmt: skip
    return folder
