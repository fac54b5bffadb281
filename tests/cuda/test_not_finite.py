"""An engine that answers NaN on a GPU: the kernels notice, the host is told with what it reads anyway."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mimicmotion_trt import Animator, EngineError
from mimicmotion_trt.cuda.decoder import CudaDecoder
from mimicmotion_trt.cuda.program import StepProgram
from mimicmotion_trt.cuda.shared_program import SharedProgram
from mimicmotion_trt.engines import Bundle, Engine, Placement, open_engine

from .plans import conditions_of, noise_of, plan_of, programs_on

FRAMES = 6


class Overflowing:
    """An engine some of whose calls answer with infinity in one place; `calls` are counted from 1."""

    def __init__(self, engine: Engine, calls: tuple[int, ...], row: int = 0) -> None:
        self.spec, self.gpu, self.close = engine.spec, engine.gpu, engine.close
        self._engine, self._calls, self._row, self.called = engine, calls, row, 0

    def bind(self, inputs: Any, outputs: Any) -> Any:
        call, answer = self._engine.bind(inputs, outputs), next(iter(outputs.values()))

        def run() -> None:
            call()
            self.called += 1
            if self.called in self._calls:
                answer[self._row].flat[-1] = np.inf

        return run


@pytest.fixture(scope="module")
def unet(bundle) -> Engine:
    return open_engine(Bundle.load(bundle), "unet", Placement(threads=1))


@pytest.mark.parametrize("host", ["float32"], indirect=True)
@pytest.mark.parametrize("step", [1, 2, 5])
def test_the_step_whose_answer_is_not_finite_is_named_and_the_next_job_runs(host, stand_in, bundle, step):
    with Animator.load(bundle, threads=1) as animator:
        width, height = animator.manifest.sizes[0]
        picture, poses = np.zeros((height, width, 3), np.uint8), np.zeros((4, height, width, 3), np.uint8)
        settings = animator.settings(steps=5, guidance=(1.0, 1.0))
        expected = animator.sample(picture, poses, settings)
        animator.sampler.programs = programs_on(stand_in(host))
        plain = animator.networks["unet"]
        # the first call is the one that a graph is captured after
        animator.networks._engines["unet"] = Overflowing(plain, (1 + step,))
        with pytest.raises(EngineError, match=rf"network unet answered .* in step {step} of 5") as caught:
            animator.sample(picture, poses, settings)
        assert "float32" in caught.value.remedy
        animator.networks._engines["unet"] = plain
        np.testing.assert_allclose(animator.sample(picture, poses, settings), expected, atol=1e-3)


@pytest.mark.parametrize("host", ["float32"], indirect=True)
def test_of_jobs_that_share_a_program_only_the_one_at_fault_is_told(host, stand_in, unet):
    plan = plan_of(FRAMES, sizes=(4,), steps=3)
    rows = len(plan.first.rows)
    engine = Overflowing(unet, (4,), row=rows)  # two calls are those of the captures; row 0 of the second job
    shared = SharedProgram(StepProgram(stand_in(host), engine, plan, slots=2), key="two")
    for slot in (shared.join(), shared.join()):
        shared.program.start(plan, conditions_of(unet, FRAMES, slot), noise_of(FRAMES, slot), slot)
    for step in plan.steps[:2]:
        shared.program.advance({0: step, 1: step})
    engine.called = 3
    shared._asked = {0: plan.steps[2]}
    shared.step(1, plan.steps[2])
    shared.finish()
    assert shared.not_finite(0) is None
    assert shared.not_finite(1) == plan.steps[2]
    shared.leave(1)
    assert shared.join() == 1
    shared.program.start(plan, conditions_of(unet, FRAMES, 1), noise_of(FRAMES, 1), 1)
    shared.step(1, plan.steps[0])
    shared.finish()
    assert shared.not_finite(1) is None


@pytest.mark.parametrize("host", ["float32"], indirect=True)
def test_a_preview_of_latents_that_are_not_finite_is_the_unets_fault(host, stand_in, bundle):
    with Animator.load(bundle, threads=1) as animator:
        animator.sampler.programs = programs_on(stand_in(host))
        animator.networks._engines["unet"] = Overflowing(animator.networks["unet"], (2,))
        settings = animator.settings(steps=3, guidance=(1.0, 1.0))
        conditions = animator.networks.condition(np.zeros((64, 128, 3), np.uint8), 4, settings)
        conditions.pose[...] = 0
        plan = animator.sampler.plan(4, settings, conditions.latent_size)
        noise = animator.sampler.initial_latents(plan, settings)
        with animator.sampler.denoiser(plan, conditions, noise) as denoiser:
            for _ in denoiser.run(plan.steps[0]):
                pass
            with pytest.raises(EngineError, match=r"unet answered .* in step 1 of 3"):
                denoiser.denoised(2, plan.steps[0])


@pytest.mark.parametrize("host", ["float32"], indirect=True)
def test_the_frames_whose_pictures_are_not_finite_are_named(host, stand_in, bundle):
    with Animator.load(bundle, threads=1) as animator:
        engine = Overflowing(animator.networks["vae_decoder"], (2,))
        animator.networks.decoder = CudaDecoder(stand_in(host), engine, animator.manifest.scaling_factor)
        latents = np.zeros((5, 4, 8, 16), np.float32)
        with pytest.raises(EngineError, match=r"vae_decoder answered .* in frames 2 to 3"):
            animator.decode(latents, 2)
        assert len(animator.decode(latents, 2)) == 5
