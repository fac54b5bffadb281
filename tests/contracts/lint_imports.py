"""Check the import contracts of pyproject.toml: `python tests/contracts/lint_imports.py [lint-imports options]`.

Then look for import cycles, which these contracts do not know of: imports of a module's own body count, for type
checkers only as well; imports inside functions are made late on purpose and may point upward.

The rooms lie side by side in the repository and nested in the package. import-linter reads folders, so it is
shown the package as it is installed: a throw-away folder of links to the modules.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tempfile
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGE = "mimicmotion_trt"
Edge = tuple[str, str]
"""(who imports, what is imported), as full module names."""


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


def find_modules(folder: Path, package: str) -> dict[str, Path]:
    """Module name -> file of a package that lies in `folder`, generated code left out."""
    files = {}
    for path in (folder / package).rglob("*.py"):
        parts = path.relative_to(folder).with_suffix("").parts
        if "generated" not in parts:
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def find_edges(files: dict[str, Path]) -> set[Edge]:
    """Which module imports which, of those given."""
    return {
        (module, imported)
        for module, path in files.items()
        for imported in _imported(module, path, files) - {module}
    }


def find_cycle(edges: set[Edge]) -> list[str]:
    """One cycle, from a module back to itself; [] if there is none."""
    graph: dict[str, set[str]] = {}
    for importer, imported in edges:
        graph.setdefault(importer, set()).add(imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


class _Imports(ast.NodeVisitor):
    """Collects the full names that a module imports outside its functions."""

    def __init__(self, package: list[str]) -> None:
        self.package = package
        self.names: list[tuple[str, str]] = []
        """(source, name): `name` is a module in `source`, or something that the module `source` has."""

    def visit_Import(self, node: ast.Import) -> None:
        self.names += [(alias.name, "") for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = self.package[: len(self.package) - node.level + 1] if node.level else []
        source = ".".join([*base, *([node.module] if node.module else [])])
        self.names += [(source, alias.name) for alias in node.names]

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        pass

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        pass


def _imported(module: str, path: Path, files: dict[str, Path]) -> set[str]:
    imports = _Imports(module.split(".") if path.name == "__init__.py" else module.split(".")[:-1])
    imports.visit(ast.parse(path.read_text()))
    found = (f"{source}.{name}" if f"{source}.{name}" in files else source for source, name in imports.names)
    return {name for name in found if name in files}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="contracts-") as folder:
        link_package(Path(folder))
        if code := lint(Path(folder), *sys.argv[1:]).returncode:
            raise SystemExit(code)
        edges = find_edges(find_modules(Path(folder), PACKAGE))
    if cycle := find_cycle(edges):
        raise SystemExit(f"import cycle: {' -> '.join(cycle)}")
