"""Tables that a benchmark writes into a page of docs/: between <!-- NAME: begin --> and <!-- NAME: end -->."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as lines of markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [headers, ["---"] * len(headers), *rows])


def with_table(text: str, name: str, table: str) -> str:
    """The page with what stands between the marks replaced; ValueError if it lacks them."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = text.partition(begin)
    _, mark, after = rest.partition(end)
    if not mark:
        raise ValueError(f"the page lacks {begin} … {end}")
    return f"{before}{begin}\n{table}\n{end}{after}"


def write(path: Path, text: str) -> None:
    """Write beside, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}")
    beside.write_text(text)
    beside.replace(path)
