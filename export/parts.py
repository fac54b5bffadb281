"""Networks of a bundle that are finished before the whole is: an interrupted build goes on from them."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

from ..engines import DEEP_CACHE, NETWORKS, Network
from ..engines.bundle import check_file, read_network
from ..errors import BundleError


class Parts:
    """A folder beside the output, named by the build's key, with the files of each finished network."""

    def __init__(self, output: Path, key: str) -> None:
        self._prefix = f".{output.name}.parts-"
        self.folder = output.parent / f"{self._prefix}{key[:16]}"
        if self.folder.exists():
            self.tidy()  # a build that was killed could not
        self.folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str) -> Network | None:
        """A finished network whose files are all there, byte for byte."""
        network = self._read(name)
        try:
            for file in network.files if network else ():
                check_file(self.folder, file)
        except BundleError:
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
        found = ((name, self._read(name)) for name in (*NETWORKS, *DEEP_CACHE))
        return {name: network for name, network in found if network is not None}

    def put(self, name: str, network: Network) -> None:
        """Note that a network is finished; its files lie in the folder already."""
        beside = self.folder / f".{name}.json"
        beside.write_text(json.dumps(asdict(network)))
        beside.replace(self.folder / f"{name}.json")

    def tidy(self) -> None:
        """Delete what belongs to no finished network, as an interrupted build leaves it; an empty folder, too."""
        kept: set[str] = set()
        for name, network in self.finished.items():
            files = {file.name for file in network.files}
            if all((self.folder / file).exists() for file in files):
                kept |= {f"{name}.json", *files}
        for path in self.folder.iterdir():
            if path.name not in kept:
                path.unlink()
        if not kept:
            self.folder.rmdir()

    def move(self, target: Path) -> None:
        """Move the files of all finished networks to the bundle."""
        for network in self.finished.values():
            for file in network.files:
                (self.folder / file.name).replace(target / file.name)

    def clear(self) -> None:
        """Drop this folder and those of earlier, other builds of the same output."""
        for folder in self.folder.parent.glob(f"{self._prefix}*"):
            shutil.rmtree(folder, ignore_errors=True)


def make_partial(output: Path) -> tuple[Path, int]:
    """A new folder beside the output, and the lock on it, which ends with the process; raises OSError.

    Those of builds that were killed, whose lock nobody holds any more, are deleted.
    """
    prefix = f".{output.name}.partial-"
    for folder in output.parent.glob(f"{prefix}*"):
        try:
            os.close(_locked(folder))
        except OSError:  # another build is at it
            continue
        shutil.rmtree(folder, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=prefix, dir=output.parent))
    return made, _locked(made)


def _locked(folder: Path) -> int:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def finished_networks(output: Path) -> list[str]:
    """The networks that an unfinished build of this output, whichever it was, has finished."""
    names = {entry.stem for entry in output.parent.glob(f".{output.name}.parts-*/*.json")}
    return [name for name in (*NETWORKS, *DEEP_CACHE) if name in names]
