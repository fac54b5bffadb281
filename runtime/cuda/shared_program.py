"""Who runs on a step program: several jobs at once on one, and a cache that keeps programs from job to job."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable

import numpy as np
from numpy.typing import NDArray

from ..denoise.plan import DenoisePlan
from ..denoise.schedule import Step
from ..engines import Engine
from ..engines.cuda_memory import translate
from ..errors import EngineError, OutOfMemory
from .batch_sizes import BatchSizes
from .launches import open_device
from .program import StepProgram, program_key, shareable_slots

Make = Callable[[DenoisePlan, int, Engine, Engine | None], StepProgram]
"""A program of a plan with so many slots, on the U-Net and the shallow one."""
ProgramKey = tuple[Hashable, int]
"""What programs of equal work share, and the identity of their U-Net: one with another LoRA is another one."""


class SharedProgram:
    """Jobs on one program, each in a slot and in a thread of its own.

    A job asks for a step and waits until the GPU has done the step before. All jobs that asked by then step together.
    So no job waits for one that is busy elsewhere, and a job alone steps alone. A program with one slot enqueues a
    step while the step before runs, so that the GPU has no gap between them.
    """

    def __init__(self, program: StepProgram, key: ProgramKey) -> None:
        self.program, self.key = program, key
        self._free = list(range(program.slots))[::-1]
        self._asked: dict[int, Step] = {}
        self._stepping_slots: dict[int, Step] = {}  # those of the step that is being enqueued
        self._failed: dict[int, EngineError] = {}
        self._stepping, self._changed = False, threading.Condition()
        self._running: deque[tuple[Callable[[], NDArray[np.int32]], dict[int, Step]]] = deque()
        self._not_finite: dict[int, Step] = {}
        self.broken = False
        """Whether a step has failed, so that nobody can join any more."""

    @property
    def idle(self) -> bool:
        """Whether there is no job on it."""
        return len(self._free) == self.program.slots

    def join(self) -> int | None:
        """A slot for a job, until it leaves; None if there is none, or a step has failed."""
        with self._changed:
            return self._free.pop() if self._free and not self.broken else None

    def leave(self, slot: int) -> None:
        """The job in this slot is over."""
        with self._changed:
            self._free.append(slot)
            self._not_finite.pop(slot, None)
            for _, steps in self._running:
                steps.pop(slot, None)

    def step(self, slot: int, step: Step) -> None:
        """Step one job, with all that ask meanwhile; returns when the work is on the GPU's stream.

        Raises what went wrong, or `EngineError` where that was in a step which another job's thread enqueued.
        """
        with self._changed:
            self._asked[slot] = step
            while slot in self._stepping_slots or (self._stepping and slot in self._asked):
                self._changed.wait()
            if slot not in self._asked:
                if slot in self._failed:
                    raise self._failed.pop(slot)
                return
            self._stepping = True
        self._advance(slot)

    def not_finite(self, slot: int) -> Step | None:
        """The step after which a job's latents are not finite, as far as is known; None if there is none."""
        with self._changed:
            return self._not_finite.get(slot)

    def finish(self) -> None:
        """Wait until the GPU has done every step that was asked for."""
        with self._changed:
            while self._stepping:
                self._changed.wait()
            self._stepping = True
        try:
            self._wait(0)
        finally:
            with self._changed:
                self._stepping = False
                self._changed.notify_all()

    def _wait(self, most: int) -> None:
        """Wait until at most so many steps run, and note whose latents are not finite after the others."""
        while len(self._running) > most:
            broken = self._running[0][0]()
            with self._changed:
                for slot, step in self._running.popleft()[1].items():
                    if broken[slot]:
                        self._not_finite.setdefault(slot, step)

    def _advance(self, slot: int) -> None:
        """Step every job that has asked; this one is among them."""
        try:
            self._wait(self.program.slots == 1)
            with self._changed:
                self._stepping_slots, self._asked = self._asked, {}
            self.program.advance(self._stepping_slots)
            running = self.program.broken(), dict(self._stepping_slots)
            with self._changed:
                self._running.append(running)
        except BaseException as error:
            failure = error if isinstance(error, Exception) else repr(error)
            remedy = error.remedy if isinstance(error, EngineError) else ""
            with self._changed:
                self.broken = True
                for other in (self._stepping_slots | self._asked).keys() - {slot}:
                    self._failed[other] = translate(failure, "a step shared with another job failed", remedy)
                self._asked = {}
            raise
        finally:
            with self._changed:
                self._stepping, self._stepping_slots = False, {}
                self._changed.notify_all()


