"""Pinned memory is used again, but not before the GPU is done with it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from mimicmotion_trt.cuda.staging import SMALLEST, Staging
from mimicmotion_trt.engines.cuda_memory import Memory


@dataclass
class Mark:
    done: bool


@pytest.fixture
def pinned() -> list[Memory]:
    return []


@pytest.fixture
def staging(pinned: list[Memory]) -> Staging:
    def pin(size: int) -> Memory:
        pinned.append(Memory(len(pinned), size, None))
        return pinned[-1]

    return Staging(pin, kept=4 * SMALLEST)


def test_a_piece_is_used_again_once_its_copy_is_done(staging, pinned):
    mark = Mark(done=False)
    staging.give(staging.take(16), mark)
    other = staging.take(16)
    assert other is not pinned[0]
    mark.done = True
    assert staging.take(100) is pinned[0]
    assert [memory.size for memory in pinned] == [SMALLEST, SMALLEST]


def test_pieces_have_the_next_power_of_two(staging, pinned):
    staging.give(staging.take(SMALLEST + 1), None)
    assert staging.take(2 * SMALLEST) is pinned[0]
    assert staging.take(2 * SMALLEST + 1).size == 4 * SMALLEST


def test_what_lies_idle_is_bounded_and_what_is_in_use_stays(staging, pinned):
    busy = Mark(done=False)
    pieces = [staging.take(SMALLEST) for _ in range(8)]
    staging.give(pieces[0], busy)
    for piece in pieces[1:]:
        staging.give(piece, None)
    assert [memory for memory, _ in staging._given] == [pieces[0], *pieces[5:]]
