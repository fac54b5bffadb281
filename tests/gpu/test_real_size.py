"""MimicMotion's real networks at 1024x576 with random weights in float16, where the GPU has room for them."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
GIB = 2**30


def test_the_latents_are_those_of_the_plain_loop(needs_gpu, tmp_path):
    """16 frames in three of 25 steps, as `benchmarks/gpu_loop.py` makes them; how fast, it says itself."""
    import torch

    free, _ = torch.cuda.mem_get_info()
    if free < 30 * GIB:
        pytest.skip(f"needs 30 GiB of GPU memory: {free / GIB:.0f} GiB are free")
    from gpu_loop import SHAPES, Loops

    loops = Loops(replace(SHAPES["mimicmotion-16"], timed=3), tmp_path)
    list(loops.plain())
    assert next(found["rel_l2"] for _, found in loops.ours() if "rel_l2" in found) <= 0.01
