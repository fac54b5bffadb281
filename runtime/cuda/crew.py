"""A step program and the jobs on it: whoever asks for a step while the GPU computes goes with the next one."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from ..engines.cuda_memory import translate
from ..errors import EngineError
from ..schedule import Step
from .program import Layout, StepProgram


class Crew:
    """Jobs of one layout, each in a slot of one program and in a thread of its own.

    A job that asks for a step waits until the GPU has done the one before; all that have asked by then step
    together. So nobody waits for a job that is busy elsewhere, and a job alone steps alone. Where there is one
    slot only, a step is put on the stream while the one before runs, so that the GPU has no gap between them.
    """

    def __init__(self, program: StepProgram, layout: Layout) -> None:
        self.program, self.layout = program, layout
        self._free = list(range(layout.jobs))[::-1]
        self._asked: dict[int, Step] = {}
        self._taken: dict[int, Step] = {}  # into the step that is being put on the stream
        self._failed: dict[int, EngineError] = {}
        self._stepping, self._changed = False, threading.Condition()
        self._under_way: deque[Callable[[], None]] = deque()
        self._broken = False

    @property
    def idle(self) -> bool:
        """Whether there is no job on it."""
        return len(self._free) == self.layout.jobs

    @property
    def broken(self) -> bool:
        """Whether a step has failed, so that nobody can join any more."""
        return self._broken

    def join(self) -> int | None:
        """A slot for a job, until it leaves; None if there is none, or a step has failed."""
        with self._changed:
            return self._free.pop() if self._free and not self._broken else None

    def leave(self, slot: int) -> None:
        """The job in this slot is over."""
        with self._changed:
            self._free.append(slot)

    def step(self, slot: int, step: Step, kind: int = 0) -> None:
        """Step one job, with all that ask meanwhile; returns when the work is put on the GPU's stream.

        Raises what went wrong, or `EngineError` where that was in a step which another job's thread put there.
        """
        with self._changed:
            self._asked[slot] = step
            while slot in self._taken or (self._stepping and slot in self._asked):
                self._changed.wait()
            if slot not in self._asked:
                if slot in self._failed:
                    raise self._failed.pop(slot)
                return
            self._stepping = True
        self._advance(slot, kind)

    def _advance(self, slot: int, kind: int) -> None:
        """Step everybody who has asked; this job is one of them."""
        try:
            while len(self._under_way) > (self.layout.jobs == 1):
                self._under_way.popleft()()
            with self._changed:
                self._taken, self._asked = self._asked, {}
            self.program.advance(self._taken, kind)
            self._under_way.append(self.program.mark())
        except BaseException as error:
            failure = error if isinstance(error, Exception) else repr(error)
            remedy = getattr(error, "remedy", "")
            with self._changed:
                self._broken = True
                self._asked.pop(slot, None)
                for other in self._taken.keys() - {slot}:
                    self._failed[other] = translate(failure, "a step shared with another job failed", remedy)
            raise
        finally:
            with self._changed:
                self._stepping, self._taken = False, {}
                self._changed.notify_all()
