"""Every link and picture of the documents leads somewhere."""

from __future__ import annotations

import re

import pytest

from .pages import PAGES, ROOT


def anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = page.read_text()
    for target, mark in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", text):
        if "://" in target or target.startswith("{"):
            continue
        file = page.parent / target if target else page
        assert file.exists(), target
        if mark:
            anchors = [anchor(line.lstrip("#")) for line in file.read_text().splitlines() if line[:1] == "#"]
            assert mark in anchors, f"{target}#{mark}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_that_are_named_exist(page):
    """A page that has moved leaves its old name in texts that are no links."""
    for named in re.findall(r"(?<![\w/])docs/[\w/-]+\.(?:md|sh|py|json)", page.read_text()):
        assert (ROOT / named).exists(), named
