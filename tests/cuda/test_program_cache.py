"""Step programs are kept from job to job, a bounded number of them, each for as many jobs as it has slots."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from mimicmotion_trt.cuda.shared_program import ProgramCache
from mimicmotion_trt.errors import OutOfMemory

from .plans import EveryBatchPays, plan_of

UNET: Any = object()
NO_TIMING: Any = EveryBatchPays(None)


class Program:
    """Nothing but its slots and its end."""

    closed = False

    def __init__(self, slots: int) -> None:
        self.slots = slots

    def close(self) -> None:
        assert not self.closed
        self.closed = True


@pytest.fixture
def cache() -> ProgramCache:
    made: Any = lambda plan, slots, *_: Program(slots)  # noqa: E731
    return ProgramCache(made, NO_TIMING, most=2)


def test_an_idle_program_is_used_again(cache):
    first, slot = cache.join(plan_of(5), UNET)
    cache.leave(first, slot)
    assert cache.join(plan_of(5), UNET) == (first, slot)
    assert cache.made == 1


def test_two_jobs_at_once_have_a_program_each(cache):
    first, second = cache.join(plan_of(5), UNET), cache.join(plan_of(5), UNET)
    assert first[0] is not second[0]
    cache.leave(*first)
    cache.leave(*second)
    assert len(cache) == 2


def test_as_many_as_there_are_slots_share_one(cache):
    (first, a), (second, b), (third, _) = (cache.join(plan_of(5), UNET, slots=2) for _ in range(3))
    assert first is second
    assert {a, b} == {0, 1}
    assert third is not first
    cache.leave(first, a)
    assert cache.join(plan_of(5), UNET, slots=2) == (first, a)


def test_jobs_that_come_at_once_share_the_program_that_the_first_makes():
    began, go_on = threading.Event(), threading.Event()

    def make(plan: Any, slots: int, *_: Any) -> Any:
        began.set()
        go_on.wait(10)
        return Program(slots)

    cache, found = ProgramCache(make, NO_TIMING), []
    threads = [
        threading.Thread(target=lambda: found.append(cache.join(plan_of(5), UNET, slots=2))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    assert began.wait(10)
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert cache.made == 1
    assert {slot for _, slot in found} == {0, 1}


def test_another_shape_has_another_program(cache):
    first, slot = cache.join(plan_of(5), UNET)
    cache.leave(first, slot)
    assert cache.join(plan_of(6), UNET)[0] is not first


def test_the_one_unused_for_longest_goes(cache):
    joined = {frames: cache.join(plan_of(frames), UNET) for frames in (1, 2, 3)}
    for shared, slot in joined.values():
        cache.leave(shared, slot)
    assert len(cache) == 2
    assert [joined[frames][0].program.closed for frames in (1, 2, 3)] == [True, False, False]
    assert cache.join(plan_of(1), UNET)[0] is not joined[1][0]
    assert cache.join(plan_of(3), UNET)[0] is joined[3][0]


def test_what_a_broken_job_leaves_behind_nobody_gets(cache):
    shared, slot = cache.join(plan_of(5), UNET)
    cache.leave(shared, slot, broken=True)
    assert len(cache) == 0
    assert shared.program.closed
    assert cache.join(plan_of(5), UNET)[0] is not shared


def test_a_program_that_others_are_on_is_closed_when_the_last_one_leaves(cache):
    (shared, a), (_, b) = (cache.join(plan_of(5), UNET, slots=2) for _ in range(2))
    cache.leave(shared, a, broken=True)
    assert cache.join(plan_of(5), UNET, slots=2)[0] is not shared
    assert not shared.program.closed
    cache.leave(shared, b)
    assert shared.program.closed


def test_without_memory_for_a_program_the_idle_ones_go():
    programs: list[Any] = []

    def make(plan: Any, slots: int, *_: Any) -> Any:
        if sum(not program.closed for program in programs) == 2:
            raise OutOfMemory("10 MB of the GPU's memory cannot be had.")
        programs.append(Program(slots))
        return programs[-1]

    cache = ProgramCache(make, NO_TIMING)
    joined = [cache.join(plan_of(frames), UNET) for frames in (1, 2)]
    with pytest.raises(OutOfMemory):
        cache.join(plan_of(3), UNET)
    cache.leave(*joined[0])
    cache.join(plan_of(3), UNET)
    assert [program.closed for program in programs] == [True, False, False]


def test_closing_closes_what_is_idle(stand_in):
    made: Any = lambda plan, slots, *_: Program(slots)  # noqa: E731
    timing: Any = EveryBatchPays(stand_in(None))
    cache = ProgramCache(made, timing)
    shared, slot = cache.join(plan_of(5), UNET)
    cache.leave(shared, slot)
    cache.close()
    assert (shared.program.closed, len(cache)) == (True, 0)


def test_unets_with_other_weights_have_programs_of_their_own(cache):
    """Jobs of one plan, but of different LoRAs, do not step together; a closed U-Net takes its programs along."""
    other: Any = object()
    first, slot = cache.join(plan_of(5), UNET, slots=2)
    second, other_slot = cache.join(plan_of(5), other, slots=2)
    assert first is not second
    cache.leave(first, slot)
    cache.leave(second, other_slot)
    cache.forget(other)
    assert len(cache) == 1
    assert cache.join(plan_of(5), UNET, slots=2)[0] is first
