"""A server around the stand-in animator, and a client of it for each test."""

from __future__ import annotations

from collections.abc import Iterator

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
