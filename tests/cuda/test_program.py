"""A step program on this machine: the same kernels through g++, a real engine, and a stand-in for CUDA."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mimicmotion_trt import Animator
from mimicmotion_trt.cuda.program import StepProgram
from mimicmotion_trt.denoise.loop import CpuDenoiser, denoised
from mimicmotion_trt.denoise.schedule import initial_scale
from mimicmotion_trt.engines import Bundle, Engine, Placement, open_engine

from .plans import conditions_of, noise_of, plan_of, programs_on


@pytest.fixture(scope="module")
def unet(bundle) -> Engine:
    return open_engine(Bundle.load(bundle), "unet", Placement(threads=1))


@pytest.mark.parametrize("host", ["float32"], indirect=True)
@pytest.mark.parametrize(
    ("frames", "segment", "overlap", "fusion", "guidance", "sizes"),
    [
        (9, 4, 2, "triangular", (2.0, 2.0), (1, 2, 4)),
        (9, 4, 2, "linear", (1.0, 3.0), (2,)),
        (3, 8, 2, "triangular", (1.0, 1.0), (1,)),
        (12, 5, 1, "triangular", (1.5, 1.5), (1, 4)),
    ],
)
def test_it_executes_a_plan_as_the_cpu_does(
    host, stand_in, unet, frames, segment, overlap, fusion, guidance, sizes
):
    plan = plan_of(
        frames,
        sizes=sizes,
        segment=segment,
        overlap=overlap,
        fusion=fusion,
        guidance=guidance,
        sigma_min=0.002,
        sigma_max=700.0,
    )
    assert plan.first.branches == ((True,) if guidance == (1.0, 1.0) else (True, False))
    device = stand_in(host)
    program = StepProgram(device, unet, plan)
    for seed in (1, 2):  # two jobs on one program: nothing of the first is left, nothing is allocated
        conditions = conditions_of(unet, frames, seed)
        noise = noise_of(frames, seed, initial_scale(700.0))
        expected = CpuDenoiser(unet, plan, conditions, noise)
        device.told.clear()
        program.start(plan, conditions, noise)
        for step in plan.steps:
            expected.step(step)
            program.step(step)
            scale = np.abs(expected.latents).max()
            np.testing.assert_allclose(program.latents(), expected.latents, atol=2e-6 * scale)
            before, after = program.frame(frames - 1)
            np.testing.assert_allclose(before, expected.previous[-1], atol=2e-6 * scale)
            np.testing.assert_array_equal(after, program.latents()[-1])
        assert "empty" not in device.told
        once = ["gather", "gather_conditions", "gather_conditions", "timesteps", "time_ids", "engine"]
        assert [name.removesuffix("_narrow") for name in device.told] == 3 * (
            [*once * len(plan.first.batches), "blend_step"]
        )


@pytest.mark.parametrize("host", ["float32"], indirect=True)
@pytest.mark.parametrize(
    ("options", "graphs"),
    [
        ({}, 1),
        ({"guidance_interval": (0.5, 20.0)}, 2),
        ({"layout": "shifted"}, 2),  # six variants of steps, some with a segment more
        ({"reuse_interval": 2}, 2),
        ({"reuse_interval": 2, "guidance_interval": (0.5, 20.0), "schedule": "align-your-steps"}, 4),
        ({"pose_strength": 2.0, "image_strength": 0.5, "pose_start": 0.3, "pose_end": 0.7}, 1),
        ({"reuse_interval": 2, "pose_end": 0.5}, 2),
    ],
)
def test_the_animator_on_it_is_the_animator_on_the_cpu(host, stand_in, deep_bundle, options, graphs):
    """All of `sample`, but for the device: program cache, plan, noise, latents read back."""
    with Animator.load(deep_bundle, threads=1) as animator:
        width, height = animator.manifest.sizes[0]
        chance = np.random.default_rng(0)
        picture = chance.integers(0, 255, (height, width, 3), np.uint8)
        poses = chance.integers(0, 255, (10, height, width, 3), np.uint8)
        plain = {"steps": 6, "segment": 4, "overlap": 2, "guidance": (1.5, 2.0), "seed": 3}
        settings = animator.settings(**{**plain, **options})
        expected = animator.sample(picture, poses, settings)
        device = stand_in(host)
        animator.sampler.programs = programs_on(device)
        for _ in range(1 if options else 2):  # the second job runs on the first one's program
            found = animator.sample(picture, poses, settings)
            np.testing.assert_allclose(found, expected, atol=4e-6 * np.abs(expected).max())
        assert animator.sampler.programs.made == 1
        assert device.recorded == graphs


@pytest.mark.parametrize("host", ["float32"], indirect=True)
def test_the_same_start_gives_the_same_bytes(host, stand_in, unet):
    plan, noise = plan_of(5, overlap=1, steps=2), noise_of(5, 0)
    program, conditions = StepProgram(stand_in(host), unet, plan), conditions_of(unet, 5, 0)
    results = []
    for _ in range(2):
        program.start(plan, conditions, noise)
        program.step(plan.steps[0])
        results.append(program.latents().tobytes())
    assert results[0] == results[1]


@pytest.mark.parametrize("host", ["float32"], indirect=True)
def test_a_preview_brings_one_frame_down(host, stand_in, deep_bundle):
    class Counting(stand_in):
        def download(self, array: Any) -> Any:
            self.told.append(f"{len(array)} frames")
            return super().download(array)

    with Animator.load(deep_bundle, threads=1) as animator:
        settings = animator.settings(steps=2, segment=4, overlap=2, guidance=(1.0, 1.0))
        conditions = animator.networks.condition(np.zeros((64, 128, 3), np.uint8), 6, settings)
        conditions.pose[...] = 0
        device = Counting(host)
        animator.sampler.programs = programs_on(device)
        plan = animator.sampler.plan(6, settings, conditions.latent_size)
        noise = animator.sampler.initial_latents(plan, settings)
        with animator.sampler.denoiser(plan, conditions, noise) as denoiser:
            for _ in denoiser.run(plan.steps[0]):
                pass
            found = denoiser.denoised(3, plan.steps[0])
            assert [told for told in device.told if told.endswith("frames")] == ["1 frames", "1 frames"]
            np.testing.assert_array_equal(found, denoised(noise[3], denoiser.latents[3], plan.steps[0]))
