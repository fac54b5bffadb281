"""What happens where the GPU's memory runs out, and what is left behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from mimicmotion_trt.errors import OutOfMemory

pytestmark = pytest.mark.gpu
MIB = 2**20


@contextmanager
def little_memory(left: int) -> Iterator[None]:
    """All but `left` bytes of the GPU are taken."""
    import torch

    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    taken = torch.empty(free - left, dtype=torch.uint8, device="cuda")
    try:
        yield
    finally:
        del taken
        torch.cuda.empty_cache()


def test_a_job_without_room_is_refused_and_the_next_one_runs(full, sample):
    before = sample(full)
    with little_memory(256 * MIB), pytest.raises(OutOfMemory):
        sample(full, frames=65, size=(1024, 1024), steps=1)
    np.testing.assert_array_equal(sample(full), before)
    assert sample(full, frames=17, size=(256, 256), steps=1).shape == (17, 4, 32, 32)


def test_jobs_leave_no_memory_behind(full, sample):
    import torch

    left = []
    for _ in range(6):
        full.decode(sample(full), 4)
        torch.cuda.synchronize()
        left.append(torch.cuda.mem_get_info()[0])
    assert left[1] - left[-1] <= 8 * MIB
