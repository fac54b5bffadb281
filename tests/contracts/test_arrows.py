"""The arrows between the rooms hold, and the check that says so can fail."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from . import lint_imports
from .lint_imports import PACKAGE

ROOT = Path(__file__).parents[2]


@pytest.fixture
def farm(tmp_path: Path) -> Path:
    """The package as it is installed; modules may be added."""
    lint_imports.link_package(tmp_path)
    return tmp_path


def test_all_contracts_are_kept(farm):
    done = lint_imports.lint(farm, capture_output=True)
    assert done.returncode == 0, done.stdout
    assert "4 kept, 0 broken" in done.stdout


def test_a_wheel_has_every_package():
    """An editable install finds folders that are not listed; a wheel lacks them."""
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    places = {folder: package for package, folder in setup["package-dir"].items()}
    found = {
        ".".join([package, *init.parent.relative_to(ROOT / folder).parts])
        for folder, package in places.items()
        for init in (ROOT / folder).rglob("__init__.py")
    }
    assert set(setup["packages"]) == found


def test_every_room_is_looked_at(farm):
    for module in (
        "animator",
        "pose/draw",
        "service/server",
        "engines/spec",
        "training/networks",
        "export/build",
        "doctor/report",
    ):
        assert (farm / PACKAGE / f"{module}.py").is_file()


@pytest.mark.parametrize(
    ("module", "code", "broken"),
    [
        ("sneaky", "def slow():\n    import torch", "What serves loads no training framework"),
        ("media/sneaky", "from transformers import CLIPModel", "What serves loads no training framework"),
        ("sneaky", "from .training import networks", "Nobody but the export imports the training room"),
        ("sneaky", "from .export import build_engines", "nobody imports the export"),
        ("training/sneaky", "from ..export import verify", "nobody imports the export"),
        ("engines/sneaky", "from ..settings import Settings", "Engines know of the rest"),
        ("engines/sneaky", "import torch", "What serves loads no training framework"),
        ("denoise/sneaky", "from ..cuda import program", "Imports point downward"),
        ("doctor/sneaky", "def late():\n    from ..console import Reporter", "Imports point downward"),
    ],
)
def test_a_forbidden_import_is_found(farm, module, code, broken):
    (farm / PACKAGE / f"{module}.py").write_text(code)
    done = lint_imports.lint(farm, capture_output=True)
    verdicts = [line for line in done.stdout.splitlines() if broken in line]
    assert done.returncode == 1
    assert any("BROKEN" in line for line in verdicts), done.stdout
    assert f"{PACKAGE}.{module.replace('/', '.')}" in done.stdout
