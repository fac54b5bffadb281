"""Step programs are kept from job to job, a bounded number of them, each for one job at a time."""

from __future__ import annotations

from typing import Any

import pytest

from mimicmotion_trt.cuda.denoiser import ProgramCache
from mimicmotion_trt.cuda.program import Layout, Rows

UNET: Any = object()


def layout(frames: int) -> Layout:
    return Layout((Rows(((0, 1),), ((1.0, 1.0),), (True,), (1,)),), frames, (8, 8))


@pytest.fixture
def cache() -> ProgramCache:
    made: Any = lambda *_: object()  # noqa: E731
    return ProgramCache(made, most=2)


def test_an_idle_program_is_used_again(cache):
    first = cache.take(layout(5), UNET)
    cache.give(layout(5), first)
    assert cache.take(layout(5), UNET) is first
    assert cache.made == 1


def test_two_jobs_at_once_have_a_program_each(cache):
    first, second = cache.take(layout(5), UNET), cache.take(layout(5), UNET)
    assert first is not second
    cache.give(layout(5), first)
    cache.give(layout(5), second)
    assert len(cache) == 2


def test_another_shape_has_another_program(cache):
    first = cache.take(layout(5), UNET)
    cache.give(layout(5), first)
    assert cache.take(layout(6), UNET) is not first


def test_the_one_unused_for_longest_goes(cache):
    programs = {frames: cache.take(layout(frames), UNET) for frames in (1, 2, 3)}
    for frames, program in programs.items():
        cache.give(layout(frames), program)
    assert len(cache) == 2
    assert cache.take(layout(1), UNET) is not programs[1]
    assert cache.take(layout(3), UNET) is programs[3]
