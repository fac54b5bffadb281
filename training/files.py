"""Writing into the folders of runs and of training sets: one process at a time, errors that name the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import OutputError
from ..files import write_atomic


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turns an OSError that comes up while `path` is written into an `OutputError`."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror or error}.",
            remedy="Check the folder and the free space.",
            field="output",
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a whole file or none; raises `OutputError`."""
    with output_errors(path):
        write_atomic(path, text)


@contextmanager
def lock_folder(output: Path) -> Iterator[None]:
    """Makes the folder and locks it; raises `OutputError` if another run has the lock. It ends with the process."""
    lock = FileLock(output / ".lock", timeout=0)
    with output_errors(output):
        output.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout as error:
            raise OutputError(f"another run is at work on {output}.", field="output") from error
    try:
        yield
    finally:
        lock.release()
