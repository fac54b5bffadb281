"""Pinned memory is used again, but not before the GPU is done with it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from mimicmotion_trt.engines.cuda_memory import SMALLEST_PIECE, Memory, Staging


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

    return Staging(pin, kept=4 * SMALLEST_PIECE)


def test_a_piece_is_used_again_once_its_copy_is_done(staging, pinned):
    mark = Mark(done=False)
    staging.give_back(staging.take(16), mark)
    other = staging.take(16)
    assert other is not pinned[0]
    mark.done = True
    assert staging.take(100) is pinned[0]
    assert [memory.size for memory in pinned] == [SMALLEST_PIECE, SMALLEST_PIECE]


def test_pieces_have_the_next_power_of_two(staging, pinned):
    staging.give_back(staging.take(SMALLEST_PIECE + 1), None)
    assert staging.take(2 * SMALLEST_PIECE) is pinned[0]
    assert staging.take(2 * SMALLEST_PIECE + 1).size == 4 * SMALLEST_PIECE


def test_what_lies_idle_is_bounded_and_what_is_in_use_stays(staging, pinned):
    busy = Mark(done=False)
    pieces = [staging.take(SMALLEST_PIECE) for _ in range(8)]
    staging.give_back(pieces[0], busy)
    for piece in pieces[1:]:
        staging.give_back(piece, None)
    assert [staging.take(SMALLEST_PIECE) for _ in range(4)] == [*pieces[5:], pinned[8]]  # three were kept
    busy.done = True
    assert staging.take(SMALLEST_PIECE) is pieces[0]
