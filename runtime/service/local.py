"""A server in a process of its own on this machine: for demos, benchmarks and tests."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ServiceError
from .client import Client


@contextmanager
def local_server(
    bundle: str | Path, *, threads: int | None = None, patience: float = 60.0
) -> Iterator[Client]:
    """Run `mimicmotion-trt serve` on a free port; a client of it, once it is warm.

    Raises `ServiceError` with what the server printed if it is not warm within `patience` seconds.
    """
    with tempfile.TemporaryDirectory(prefix="mimicmotion-") as folder:
        ready, log = Path(folder) / "ready", Path(folder) / "log"
        command = [sys.executable, "-m", "mimicmotion_trt", "serve", "--bundle", str(bundle), "--port", "0"]
        command += ["--ready-file", str(ready)] + (["--threads", str(threads)] if threads else [])
        with log.open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output)
            try:
                with Client(_address(process, ready, log, patience)) as client:
                    yield client
            finally:
                process.terminate()
                process.wait()


def _address(process: subprocess.Popen[bytes], ready: Path, log: Path, patience: float) -> str:
    until = time.monotonic() + patience
    while time.monotonic() < until and process.poll() is None:
        if ready.exists() and (address := ready.read_text().strip()):
            return address
        time.sleep(0.02)
    raise ServiceError(f"the server did not start: {log.read_text()[-2000:].strip()}")
