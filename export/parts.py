"""Networks of a bundle that are finished before the whole is: an interrupted build goes on from them."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from ..engines import Network
from ..engines.bundle import check_file, read_network
from ..errors import BundleError


class Parts:
    """A folder beside the output, named by the build's key, with the files of each finished network."""

    def __init__(self, output: Path, key: str) -> None:
        self._prefix = f".{output.name}.parts-"
        self.folder = output.parent / f"{self._prefix}{key[:16]}"
        self.folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str) -> Network | None:
        """A finished network whose files are all there, byte for byte."""
        try:
            network = read_network(json.loads((self.folder / f"{name}.json").read_text()))
            for file in network.files:
                check_file(self.folder, file)
        except (OSError, ValueError, KeyError, TypeError, BundleError):
            return None
        return network

    def put(self, name: str, network: Network) -> None:
        """Note that a network is finished; its files lie in the folder already."""
        beside = self.folder / f".{name}.json"
        beside.write_text(json.dumps(asdict(network)))
        beside.replace(self.folder / f"{name}.json")

    def move(self, target: Path) -> None:
        """Move the files of all finished networks to the bundle."""
        for entry in self.folder.glob("*.json"):
            for file in read_network(json.loads(entry.read_text())).files:
                (self.folder / file.name).replace(target / file.name)

    def clear(self) -> None:
        """Drop this folder and those of earlier, other builds of the same output."""
        for folder in self.folder.parent.glob(f"{self._prefix}*"):
            shutil.rmtree(folder, ignore_errors=True)
