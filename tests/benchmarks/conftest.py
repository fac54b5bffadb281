"""The benchmarks as modules: scripts that import each other by name."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..cuda.conftest import host, stand_in  # noqa: F401 - the stages of gpu_check run on the same stand-in for CUDA


@pytest.fixture(scope="session", autouse=True)
def scripts() -> Iterator[None]:
    """Their folder where Python looks for modules, as it is when one of them runs."""
    folder = str(Path(__file__).parents[2] / "benchmarks")
    sys.path.insert(0, folder)
    yield
    sys.path.remove(folder)
