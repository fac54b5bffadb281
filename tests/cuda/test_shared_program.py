"""Several jobs on one step program: each gets what it would get alone, whoever steps with it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from mimicmotion_trt import Animator, EngineError
from mimicmotion_trt.cuda.program import StepProgram
from mimicmotion_trt.cuda.shared_program import SharedProgram
from mimicmotion_trt.denoise.loop import CpuDenoiser
from mimicmotion_trt.denoise.plan import Conditions, DenoisePlan
from mimicmotion_trt.denoise.schedule import Step
from mimicmotion_trt.engines import Bundle, Engine, Placement, open_engine
from mimicmotion_trt.limits import Limits

from .plans import conditions_of, noise_of, plan_of, programs_on

FRAMES = 6


@pytest.fixture(scope="module")
def unet(bundle) -> Engine:
    return open_engine(Bundle.load(bundle), "unet", Placement(threads=1))


@dataclass
class Alone:
    """A job of its own sigmas and guidance, and the CPU's denoiser that does it alone."""

    plan: DenoisePlan
    conditions: Conditions
    noise: Any
    denoiser: CpuDenoiser

    @classmethod
    def make(
        cls, unet: Engine, seed: int, steps: int, sizes: tuple[int, ...] = (1, 2, 4), **chosen: Any
    ) -> Alone:
        plan = plan_of(FRAMES, sizes=sizes, steps=steps, guidance=(1.5, 2.0 + seed), **chosen)
        conditions, noise = conditions_of(unet, FRAMES, seed), noise_of(FRAMES, seed)
        return cls(plan, conditions, noise, CpuDenoiser(unet, plan, conditions, noise))

    @property
    def steps(self) -> tuple[Step, ...]:
        return self.plan.steps

    def check(self, latents: Any) -> None:
        scale = np.abs(self.denoiser.latents).max()
        np.testing.assert_allclose(latents, self.denoiser.latents, atol=4e-6 * scale)


def together(count: int, work: Callable[[int], None]) -> list[BaseException]:
    """Run `work(0)`, `work(1)`, … in threads of their own; returns what they raised."""
    failed: list[BaseException] = []

    def guarded(index: int) -> None:
        try:
            work(index)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return failed


@pytest.mark.parametrize("host", ["float32"], indirect=True)
@pytest.mark.parametrize("sizes", [(1, 2, 4), (4,)])
def test_some_step_while_others_stand_still(host, stand_in, unet, sizes):
    jobs = [Alone.make(unet, seed, 4, sizes) for seed in range(3)]
    program = StepProgram(stand_in(host), unet, jobs[0].plan, slots=3)
    for slot, job in enumerate(jobs):
        program.start(job.plan, job.conditions, job.noise, slot)
    at = [0, 0, 0]  # each job's next step
    for running in ((0,), (0, 2), (0, 1, 2), (1,), (0, 1), (1, 2)):
        program.advance({slot: jobs[slot].steps[at[slot]] for slot in running})
        for slot in running:
            jobs[slot].denoiser.step(jobs[slot].steps[at[slot]])
            at[slot] += 1
        for slot, job in enumerate(jobs):
            job.check(program.latents(slot))
    assert at == [4, 4, 3]


@pytest.mark.parametrize("host", ["float32"], indirect=True)
@pytest.mark.parametrize("sizes", [(1, 2, 4), (4,)])
def test_each_job_has_its_pose_in_its_own_steps(host, stand_in, unet, sizes):
    """All on graphs that were captured before; one job with pose throughout, one at first, one at last."""
    kinds: list[dict[str, Any]] = [{}, {"pose_end": 0.5}, {"pose_start": 0.5}]
    jobs = [Alone.make(unet, seed, 4, sizes, **chosen) for seed, chosen in enumerate(kinds)]
    device = stand_in(host)
    program = StepProgram(device, unet, jobs[0].plan, slots=3)
    captured = device.recorded
    for slot, job in enumerate(jobs):
        program.start(job.plan, job.conditions, job.noise, slot)
    for index in range(4):
        program.advance({slot: job.steps[index] for slot, job in enumerate(jobs)})
        for slot, job in enumerate(jobs):
            job.denoiser.step(job.steps[index])
            job.check(program.latents(slot))
    assert device.recorded == captured


@pytest.mark.parametrize("host", ["float32"], indirect=True)
def test_jobs_in_threads_step_together(host, stand_in, unet):
    """The device is busy until all three have asked for their first step: that one goes alone, the next together."""
    first = threading.Semaphore(0)

    class Busy(stand_in):
        def read(self, array: Any) -> Callable[[], Any]:
            values = super().read(array)

            def wait() -> Any:
                for _ in range(0 if self.told.count("read") else 3):
                    assert first.acquire(timeout=30)
                return values()

            return wait

    device = Busy(host)
    jobs = [Alone.make(unet, seed, 3 + seed) for seed in range(3)]
    shared = SharedProgram(StepProgram(device, unet, jobs[0].plan, slots=3), key="three")
    device.told.clear()

    def run(index: int) -> None:
        job, slot = jobs[index], shared.join()
        shared.program.start(job.plan, job.conditions, job.noise, slot)
        first.release()
        for step in job.steps:
            shared.step(slot, step)
        job.check(shared.program.latents(slot))
        shared.leave(slot)

    for job in jobs:
        for step in job.steps:
            job.denoiser.step(step)
    assert together(3, run) == []
    assert shared.idle
    assert device.told.count("blend_step") < sum(len(job.steps) for job in jobs)


