"""The commands of the documents: what stands in their `sh` and `python` fences."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = (".", "demo", "docs", "docs/guide", "docs/reference", "docs/internals", "docs/models")
PAGES = sorted(page for folder in FOLDERS for page in (ROOT / folder).glob("*.md"))


@dataclass(frozen=True)
class Fence:
    """One block of code; `line` is that of its first line."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def commands(self) -> list[str]:
        """The commands of a shell fence without comments; one that goes on over lines is one."""
        found, begun = [], ""
        for line in self.text.replace("\\\n", " ").splitlines():
            begun += re.sub(r"(^|\s)#\s.*$", "", line).strip()
            try:
                shlex.split(begun)
            except ValueError:  # a quotation that is still open
                begun += "\n"
                continue
            found.append(begun)
            begun = ""
        return [command for command in found if command]


def fences(page: Path, language: str) -> Iterator[Fence]:
    """The fences of a page in this language."""
    text = page.read_text()
    for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield Fence(page, text[: match.start(1)].count("\n") + 1, language, match[1])


def words(command: str) -> list[str]:
    """A command as a program gets it, without variables before it and redirections after it."""
    found = shlex.split(re.split(r"\s(?:>>?|2>&1|&$|\|)", command)[0])
    while found and re.fullmatch(r"[A-Z_]+=.*", found[0]):
        del found[0]
    return found
