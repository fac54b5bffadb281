"""From a base folder and a checkpoint to a bundle, all or nothing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from ..engines import Bundle, Manifest
from ..engines.bundle import hash_file
from ..engines.tensorrt_library import open_library
from ..errors import CheckpointError, ExportError, MimicMotionError, SettingsError
from ..files import output_errors
from ..networks import POSE_CHUNK
from ..settings import Settings
from .options import Options
from .output_folder import Workspace, check_output, find_present
from .tensorrt_build import check_target, gpu_name

FURTHER_CODE = ("engines/spec.py", "training/checkpoints.py", "training/networks.py")
"""Sources outside `export` that decide on the networks and their tensors."""
Report = Callable[[str, int, int], None]
"""(what is being done, steps done, steps in all)."""


def build_bundle(
    base: str | Path,
    checkpoint: str | Path,
    output: str | Path,
    options: Options | None = None,
    *,
    refit_from: str | Path | None = None,
    report: Report = lambda what, done, total: None,
) -> tuple[Manifest, bool]:
    """Build a bundle in the folder `output`; returns its manifest and whether anything had to be built.

    With `refit_from`, a bundle of the same options but other weights, nothing is compiled: its plans take these.
    A bundle of the same inputs that is there already, undamaged, is left alone. An interrupted or failed build
    leaves what was there before, and keeps of plans the networks that are finished: the error, or the interrupt,
    then has a note that says so. Raises `CheckpointError`, `ExportError` or `OutputError`.
    """
    options, output, checkpoint = options or Options(), Path(os.path.abspath(output)), Path(checkpoint)
    report("reading", 0, len(options.networks) + 1)
    folder = find_base(base)
    key = build_key(folder, checkpoint, options)
    with output_errors(output):
        if (present := find_present(output, key)) is not None:
            return present, False
        check_output(output)
    former = None if refit_from is None else _former_bundle(refit_from, options)
    check_target(options)
    with output_errors(output), Workspace(output, key) as workspace:
        try:
            from .network_build import build_networks

            manifest = build_networks(folder, checkpoint, workspace, options, key, report, former)
        except MimicMotionError:
            raise
        except Exception as error:  # of the libraries: a network that they cannot run or trace, a full disk
            raise ExportError(
                f"the bundle could not be built: {type(error).__name__}: {error}",
                remedy="Check that base and checkpoint belong together, and the free space.",
            ) from error
        with output_errors(output):  # here already, so that the error gets the workspace's note
            workspace.publish(manifest)
    return manifest, True


def _former_bundle(folder: str | Path, options: Options) -> Bundle:
    """The bundle whose plans take other weights; raises `SettingsError` or `BundleError`."""
    former = Bundle.load(folder)
    has = former.manifest
    same = has.backend == options.backend and set(options.networks) <= set(has.networks)
    if not (same and options.plan.refit):
        raise SettingsError(
            f"{folder} is a bundle for {has.backend} of {', '.join(has.networks)}, whose plans are not refitted.",
            remedy="Give one that was built with the same options, --refit among them.",
            field="refit_from",
        )
    return former


@contextlib.contextmanager
def reading(field: str, path: str | Path) -> Iterator[None]:
    """Turn an OSError into a `CheckpointError` of the input `field`."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{field} {path} cannot be read: {error}.",
            remedy="Check the name, the permissions and that it is whole.",
            field=field,
        ) from error


def find_base(base: str | Path) -> Path:
    """The base's folder. PyTorch is loaded only where it has to be downloaded, not to find nothing to do."""
    with reading("base", base):
        if Path(base).is_dir():
            return Path(base)
        from ..training.checkpoints import resolve_base

        return resolve_base(base)


def build_key(folder: Path, checkpoint: Path, options: Options) -> str:
    """Hash of all that a bundle is made from: weights, configs, options, and the code that exports and compares.

    Of plans also the library that compiles and, where it compiles for the GPU that is there, that GPU.
    """
    with reading("checkpoint", checkpoint):
        weights = hash_file(checkpoint)
    with reading("base", folder):
        parts = ("vae", "image_encoder", "scheduler", "feature_extractor")
        files = [folder / "unet" / "config.json", *(p for part in parts for p in (folder / part).glob("*.*"))]
        base = {str(path.relative_to(folder)): hash_file(path) for path in files if path.is_file()}
    entries = {
        "options": asdict(options),
        "base": base,
        "checkpoint": weights,
        "library": open_library(options.backend).version if options.compiles else None,
        "gpu": gpu_name() if options.backend == "tensorrt" else None,
        "chunks": (POSE_CHUNK, Settings().decode_chunk) if options.compiles else None,
        "code": hash_code(code_files()),
    }
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def code_files() -> list[Path]:
    """The sources whose change makes other engines of the same weights, or compares them otherwise."""
    room = Path(__file__).parent
    return [*room.glob("*.py"), *(room.parent / name for name in FURTHER_CODE)]


def hash_code(files: Iterable[Path]) -> str:
    """One hash of some sources, wherever they are installed."""
    return hashlib.sha256("".join(sorted(map(hash_file, files))).encode()).hexdigest()