@pytest.mark.parametrize("host", ["float32"], indirect=True)
@pytest.mark.parametrize("failing", ["the wait for the step before", "the step"])
def test_a_failure_is_told_to_all_who_asked_and_the_program_is_given_up(host, stand_in, unet, failing):
    asked = threading.Barrier(2, timeout=30)

    class Failing(stand_in):
        broken = ""

        def read(self, array: Any) -> Callable[[], Any]:
            values = super().read(array)

            def wait() -> Any:
                asked.wait()
                self.fail("the wait for the step before")
                return values()

            return wait

        def upload(self, values: Any, array: Any) -> None:
            self.fail("the step")
            super().upload(values, array)

        def fail(self, what: str) -> None:
            if self.broken == what:
                raise EngineError("the GPU failed: lost.")

    device, job = Failing(host), Alone.make(unet, 0, 2)
    shared = SharedProgram(StepProgram(device, unet, job.plan, slots=2), key="two")
    slots = [shared.join(), shared.join()]
    shared.step(slots[0], job.steps[0])
    device.broken = failing

    class Telling(threading.Condition):
        """Lets the device go on once the second job waits for the step under way."""

        def wait(self, timeout: float | None = None) -> bool:
            threading.Timer(0.05, asked.wait).start()
            return super().wait(timeout)

    shared._changed = Telling()
    failed = together(2, lambda index: shared.step(slots[index], job.steps[0]))
    assert sorted(str(error).split(":")[0] for error in failed) == [
        "a step shared with another job failed",
        "the GPU failed",
    ]
    shared.leave(slots[0])
    assert shared.join() is None


@pytest.mark.parametrize("host", ["float32"], indirect=True)
@pytest.mark.parametrize("limits", [Limits(jobs=2, together=2), Limits(jobs=2)])
def test_animators_jobs_share_a_program_if_they_may(host, stand_in, deep_bundle, limits):
    """All of `sample` in two threads, each as it would be alone; to the last bit where rows are not shared."""
    with Animator.load(deep_bundle, threads=1, limits=limits) as animator:
        width, height = animator.manifest.sizes[0]
        chance = np.random.default_rng(0)
        pictures = chance.integers(0, 255, (2, height, width, 3), np.uint8)
        poses = chance.integers(0, 255, (2, 6, height, width, 3), np.uint8)
        plain = animator.settings(steps=2, segment=4, overlap=2, guidance=(1.5, 2.0))
        strengths = {"pose_strength": 2.0, "image_strength": 0.5, "pose_end": 0.6}
        settings = [replace(plain, seed=1), replace(plain, seed=2, steps=4, **strengths)]
        expected = [animator.sample(pictures[k], poses[k], settings[k]) for k in range(2)]
        device = stand_in(host)
        animator.sampler.programs = programs_on(device)
        alone = [animator.sample(pictures[k], poses[k], settings[k]) for k in range(2)]
        met = threading.Barrier(2, timeout=60)

        def run(index: int) -> None:
            met.wait()
            found = animator.sample(pictures[index], poses[index], settings[index])
            np.testing.assert_allclose(found, expected[index], atol=4e-6 * np.abs(expected[index]).max())
            if limits.together == 1:
                np.testing.assert_array_equal(found, alone[index])

        assert together(2, run) == []
        assert animator.sampler.programs.made == (1 if limits.together == 2 else 2)
        whole = replace(plain, reuse_interval=2)
        assert np.isfinite(animator.sample(pictures[0], poses[0], whole)).all()


def test_a_step_is_made_when_the_call_returns():
    """Many jobs in threads on a program that only writes down what it did."""
    done: list[tuple[int, float]] = []

    class Written:
        slots = 6

        def broken(self) -> Callable[[], Any]:
            return lambda: np.zeros(6, np.int32)

        def advance(self, steps: dict[int, Step]) -> None:
            time.sleep(1e-4)
            done.extend((slot, step.sigma) for slot, step in steps.items())

    program: Any = Written()
    shared, steps = SharedProgram(program, key="six"), plan_of(FRAMES, steps=40).steps
    joined = threading.Barrier(6, timeout=60)  # or one that is late would get the slot of one that has left

    def run(index: int) -> None:
        slot = shared.join()
        assert slot is not None
        joined.wait()
        for step in steps:
            shared.step(slot, step)
            assert done.count((slot, step.sigma)) == 1
        shared.leave(slot)

    assert together(6, run) == []
    assert len(done) == 6 * len(steps)
