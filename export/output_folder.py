"""The output of a build: a bundle takes the place of a bundle or of nothing, at the end and as a whole.

While a build runs it writes into a hidden folder beside its output, `.NAME.build-KEY`: the coming bundle, a note of
the networks that are finished, and the lock that keeps a second build of the same out. The operating system releases
the lock when the process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
from pathlib import Path

from ..engines import NETWORKS, Bundle, Manifest, Network
from ..engines.bundle import MANIFEST, check_file, read_json, write_json
from ..errors import BundleError, OutputError
from ..files import lock_folder, write_atomic

ENGINE_FILE = re.compile(
    rf"({'|'.join(NETWORKS)}|unet_[a-z]+)(-[0-9a-f]+)?\.(onnx|weights|plan|ts|layers\.json)"
)
"""The name of an engine file, of its external weights or the table of them, of any version and backend."""


def find_present(output: Path, key: str) -> Manifest | None:
    """The manifest of the bundle that is there, undamaged and of this key; None if it has to be built."""
    if not (output / MANIFEST).is_file():
        return None
    try:
        manifest = Bundle.load(output).manifest
    except BundleError:
        return None  # damaged: build it again
    return manifest if manifest.build == key else None


def check_output(output: Path) -> None:
    """Raise `OutputError` unless nothing but a bundle is lost where the finished bundle goes."""
    if output.exists() and not _is_replaceable(output):
        raise OutputError(
            f"{output} exists and is no bundle, or holds other files as well.",
            remedy="Choose another output folder.",
            field="output",
        )


def _is_replaceable(output: Path) -> bool:
    """Whether it is a folder that is empty, or a bundle, whole or damaged, and nothing else."""
    if not output.is_dir():
        return False
    paths, manifest = set(output.iterdir()), output / MANIFEST
    if manifest in paths and b'"backend"' not in manifest.read_bytes()[:20]:  # as any version's begins
        return False
    engines = paths - {manifest}
    return (manifest in paths or not engines) and all(
        path.is_file() and ENGINE_FILE.fullmatch(path.name) for path in engines
    )


class Workspace:
    """The hidden folder of one build; as a context, it holds the lock.

    Networks that are noted as finished when an error ends the build are kept for the next one, and so is TensorRT's
    timing cache; the error gets a note of the networks. Raises `OutputError` where another build of the same runs,
    or OSError.
    """

    def __init__(self, output: Path, key: str) -> None:
        self.output = output
        self.root = output.parent / f".{output.name}.build-{key[:16]}"
        self.bundle = self.root / "bundle"
        """The coming bundle."""
        self.timings = self.root / "timings"
        """TensorRT's timing cache."""
        self.finished: dict[str, Network] = {}
        """The networks that need not be built: their files are in `bundle`."""
        self._former = self.root / "former"
        self._notes = self.root / "finished.json"
        self._lock = contextlib.ExitStack()

    def __enter__(self) -> Workspace:
        self._lock.enter_context(lock_folder(self.root))
        self._restore()  # after a build that was killed
        self.finished = self._read_notes()
        self._tidy()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self._restore()
            if error is None or not (self.finished or self.timings.exists()):
                shutil.rmtree(self.root, ignore_errors=True)
                return
            self._tidy()
            if self.finished:
                kept = ", ".join(self.finished)
                error.add_note(f"finished and kept: {kept}; the same command goes on from there")
        finally:
            self._lock.close()

    def keep(self, name: str, network: Network) -> None:
        """Note that a network is finished; its files are in `bundle`."""
        self.finished[name] = network
        write_atomic(self._notes, write_json(dict[str, Network], self.finished))

    def _read_notes(self) -> dict[str, Network]:
        """The networks noted whose files are there byte for byte; none if the notes are damaged."""
        try:
            noted = read_json(dict[str, Network], self._notes.read_text())
        except (OSError, ValueError):
            return {}
        found = {}
        for name, network in noted.items():
            with contextlib.suppress(BundleError):
                for file in (*network.files, *network.for_lora):
                    check_file(self.bundle, file)
                found[name] = network
        return found

    def _tidy(self) -> None:
        """Delete what belongs to no finished network, as an interrupted build leaves it."""
        kept = {
            file.name for network in self.finished.values() for file in (*network.files, *network.for_lora)
        }
        self.bundle.mkdir(exist_ok=True)
        for path in self.bundle.iterdir():
            if path.name not in kept:
                path.unlink()

    def publish(self, manifest: Manifest) -> None:
        """Move the finished bundle to its place."""
        write_atomic(self.bundle / MANIFEST, manifest.to_json())
        if os.path.lexists(self.output):
            os.rename(self.output, self._former)
        os.rename(self.bundle, self.output)
        self._drop_others()

    def _restore(self) -> None:
        """Move back what was there before, if the finished bundle did not get to its place."""
        if os.path.lexists(self._former) and not os.path.lexists(self.output):
            os.rename(self._former, self.output)

    def _drop_others(self) -> None:
        """Delete what earlier builds of this output left, unless they still run."""
        for folder in self.output.parent.glob(f".{glob.escape(self.output.name)}.build-*"):
            if folder != self.root:
                with contextlib.suppress(OutputError), lock_folder(folder):
                    shutil.rmtree(folder, ignore_errors=True)
