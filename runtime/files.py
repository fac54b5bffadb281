"""Files that callers name; files that appear whole or not at all; folders with one process at a time; the cache."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import MimicMotionError, MotionError, OutputError


def plain_file(
    source: str | Path, kind: str, refuse: Callable[[str, str], MimicMotionError], remedy: str
) -> Path:
    """The path of a file that a caller names as a `kind`; raises `refuse(message, remedy)` if it cannot be read."""
    try:
        path = Path(source)
        if path.is_dir():
            raise refuse(f"{path} is a directory, not a {kind}.", remedy)
        if not path.exists():
            raise refuse(f"{path} does not exist.", "Check the path.")
        if not path.is_file():
            raise refuse(f"{path} is not a plain file.", remedy)
        with path.open("rb"):
            return path
    except (OSError, ValueError, TypeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise refuse(f"{str(source)!r:.200} cannot be read: {reason}.", "Check the path.") from error


@contextlib.contextmanager
def motion_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns an OSError that comes up while `path` is read into a `MotionError`."""
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = getattr(error, "strerror", None) or error
        raise MotionError(
            f"{os.fspath(path)!r:.200} cannot be read: {reason}.", remedy="Check the path.", field="motion"
        ) from error


def read_head(source: str | os.PathLike[str] | bytes) -> bytes:
    """The first 64 bytes of a motion, which tell what it is; raises `MotionError`."""
    if isinstance(source, bytes):
        return source[:64]
    with motion_errors(source), open(source, "rb") as stream:
        return stream.read(64)


def write_atomic(
    path: str | Path, content: bytes | str | Callable[[BinaryIO], object], *, sync: bool = False
) -> None:
    """Write a file beside `path` and rename it, so that a reader finds the old file or the whole new one.

    `content`: bytes, text (UTF-8), or a function that writes into the open file. `sync`: return when it is on
    the disk, so that it outlives a power cut. On any error nothing is left behind. Raises OSError.
    """
    path = Path(path)
    beside = path.with_name(f".mimicmotion-{secrets.token_hex(8)}")
    try:
        with beside.open("x+b") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(beside, path)
        if sync:
            sync_folder(path.parent)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Return when the names of a folder's files are on the disk. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cache_folder() -> Path:
    """Where what can be made again is kept: $MIMICMOTION_CACHE, $XDG_CACHE_HOME/mimicmotion or ~/.cache/mimicmotion.

    Raises `OutputError` where there is no home folder either.
    """
    if own := os.environ.get("MIMICMOTION_CACHE"):
        return Path(own)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "mimicmotion"
    try:
        return Path.home() / ".cache" / "mimicmotion"
    except RuntimeError as error:
        raise OutputError(
            f"there is no folder for the cache: {error}", remedy="Set MIMICMOTION_CACHE."
        ) from error


def keep_in_cache(path: Path, content: bytes) -> None:
    """Write a file of the cache; a cache that cannot be written costs time and is no error."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)


@contextlib.contextmanager
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


@contextlib.contextmanager
def lock_folder(output: Path) -> Iterator[None]:
    """Makes the folder and locks it; raises `OutputError` if another run has the lock. It ends with the process."""
    from filelock import FileLock, Timeout

    lock = FileLock(output / ".lock", timeout=0)
    with output_errors(output):
        output.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout as error:
            raise OutputError(
                f"another run is at work on {output}.", remedy="Wait until it has ended.", field="output"
            ) from error
    try:
        yield
    finally:
        lock.release()


def write_text(path: Path, text: str) -> None:
    """Write a whole file or none; raises `OutputError`."""
    with output_errors(path):
        write_atomic(path, text)
