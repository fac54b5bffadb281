"""Networks of a bundle that are finished before the whole is: an interrupted build goes on from them."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from ..engines import FEATURE_CACHE_NETWORKS, NETWORKS, Network
from ..engines.bundle import check_file, read_network
from ..errors import BundleError, OutputError


class Parts:
    """A folder beside the output, named by the build's key, with the files of each finished network.

    It is locked until `close` or `clear`: raises `OutputError` where another build holds it, or OSError. As a
    context it closes at the end, and an error that ends it gets a note of what is kept.
    """

    def __init__(self, output: Path, key: str) -> None:
        self._output = output
        self.folder = output.parent / f".{output.name}.parts-{key[:16]}"
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock: int | None = _locked(self.folder)
        except (BlockingIOError, FileNotFoundError) as error:  # deleted: by one that ended this moment
            raise OutputError(
                f"another build of this output is running ({output}).",
                remedy="Wait until it has ended, then run the command again.",
                field="output",
            ) from error
        try:
            self.tidy()  # a build that was killed could not
        except OSError:
            self.close()
            raise

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close()
        if error is not None and self.finished:
            kept = ", ".join(self.finished)
            error.add_note(f"finished and kept: {kept}; the same command goes on from there")

    def get(self, name: str) -> Network | None:
        """A finished network whose files are all there, byte for byte."""
        network = self._read(name)
        try:
            for file in network.files if network else ():
                check_file(self.folder, file)
        except (BundleError, OSError):
            return None
        return network

    def _read(self, name: str) -> Network | None:
        try:
            return read_network(json.loads((self.folder / f"{name}.json").read_text()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    @property
    def finished(self) -> dict[str, Network]:
        """Networks that are noted as finished; their files are not looked at."""
        found = ((name, self._read(name)) for name in (*NETWORKS, *FEATURE_CACHE_NETWORKS))
        return {name: network for name, network in found if network is not None}

    def put(self, name: str, network: Network) -> None:
        """Note that a network is finished; its files lie in the folder already."""
        beside = self.folder / f".{name}.json"
        beside.write_text(json.dumps(asdict(network)))
        beside.replace(self.folder / f"{name}.json")

    def tidy(self) -> None:
        """Delete what belongs to no finished network, as an interrupted build leaves it."""
        kept: set[str] = set()
        for name, network in self.finished.items():
            files = {file.name for file in network.files}
            if all((self.folder / file).exists() for file in files):
                kept |= {f"{name}.json", *files}
        for path in self.folder.iterdir():
            if path.name not in kept:
                path.unlink()

    def link(self, target: Path) -> None:
        """Put the files of all finished networks into the bundle; they stay here, too, until it is in place."""
        for network in self.finished.values():
            for file in network.files:
                try:
                    os.link(self.folder / file.name, target / file.name)
                except OSError:  # a file system without hard links
                    shutil.copy(self.folder / file.name, target / file.name)

    def clear(self) -> None:
        """Drop this folder and those of earlier, other builds of the same output, but of none that runs."""
        for folder in _free(self._output, "parts"):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        self._unlock()

    def close(self) -> None:
        """Keep what is finished for the next build, no folder if nothing is; does nothing once cleared."""
        if self._lock is not None:
            with contextlib.suppress(OSError):
                self.tidy()
                self.folder.rmdir()  # fails if anything is kept
            self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def make_partial(output: Path) -> tuple[Path, int]:
    """A new folder beside the output, and the lock on it, which ends with the process; raises OSError.

    Those of builds that were killed, whose lock nobody holds any more, are deleted.
    """
    for folder in _free(output, "partial"):
        shutil.rmtree(folder, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=f".{output.name}.partial-", dir=output.parent))
    return made, _locked(made)


def _free(output: Path, kind: str) -> Iterator[Path]:
    """The hidden folders of a kind that no build holds; each is held until the next one is asked for."""
    for folder in output.parent.glob(f".{glob.escape(output.name)}.{kind}-*"):
        try:
            lock = _locked(folder)
        except OSError:  # another build is at it
            continue
        try:
            yield folder
        finally:
            os.close(lock)


def _locked(folder: Path) -> int:
    """The lock on a folder; raises OSError if somebody has it, or the folder was deleted before."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), folder.stat()):
            raise FileNotFoundError(f"{folder} was deleted")
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
