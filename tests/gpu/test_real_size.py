"""MimicMotion's real networks at 1024x576 with random weights in float16, where the GPU has room for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
GIB = 2**30


@pytest.fixture(scope="module")
def rows(needs_gpu: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What `benchmarks/gpu_loop.py` finds of 16 frames in three of 25 steps: the plain loop, then ours."""
    import torch

    free, _ = torch.cuda.mem_get_info()
    if free < 30 * GIB:
        pytest.skip(f"needs 30 GiB of GPU memory: {free / GIB:.0f} GiB are free")
    from gpu_loop import SHAPES, Loops

    loops = Loops(replace(SHAPES["mimicmotion-16"], timed=3), tmp_path_factory.mktemp("real"))
    found: dict[str, dict[str, Any]] = {}
    for part in (loops.plain, loops.ours):
        for row, figures in part():
            found.setdefault(row, {}).update(figures)
    return found


def test_the_latents_are_those_of_the_plain_loop(rows):
    assert rows["ours"]["rel_l2"] <= 0.01


def test_a_step_is_not_slower_than_the_plain_loops(rows):
    assert rows["ours"]["step_s"] <= 1.05 * rows["plain"]["step_s"]


def test_options_make_the_video_at_least_twice_as_fast(rows):
    assert rows["10 steps"]["faster"] >= 2
