"""What networks answered, kept by the content of what they were asked, within a memory limit."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Answers:
    """Answers by the content of their questions; where they are too many, those unused for longest go.

    Calls may come from several threads.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        """All answers together are never larger."""
        self.hits = 0
        """How many questions were answered from here."""
        self._kept: OrderedDict[bytes, Array] = OrderedDict()
        self._bytes, self._lock = 0, threading.Lock()

    def ask(self, make: Callable[[], Array], *question: Array | str | float) -> Array:
        """The answer to a question: a kept one, or what `make` says now. It cannot be written to.

        The question is everything that the answer depends on, and what it is about in a word.
        """
        key = digest(*question)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                self.hits += 1
                return self._kept[key]
        answer = make()
        if answer.nbytes <= self.most_bytes:
            self._keep(key, answer)
        return answer

    @property
    def size(self) -> int:
        """Bytes that the answers take."""
        return self._bytes

    def _keep(self, key: bytes, answer: Array) -> None:
        answer.flags.writeable = False
        with self._lock:
            if key not in self._kept:  # else another thread was faster
                self._kept[key] = answer
                self._bytes += answer.nbytes
            while self._bytes > self.most_bytes:
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= oldest.nbytes


def digest(*parts: Array | str | float) -> bytes:
    """A digest of 32 bytes that equal parts share, and no others."""
    found = hashlib.blake2b(digest_size=32)
    for part in parts:
        array = isinstance(part, np.ndarray)
        found.update(repr((part.dtype.str, part.shape) if array else part).encode())  # type: ignore[union-attr]
        if array:
            found.update(np.ascontiguousarray(part).data)
    return found.digest()
