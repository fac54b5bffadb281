"""Denoising on a GPU: one clip in a slot of a step program that is kept from job to job."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..denoise.loop import denoised
from ..denoise.plan import Conditions, DenoisePlan
from ..denoise.schedule import Step
from ..engines import Engine
from .shared_program import ProgramCache, SharedProgram

Float = NDArray[np.float32]


class CudaDenoiser:
    """Executes a plan for one clip, like `denoise.loop.CpuDenoiser`. Its latents are on the GPU."""

    def __init__(
        self,
        programs: ProgramCache,
        plan: DenoisePlan,
        conditions: Conditions,
        latents: Float,
        unet: Engine,
        shallow: Engine | None = None,
        *,
        slots: int = 1,
    ) -> None:
        """`latents`: float32 [F,4,h,w] at the first sigma. Up to `slots` jobs may share the program."""
        self.plan = plan
        self._programs, self._conditions = programs, conditions
        self._dtype = unet.spec.dtypes["prediction"]
        shared, self._slot = programs.join(plan, unet, shallow, slots=slots)
        self._shared: SharedProgram | None = shared
        try:
            shared.program.start(plan, conditions, latents, self._slot)
        except BaseException:
            self.close(broken=True)
            raise

    @property
    def latents(self) -> Float:
        """float32 [F,4,h,w] after the last step: a copy. Raises `EngineError` if they are not finite."""
        return self._finished().program.latents(self._slot)

    def run(self, step: Step) -> Iterator[int]:
        """Run one step, which is one graph: yields once, when the work is on the GPU's stream.

        Raises `EngineError` if the latents are not finite after one of the steps before, as far as is known.
        """
        shared = self._opened()
        shared.step(self._slot, step)
        self._check(shared)
        yield self.plan.segment_count

    def denoised(self, frame: int, step: Step) -> Float:
        """x0 [4,h,w] of a frame as the step just made predicts it: x - sigma d."""
        return denoised(*self._finished().program.frame(frame, self._slot), step)

    def close(self, *, broken: bool = False) -> None:
        """Leave the program to the next job, or to nobody if something failed: what is left on it is unknown."""
        if self._shared is not None:
            self._programs.leave(self._shared, self._slot, broken=broken)
            self._shared = None

    def _finished(self) -> SharedProgram:
        """The program, once all steps are done and the latents are known to be finite."""
        shared = self._opened()
        shared.finish()
        self._check(shared)
        return shared

    def _check(self, shared: SharedProgram) -> None:
        step = shared.not_finite(self._slot)
        if step is not None:
            raise self.plan.failure(step, self._conditions, self._dtype)

    def _opened(self) -> SharedProgram:
        if self._shared is None:
            raise ValueError("this denoiser was closed")
        return self._shared
