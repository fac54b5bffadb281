"""Figures that are written as they come, and parts that are run in order."""

from __future__ import annotations

import importlib.util
import io
import json

import pytest
from common import Record, run_parts
from rich.console import Console


@pytest.fixture
def record(tmp_path):
    return Record.begin(tmp_path, "some-loop", "NVIDIA H200", steps=25)


def part(*figures, then=None):
    def measure():
        yield from figures
        if then is not None:
            raise then

    return measure


def run(record, *parts, **given):
    run_parts([("shape", name, work) for name, work in parts], record, Console(file=io.StringIO()), **given)


def read(record):
    (line,) = record.path.read_text().splitlines()
    return json.loads(line)


def test_the_file_is_one_line_of_json_named_by_benchmark_and_machine(record):
    assert record.path.name.startswith("some-loop-nvidia-h200-20")
    run(record, ("plain", part(("plain", {"video_s": 2.0}), ("plain", {"gib": 1.0}))))
    assert read(record)["rows"] == {"shape": {"plain": {"video_s": 2.0, "gib": 1.0}}}
    assert read(record)["steps"] == 25
    assert record.line == record.path.read_text().strip()


def test_what_was_found_before_a_part_is_cut_off_is_in_the_file(record):
    with pytest.raises(KeyboardInterrupt):
        run(record, ("plain", part(("plain", {"video_s": 2.0}), then=KeyboardInterrupt())))
    assert read(record)["rows"]["shape"]["plain"] == {"video_s": 2.0}


def test_a_part_that_fails_costs_neither_its_figures_nor_the_others(record):
    parts = (
        ("one", part(("one", {"a": 1}), then=RuntimeError("no memory"))),
        ("two", part(("two", {"b": 2}))),
    )
    run(record, *parts)
    assert read(record)["rows"]["shape"] == {"one": {"a": 1}, "two": {"b": 2}}
    assert read(record)["left"] == {"shape": {"one": "RuntimeError: no memory"}}


def test_after_the_minutes_given_nothing_begins(record):
    clock = iter([0, 10, 110, 130])
    run(record, *((name, part((name, {"s": 1}))) for name in "abc"), minutes=2, clock=lambda: next(clock))
    assert list(read(record)["rows"]["shape"]) == ["a", "b"]
    assert read(record)["left"] == {"shape": {"c": "no time was left"}}


def test_bars_are_drawn_where_there_is_something_to_draw(record):
    console, picture = Console(file=io.StringIO()), record.path.with_suffix(".png")
    record.plot({"small": {}}, "seconds", console)
    assert not picture.exists()
    record.save()
    record.plot({"small": {}, "real": {"plain": 2.0, "ours": 1.0}}, "seconds", console)
    assert picture.stat().st_size > 3000


def test_without_matplotlib_nothing_is_drawn(record, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    record.plot({"real": {"plain": 2.0}}, "seconds", Console(file=io.StringIO()))
    assert not record.path.with_suffix(".png").exists()
