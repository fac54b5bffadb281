"""Finding a bundle by its name or folder."""

from __future__ import annotations

import os
from pathlib import Path

from .engines import Bundle
from .engines.bundle import MANIFEST
from .errors import BundleError, SettingsError
from .settings import Settings, make_settings
from .validation import described

SEARCH_VARIABLE = "MIMICMOTION_BUNDLES"
"""Folders of bundles, separated as in PATH; looked through before the package's own."""


def find_bundle(bundle: str | Path) -> Path:
    """The folder of a bundle given by folder or by name; raises `BundleError` listing where it looked."""
    if not isinstance(bundle, str | os.PathLike):
        raise BundleError(
            f"bundle is {described(bundle)}.", remedy="Give its name, such as 'tiny', or its folder."
        )
    folder = Path(os.path.expanduser(bundle))
    if os.path.isfile(folder / MANIFEST):  # not Path.is_file, which raises for names too long
        return folder
    places = _places()
    if len(Path(bundle).parts) == 1:
        for place in places:
            if os.path.isfile(place / bundle / MANIFEST):
                return place / bundle
    if os.path.isdir(folder):
        raise BundleError(
            f"{folder} holds no {MANIFEST}.", remedy="Give the folder that `mimicmotion-trt build` wrote."
        )
    raise BundleError(
        f"there is no bundle {str(bundle)!r:.200}; looked in {', '.join(map(str, [Path.cwd(), *places]))}.",
        remedy=f"Build one with `mimicmotion-trt build`, give its folder, take the shipped `tiny`, "
        f"or set {SEARCH_VARIABLE}.",
    )


def list_bundles() -> list[Path]:
    """The folders of all bundles that can be found by name; of one name the first."""
    found: dict[str, Path] = {}
    for place in _places():
        for manifest in sorted(place.glob(f"*/{MANIFEST}")):
            found.setdefault(manifest.parent.name, manifest.parent)
    return list(found.values())


def _places() -> list[Path]:
    places = [Path(entry) for entry in os.environ.get(SEARCH_VARIABLE, "").split(os.pathsep) if entry]
    return [*places, Path(__file__).parent / "bundles"]


def load_bundle(bundle: str | Path) -> Bundle:
    """Find and check a bundle, its own settings and sizes too; raises `BundleError`."""
    loaded = Bundle.load(find_bundle(bundle))
    own_settings(loaded)
    return loaded


def own_settings(bundle: Bundle) -> Settings:
    """What a bundle wants, in its first size; raises `BundleError` if this version does not know it."""
    manifest = bundle.manifest
    try:
        for size in manifest.sizes:
            Settings(size=size)
        size = manifest.defaults.get("size") or manifest.sizes[0]
        settings = make_settings(manifest.defaults, {"size": size})
        if settings.segment is None:
            raise SettingsError("there is no segment.")
    except SettingsError as error:
        raise BundleError(
            f"{bundle.folder}: its settings are not this version's: {error.message}",
            remedy=f"Update mimicmotion-trt, or rebuild the bundle: `{manifest.command}`.",
            field=error.field,
        ) from error
    return settings
