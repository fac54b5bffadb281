"""The place of a finished bundle: what may be there before, and how the bundle comes to be there."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from ..engines import FEATURE_CACHE_NETWORKS, NETWORKS
from ..engines.bundle import MANIFEST
from ..errors import OutputError

ENGINE_FILE = re.compile(
    rf"({'|'.join(NETWORKS + FEATURE_CACHE_NETWORKS)})(-[0-9a-f]+)?\.(onnx|weights|plan|ts)"
)
"""The name of an engine file, or of its external weights, of any version and backend."""
BEGINNING = re.compile(rb'\s*\{\s*"backend":\s*"(onnxruntime|tensorrt|tensorrt-rtx|torch)"')
"""How the manifest of a bundle begins, whatever its format and however its end was damaged."""


def find_place(output: str | Path) -> Path:
    """The output as a path that stays true: absolute, and through nothing that the build moves or makes.

    A link keeps its own name: the bundle takes the place of the link, not of what it leads to.
    """
    given = Path(output)
    return Path(os.path.realpath(given.parent)) / given.name if _is_named(given) else given


def check_place(place: Path) -> None:
    """Raise `OutputError` unless the finished bundle can take this place and nothing but a bundle is lost."""
    if os.path.ismount(place) or not _is_named(place):  # cannot be renamed
        raise OutputError(
            f"a finished bundle cannot take the place of {place}: a mount point, or no name of its own.",
            remedy=f"Choose a folder in it, such as {place / 'bundle'}.",
            field="output",
        )
    if place.is_symlink() and not place.exists():
        raise OutputError(
            f"{place} is a link to {os.readlink(place)}, where nothing is.",
            remedy="Remove the link, or choose another output folder.",
            field="output",
        )
    if place.exists() and not _is_replaceable(place):
        raise OutputError(
            f"{place} exists and is no bundle, or holds other files as well.",
            remedy="Choose another output folder.",
            field="output",
        )


def _is_named(path: Path) -> bool:
    return path.name not in ("", "..")


def _is_replaceable(place: Path) -> bool:
    """Whether a folder is empty or a bundle, whole or damaged, and nothing of anybody's is lost with it."""
    if not place.is_dir():
        return False
    paths = list(place.iterdir())
    own = all(
        path.is_file() and (path.name == MANIFEST or ENGINE_FILE.fullmatch(path.name) is not None)
        for path in paths
    )
    return not paths or (own and _is_manifest(place / MANIFEST))


def _is_manifest(path: Path) -> bool:
    if not path.exists():
        return False
    with path.open("rb") as stream:
        return BEGINNING.match(stream.read(200)) is not None


def put(partial: Path, place: Path) -> None:
    """Put the finished folder in place; the one before is put back if that fails or is interrupted."""
    old = Path(tempfile.mkdtemp(prefix=f".{place.name}.old.", dir=place.parent))
    try:
        if os.path.lexists(place):
            os.rename(place, old / "bundle")
        os.rename(partial, place)
    except BaseException:
        if os.path.lexists(old / "bundle") and not os.path.lexists(place):
            os.rename(old / "bundle", place)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
