"""The GPU's step program on this machine: the same kernels through g++, a real engine, and a stand-in for CUDA."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mimicmotion_trt import Animator
from mimicmotion_trt.cuda.denoiser import ProgramCache, make_batches
from mimicmotion_trt.cuda.program import Layout, StepProgram, padded
from mimicmotion_trt.denoise import Conditions, Denoiser, guidance_ramp, make_rows
from mimicmotion_trt.denoise.schedule import euler_steps, initial_scale, karras_sigmas
from mimicmotion_trt.denoise.segments import cut_segments, fusion_weights
from mimicmotion_trt.engines import Bundle, Engine, Placement, open_engine

CELLS = (8, 16)


@pytest.fixture(scope="module")
def unet(bundle) -> Engine:
    return open_engine(Bundle.load(bundle), "unet", Placement(threads=1))


def make_conditions(unet: Engine, frames: int, seed: int) -> Conditions:
    """Random ones of the golden networks' widths."""
    chance = np.random.default_rng(seed)
    shapes = {tensor.name: tensor.shape for tensor in unet.spec.inputs}

    def drawn(*shape: Any) -> Any:
        return chance.normal(size=shape).astype(np.float32)

    return Conditions(
        embedding=drawn(1, shapes["embedding"][2]),
        image_latents=drawn(4, *CELLS),
        pose=drawn(frames, shapes["pose"][2], *CELLS) * np.float32(0.1),
        time_ids=(6.0, 127.0, 0.02),
    )


@pytest.mark.parametrize("host", ["float32"], indirect=True)
@pytest.mark.parametrize(
    ("frames", "segment", "overlap", "fusion", "guidance", "buckets"),
    [
        (9, 4, 2, "triangular", (2.0, 2.0), (1, 2, 4)),
        (9, 4, 2, "linear", (1.0, 3.0), (2,)),
        (3, 8, 2, "triangular", (1.0, 1.0), (1,)),
        (12, 5, 1, "triangular", (1.5, 1.5), (1, 4)),
    ],
)
def test_it_is_the_cpus_step_program(
    host, stand_in, unet, frames, segment, overlap, fusion, guidance, buckets
):
    plan = cut_segments(frames, segment, overlap, "reference")
    weights, ramp = fusion_weights(plan, fusion), guidance_ramp(guidance, frames)
    rows = make_rows(plan, weights, ramp)
    branches = (True,) if np.all(ramp == 1) else (True, False)
    batched = make_batches(plan, weights, ramp, buckets)
    assert batched.branches == branches
    sizes = batched.batches
    device = stand_in(host)
    program = StepProgram(device, unet, Layout((batched,), frames, CELLS))
    for seed in (1, 2):  # two jobs on one program: nothing of the first is left, nothing is allocated
        conditions, sigmas = make_conditions(unet, frames, seed), karras_sigmas(3, 0.002, 700.0)
        noise = np.random.default_rng(seed).normal(size=(frames, 4, *CELLS)).astype(np.float32)
        noise *= np.float32(initial_scale(sigmas))
        expected = Denoiser(unet, conditions, rows, max(sizes))
        expected.latents[...] = noise
        device.told.clear()
        program.start(conditions, ramp, noise)
        for step in euler_steps(sigmas):
            expected.step(step)
            program.step(step)
            scale = np.abs(expected.latents).max()
            np.testing.assert_allclose(program.read(program.latents), expected.latents, atol=2e-6 * scale)
            np.testing.assert_allclose(program.read(program.previous), expected.previous, atol=2e-6 * scale)
        assert "empty" not in device.told
        once = ["gather", "gather_conditions", "gather_conditions", "timesteps", "time_ids", "engine"]
        assert [name.removesuffix("_narrow") for name in device.told] == 3 * (
            [*once * len(sizes), "blend_step"]
        )


def test_rows_that_fill_no_batch_are_padded():
    plan = cut_segments(9, 4, 2, "reference")
    rows = make_batches(plan, fusion_weights(plan, "triangular"), np.ones(9, np.float32), (2,))
    assert sum(rows.batches) == len(plan) + len(plan) % 2
    assert set(rows.batches) == {2}
    assert len(padded(rows.tables(), sum(rows.batches)).frames) == sum(rows.batches)


