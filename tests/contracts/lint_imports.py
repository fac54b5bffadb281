"""Check the import contracts of pyproject.toml: `python tests/contracts/lint_imports.py [lint-imports options]`.

The rooms lie side by side in the repository and nested in the package. import-linter reads folders, so it is
shown the package as it is installed: a throw-away folder of links to the modules.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def link_package(farm: Path) -> None:
    """Put every module where its package name says, by the mapping in pyproject.toml."""
    mapping = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    for package, folder in mapping.items():
        for module in (ROOT / folder).rglob("*.py"):
            link = farm / package.replace(".", "/") / module.relative_to(ROOT / folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(module)


def lint(farm: Path, *options: str, **run: Any) -> subprocess.CompletedProcess[str]:
    """Run import-linter on a linked package."""
    command = [Path(sys.executable).with_name("lint-imports"), "--config", ROOT / "pyproject.toml"]
    environment = os.environ | {"PYTHONPATH": str(farm)}
    return subprocess.run(
        [*command, "--no-cache", "--no-logo", *options], cwd=farm, env=environment, text=True, **run
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="contracts-") as folder:
        link_package(Path(folder))
        raise SystemExit(lint(Path(folder), *sys.argv[1:]).returncode)
