"""Pinned memory that copies between host and GPU pass through, used again once they are done."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from ..engines.cuda_memory import Memory

SMALLEST = 4096
KEPT = 64 * 2**20
"""Bytes that lie idle at most: to pin and to release memory takes long, and the release waits for the GPU."""


class Done(Protocol):
    """A place in the stream's work."""

    @property
    def done(self) -> bool:
        """Whether the GPU has come there."""


class Staging:
    """Pieces of pinned memory; `pin(size)` makes one. May be used by several threads."""

    def __init__(self, pin: Callable[[int], Memory], kept: int = KEPT) -> None:
        self._pin, self._kept = pin, kept
        self._given: list[tuple[Memory, Done | None]] = []
        self._lock = threading.Lock()

    def take(self, size: int) -> Memory:
        """A piece of at least `size` bytes that nobody copies from or to."""
        wanted = max(SMALLEST, 1 << (size - 1).bit_length())
        with self._lock:
            for index, (memory, mark) in enumerate(self._given):
                if memory.size == wanted and (mark is None or mark.done):
                    del self._given[index]
                    return memory
        return self._pin(wanted)

    def give(self, memory: Memory, mark: Done | None) -> None:
        """Put a piece back, to be used again once the GPU has come to `mark`; where there are many, idle ones go."""
        with self._lock:
            self._given.append((memory, mark))
            total = sum(piece.size for piece, _ in self._given)
            for piece, after in list(self._given):
                if total > self._kept and (after is None or after.done):
                    total -= piece.size
                    self._given.remove((piece, after))

    def close(self) -> None:
        """Let go of all pieces; the GPU must be done with them."""
        with self._lock:
            self._given.clear()