@pytest.mark.parametrize("host", ["float32"], indirect=True)
@pytest.mark.parametrize(
    ("options", "graphs"),
    [
        ({}, 1),
        ({"guidance_interval": (0.5, 20.0)}, 2),
        ({"layout": "shifted"}, 2),  # six kinds of steps, some with a segment more
        ({"reuse_interval": 2}, 2),
        ({"reuse_interval": 2, "guidance_interval": (0.5, 20.0), "schedule": "align-your-steps"}, 4),
    ],
)
def test_the_animator_on_it_is_the_animator_on_the_cpu(host, stand_in, deep_bundle, options, graphs):
    """All of `sample`, but for the device: program cache, layout, noise, latents read back."""
    with Animator.load(deep_bundle, threads=1) as animator:
        width, height = animator.manifest.sizes[0]
        chance = np.random.default_rng(0)
        picture = chance.integers(0, 255, (height, width, 3), np.uint8)
        poses = chance.integers(0, 255, (10, height, width, 3), np.uint8)
        plain = {"steps": 6, "segment": 4, "overlap": 2, "guidance": (1.5, 2.0), "seed": 3}
        settings = animator.settings(**{**plain, **options})
        expected = animator.sample(picture, poses, settings)
        device = stand_in(host)
        animator.denoisers.programs = ProgramCache(
            lambda layout, unet, outer: StepProgram(device, unet, layout, outer=outer)
        )
        for _ in range(2):
            found = animator.sample(picture, poses, settings)
            np.testing.assert_allclose(found, expected, atol=4e-6 * np.abs(expected).max())
        assert animator.denoisers.programs.made == 1
        assert device.recorded == graphs


@pytest.mark.parametrize("host", ["float32"], indirect=True)
def test_the_same_start_gives_the_same_bytes(host, stand_in, unet):
    plan = cut_segments(5, 4, 1, "reference")
    weights = fusion_weights(plan, "triangular")
    batched = make_batches(plan, weights, np.ones(5, np.float32), (1,))
    layout = Layout((batched,), 5, CELLS)
    program = StepProgram(stand_in(host), unet, layout)
    conditions, (step, *_) = make_conditions(unet, 5, 0), euler_steps(karras_sigmas(2, 0.1, 10.0))
    noise = np.random.default_rng(0).normal(size=(5, 4, *CELLS)).astype(np.float32)
    results = []
    for _ in range(2):
        program.start(conditions, guidance_ramp((1.0, 1.0), 5), noise)
        program.step(step)
        results.append(program.read(program.latents).tobytes())
    assert results[0] == results[1]


@pytest.mark.parametrize("host", ["float32"], indirect=True)
def test_a_preview_brings_one_frame_down(host, stand_in, deep_bundle):
    class Counting(stand_in):
        def download(self, array: Any) -> Any:
            self.told.append(f"{len(array)} frames")
            return super().download(array)

    with Animator.load(deep_bundle, threads=1) as animator:
        settings = animator.settings(steps=2, segment=4, overlap=2, guidance=(1.0, 1.0))
        conditions = animator.condition(np.zeros((64, 128, 3), np.uint8), 6, settings)
        conditions.pose[...] = 0
        device = Counting(host)
        animator.denoisers.programs = ProgramCache(
            lambda layout, unet, outer: StepProgram(device, unet, layout, outer=outer)
        )
        denoiser = animator.denoiser(conditions, settings)
        step = next(iter(animator.steps(settings)))
        denoiser.step(step)
        found = denoiser.finished(denoiser.frames // 2, step)
        assert [told for told in device.told if told.endswith("frames")] == ["1 frames", "1 frames"]
        x, following = denoiser.previous[3], denoiser.latents[3]
        np.testing.assert_array_equal(
            found, x - np.float32(step.sigma / (step.next - step.sigma)) * (following - x)
        )
        denoiser.close()
