"""The U-Nets of a model on one device, with the LoRAs that jobs choose."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from ..engines import FEATURE_CACHE_NETWORKS, Engine
from .files import Choice

UnetPair = tuple[Engine, Engine | None]
"""The U-Net for full steps and, if its features are cached, the shallow one that takes them."""
OpenUnet = Callable[[str, Choice], Engine]
"""Opens a network by its name with a choice of LoRAs."""


@dataclass(eq=False)
class _Kept:
    """The U-Nets of one choice."""

    engines: dict[str, Engine] = field(default_factory=dict)
    users: int = 0


class Unets:
    """U-Nets of the usual choice, which stay, and of others, of which those used last are kept.

    Each has weights of its own, which never change: jobs of different choices run at the same time. Calls may come
    from several threads.
    """

    def __init__(
        self, own: Callable[[str], Engine], open_unet: OpenUnet, usual: Choice, *, most: int, size: int = 0
    ) -> None:
        """`own` gives the engines of the `usual` choice; of others at most `most` are kept when no job uses them.

        `size` is what a U-Net takes, in bytes.
        """
        self.on_close: Callable[[Engine], None] = lambda engine: None
        """Called with an engine that is about to be closed."""
        self._own, self._open, self._usual = own, open_unet, usual
        self._most, self._size = most, size
        self._kept: dict[Choice, _Kept] = {}  # the last used last
        self._lock = threading.RLock()

    @contextmanager
    def lend(self, choice: Choice, *, caching: bool) -> Iterator[UnetPair]:
        """The U-Nets of a choice, opened if they are not; nobody closes them meanwhile. Raises `BundleError`."""
        names = FEATURE_CACHE_NETWORKS if caching else ("unet",)
        if choice == self._usual:
            yield _pair([self._own(name) for name in names])
            return
        kept = self._take(choice, names)
        try:
            yield _pair([kept.engines[name] for name in names])
        finally:
            with self._lock:
                kept.users -= 1
                self._close_unused(self._most)

    def to_load(self, choice: Choice) -> int:
        """Bytes that a job of this choice has to load first."""
        return 0 if choice == self._usual or choice in self._kept else self._size

    def free_unused(self) -> bool:
        """Close the U-Nets that no job uses; whether there were any. Those of the usual choice stay."""
        if not self._lock.acquire(blocking=False):  # the holder may wait for the GPU, and its owner for this
            return False
        try:
            return self._close_unused(0)
        finally:
            self._lock.release()

    def close(self) -> None:
        """Close all of other choices; no job may use one."""
        with self._lock:
            self._close_unused(0)

    def _take(self, choice: Choice, names: Sequence[str]) -> _Kept:
        with self._lock:
            kept = self._kept.pop(choice, None) or _Kept()
            self._kept[choice] = kept
            kept.users += 1
            self._close_unused(self._most)  # first, so that there is room
            try:
                for name in names:
                    if name not in kept.engines:
                        kept.engines[name] = self._open(name, choice)
            except BaseException:
                kept.users -= 1
                if not kept.users:
                    self._drop(choice)
                raise
            return kept

    def _close_unused(self, most: int) -> bool:
        """Close those that nobody uses, the least recently used first, until so many are left."""
        unused = [choice for choice, kept in self._kept.items() if not kept.users]
        over = unused[: max(0, len(self._kept) - most)]
        for choice in over:
            self._drop(choice)
        return bool(over)

    def _drop(self, choice: Choice) -> None:
        for engine in self._kept.pop(choice).engines.values():
            self.on_close(engine)
            engine.close()


def _pair(engines: Sequence[Engine]) -> UnetPair:
    return engines[0], engines[1] if len(engines) > 1 else None
