"""Memory: what a clip takes, and what is free."""

from __future__ import annotations

import psutil

from mimicmotion_trt.denoise import cost


def test_a_container_has_the_memory_of_its_control_group(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "CONTROL_GROUP", tmp_path)
    assert cost.free_memory() <= psutil.virtual_memory().total
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("2500000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 100000\nfile 5\n")
    assert cost.free_memory() == 600_000
    (tmp_path / "memory.max").write_text("max\n")
    assert cost.free_memory() > 600_000