class ProgramCache:
    """Programs with the jobs on them, the last used last; at most `most` idle ones are kept, graphs and all.

    Where memory runs out, the idle ones go first.
    """

    def __init__(self, make: Make, batch_sizes: BatchSizes, most: int = 4) -> None:
        self._make, self._most = make, most
        self.batch_sizes = batch_sizes
        """Which batches pay."""
        self._programs: list[SharedProgram] = []
        self._lock, self._making = threading.Lock(), threading.Lock()
        self.made = 0
        """How many programs were captured so far."""

    @classmethod
    def open(cls, unet: Engine, build: str, *, graphs: bool) -> ProgramCache:
        """Programs on the GPU on which an engine runs; `build` is the bundle's, under which timings are kept.

        Raises `KernelError` if the kernels do not compile or load there.
        """
        gpu = unet.gpu
        assert gpu is not None
        device = open_device(gpu, unet.spec.dtypes["latents"])

        def make(plan: DenoisePlan, slots: int, unet: Engine, shallow: Engine | None) -> StepProgram:
            return StepProgram(device, unet, plan, slots=slots, graphs=graphs, shallow=shallow)

        programs = cls(make, BatchSizes(device, unet, f"{build} {gpu.name} {gpu.capability}"))
        gpu.reclaimable.add(programs)
        return programs

    def join(
        self, plan: DenoisePlan, unet: Engine, shallow: Engine | None = None, *, slots: int = 1
    ) -> tuple[SharedProgram, int]:
        """A slot in a program of this plan, in a new one if none has a free slot; it is the job's until `leave`.

        A new program has up to `slots` slots, if jobs of this plan can share one.
        """
        slots = shareable_slots(plan, slots)
        key = program_key(plan, slots), id(unet)
        found = self._find(key)
        if found is not None:
            return found
        with self._making:  # of two jobs that come at once, the second finds what the first has made
            found = self._find(key)
            if found is not None:
                return found
            shared = SharedProgram(self._made(plan, slots, unet, shallow), key)
            slot = shared.join()
            assert slot is not None
            with self._lock:
                self._programs.append(shared)
            return shared, slot

    def leave(self, shared: SharedProgram, slot: int, *, broken: bool = False) -> None:
        """A job is over. What a broken job left on the device is unknown, so nobody else gets its program.

        Where too many programs are idle, the one unused for longest is closed; a broken one after its last job.
        """
        with self._lock:
            shared.leave(slot)
            if shared in self._programs:
                self._programs.remove(shared)
                if not (broken or shared.broken):
                    self._programs.append(shared)
            idle = [one for one in self._programs if one.idle]
            over = idle[: max(0, len(idle) - self._most)]
            self._programs = [one for one in self._programs if one not in over]
            if shared.idle and shared not in self._programs and shared not in over:
                over.append(shared)
        for one in over:
            one.program.close()

    def free_unused(self) -> bool:
        """Close all idle programs; whether there were any."""
        return self._close_idle(lambda program: True)

    def forget(self, unet: Engine) -> None:
        """Close the programs of a U-Net that is about to be closed; no job may be on one."""
        self._close_idle(lambda shared: shared.key[1] == id(unet))

    def _close_idle(self, wanted: Callable[[SharedProgram], bool]) -> bool:
        with self._lock:
            idle = [one for one in self._programs if one.idle and wanted(one)]
            self._programs = [one for one in self._programs if one not in idle]
        for one in idle:
            one.program.close()
        return bool(idle)

    def close(self) -> None:
        """Give back all that is held; no job may be under way, and none may follow."""
        self.free_unused()
        self.batch_sizes.device.close()

    def __len__(self) -> int:
        return sum(shared.idle for shared in self._programs)

    def _made(self, plan: DenoisePlan, slots: int, unet: Engine, shallow: Engine | None) -> StepProgram:
        self.made += 1
        try:
            return self._make(plan, slots, unet, shallow)
        except OutOfMemory:
            if not self.free_unused():
                raise
        # Outside of the handler: the error would keep half of the first program alive.
        return self._make(plan, slots, unet, shallow)

    def _find(self, key: ProgramKey) -> tuple[SharedProgram, int] | None:
        with self._lock:
            for shared in reversed(self._programs):
                if shared.key == key and (slot := shared.join()) is not None:
                    return shared, slot
        return None
