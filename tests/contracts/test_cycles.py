"""No module imports, at some remove, itself; the check finds cycles of every kind and no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from .lint_imports import PACKAGE, find_cycle, find_edges, find_modules, link_package


def test_the_package_has_no_import_cycle(tmp_path: Path) -> None:
    link_package(tmp_path)
    edges = find_edges(find_modules(tmp_path, PACKAGE))
    assert len(edges) > 300  # it looks at something
    assert find_cycle(edges) == []


def written(folder: Path, **sources: str) -> dict[str, Path]:
    """The modules of a package `p` with these sources; `a_of_b` is p/a/b.py."""
    for name, source in {"__init__": "", **sources}.items():
        path = folder / "p" / f"{name.replace('_of_', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return find_modules(folder, "p")


@pytest.mark.parametrize(
    ("there", "back"),
    [
        ("from .b import x", "from .a import y"),
        ("from . import b", "from p import a"),
        ("import p.b", "from p.a import y"),
        ("from .b import x", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .a import y"),
        ("from .b import x", "try:\n    pass\nexcept ImportError:\n    from .a import y"),
        ("from .b import x", "class C:\n    from .a import y"),
    ],
)
def test_a_cycle_is_found(tmp_path: Path, there: str, back: str) -> None:
    cycle = find_cycle(find_edges(written(tmp_path, a=there, b=back)))
    assert cycle in (["p.a", "p.b", "p.a"], ["p.b", "p.a", "p.b"])


def test_a_cycle_over_rooms_is_found(tmp_path: Path) -> None:
    sources = {
        "room_of___init__": "from .c import x",
        "room_of_c": "from ..d import y",
        "d": "from .room import x",
    }
    cycle = find_cycle(find_edges(written(tmp_path, **sources)))
    assert set(cycle) == {"p.room", "p.room.c", "p.d"}


def test_an_import_inside_a_function_closes_no_cycle(tmp_path: Path) -> None:
    late = "def f():\n    from .a import y\nasync def g():\n    from .a import y"
    assert find_cycle(find_edges(written(tmp_path, a="from .b import x", b=late))) == []
