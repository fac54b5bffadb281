"""What a call costs grows with its shape as the formula says."""

from __future__ import annotations

from mimicmotion_trt.engines import FlopModel

WORK = FlopModel(fixed=2, frame=3, linear=5, spatial=7, temporal=11)


def test_every_part_counts_what_it_is_for():
    assert WORK.total(pixels=0) == 2 + 3
    assert WORK.total(frames=4) == 2 + 4 * 3
    assert WORK.total(pixels=10) == 2 + 3 + 10 * 5 + 10**2 * 7 + 10 * 11
    assert WORK.total(frames=4, pixels=10) == 2 + 4 * (3 + 10 * 5 + 10**2 * 7) + 4**2 * 10 * 11
    assert WORK.total(rows=6, frames=4, pixels=10) == 6 * WORK.total(frames=4, pixels=10)
