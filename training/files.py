"""Writing into the folders of runs and of training sets: one process at a time, errors that say where."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import OutputError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the system says of `path` while it is written into an `OutputError`."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror or error}.",
            remedy="Check the folder and the free space.",
            field="output",
        ) from error


def replace_text(path: Path, text: str) -> None:
    """Write a file beside and rename it; raises `OutputError`."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    with writing(path):
        try:
            beside.write_text(text)
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)


@contextmanager
def alone(output: Path) -> Iterator[None]:
    """Makes the folder, and keeps other runs out of it; raises `OutputError` if one is at work there."""
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        lock = (output / ".lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process
        except BlockingIOError as error:
            raise OutputError(f"another run is at work on {output}.", field="output") from error
        yield
