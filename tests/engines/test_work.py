"""What a call costs grows with its shape as the formula says."""

from __future__ import annotations

import math

import pytest

from mimicmotion_trt.engines import FlopModel

WORK = FlopModel(fixed=2, frame=3, linear=5, spatial=7, temporal=11)


def test_every_part_counts_what_it_is_for():
    assert WORK.flops(pixels=0) == 2 + 3
    assert WORK.flops(frames=4) == 2 + 4 * 3
    assert WORK.flops(pixels=10) == 2 + 3 + 10 * 5 + 10**2 * 7 + 10 * 11
    assert WORK.flops(frames=4, pixels=10) == 2 + 4 * (3 + 10 * 5 + 10**2 * 7) + 4**2 * 10 * 11
    assert WORK.flops(rows=6, frames=4, pixels=10) == 6 * WORK.flops(frames=4, pixels=10)


@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
def test_no_number_of_operations(value):
    with pytest.raises(ValueError, match="linear"):
        FlopModel(0, 0, value, 0, 0)
