"""The CUDA kernels, run on this machine, against numpy: the same bits on random shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimicmotion_trt.cuda import launches
from mimicmotion_trt.cuda.launches import make_tables, step_numbers
from mimicmotion_trt.denoise import kernels
from mimicmotion_trt.denoise.loop import CpuDenoiser
from mimicmotion_trt.denoise.plan import (
    Batching,
    Conditions,
    DenoisePlan,
    StepVariant,
    guidance_ramp,
    make_variant,
)
from mimicmotion_trt.denoise.schedule import PLAIN, Step, euler_steps, karras_sigmas
from mimicmotion_trt.denoise.segments import cut_segments, fusion_weights
from mimicmotion_trt.engines import network_specs

Array = np.ndarray[Any, Any]
STEPS = euler_steps(karras_sigmas(4, 0.002, 700.0))
quick = settings(max_examples=40)


@dataclass(frozen=True)
class Clip:
    """A clip cut into segments: a plan's variant for numpy, its tables for the kernels."""

    high: int
    wide: int
    guidance: Array
    variant: StepVariant
    tables: launches.Tables
    seed: int

    @property
    def frames(self) -> int:
        return len(self.guidance)

    @property
    def pixels(self) -> int:
        return self.high * self.wide

    def random(self, *shape: int, scale: float = 1.0) -> Array:
        """Normal values [*shape,h,w]."""
        random = np.random.default_rng(self.seed + len(shape))
        return (random.normal(size=(*shape, self.high, self.wide)) * scale).astype(np.float32)


@st.composite
def clips(draw: st.DrawFn) -> Clip:
    """One segment or many, both layouts and fusions, guidance that needs one branch or two, odd sizes."""
    frames, segment = draw(st.integers(1, 24)), draw(st.integers(2, 9))
    layout = draw(st.sampled_from(["reference", "compact"]))
    segments = cut_segments(frames, segment, draw(st.integers(1, segment - 1)), layout)
    weights = fusion_weights(segments, draw(st.sampled_from(["triangular", "linear"])))
    guide = st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.5])
    guidance = guidance_ramp(draw(st.tuples(guide, guide)), frames)
    variant = make_variant(segments, weights, guidance, Batching(most=64))
    return Clip(
        high=draw(st.integers(1, 20)),
        wide=draw(st.integers(1, 20)),
        guidance=guidance,
        variant=variant,
        tables=make_tables(variant),
        seed=draw(st.integers(0, 2**32)),
    )


def numbers_of(step: Step) -> Array:
    return step_numbers([step])[0]


@quick
@given(clip=clips(), step=st.sampled_from(STEPS))
def test_gather_scales_the_latents_and_joins_the_pictures(host, clip, step):
    latents, picture = clip.random(clip.frames, 4, scale=step.sigma), clip.random(4)
    expected = np.zeros((*clip.tables.frames.shape, 8, clip.high, clip.wide), host.dtype)
    for into, row in zip(expected, clip.variant.rows, strict=True):
        kernels.gather(latents, row.frames, step.scale, into[:, :4])
        into[:, 4:] = picture if row.conditional else 0
    out = np.full_like(expected, np.nan)
    launch = launches.gather(*clip.tables.frames.shape, clip.pixels)
    tables = clip.tables
    host.run(launch, latents, picture, tables.frames, tables.conditional, tables.jobs, numbers_of(step), out)
    np.testing.assert_array_equal(out, expected)


@quick
@given(clip=clips(), step=st.sampled_from(STEPS))
def test_blend_step_fuses_guides_and_steps(host, clip, step):
    latents = clip.random(clip.frames, 4, scale=step.sigma)
    predictions = clip.random(*clip.tables.frames.shape, 4).astype(host.dtype)
    expected = latents * np.float32(step.keep)
    for prediction, row in zip(predictions, clip.variant.rows, strict=True):
        share = row.share * np.float32(step.push)
        kernels.blend(prediction, share, row.frames, expected, np.empty(prediction.shape, np.float32))
    tables, numbers = clip.tables, numbers_of(step)
    launch = launches.blend_step(clip.frames, clip.pixels)
    given = predictions, tables.first, tables.covers, clip.guidance, numbers
    host.run(launch, *given, np.zeros(1, np.int32), latents)
    np.testing.assert_array_equal(latents, expected)


@quick
@given(clip=clips(), steps=st.lists(st.sampled_from(STEPS), min_size=2, max_size=2))
def test_jobs_side_by_side_are_each_alone_and_the_one_between_stands_still(host, clip, steps):
    """Gather and blend of the first and the third of three jobs, at sigmas of their own."""
    latents, pictures = clip.random(3 * clip.frames, 4, scale=10.0), clip.random(3, 4, scale=2.0)
    guidance = np.concatenate([clip.guidance, clip.guidance, clip.guidance[::-1]])
    both = make_tables(clip.variant, (0, 2), 3)
    numbers = np.stack([numbers_of(steps[0]), launches.STILL, numbers_of(steps[1])])
    predictions = clip.random(*both.frames.shape, 4).astype(host.dtype)
    gathered = np.full((*both.frames.shape, 8, clip.high, clip.wide), np.nan, host.dtype)
    launch = launches.gather(*both.frames.shape, clip.pixels)
    host.run(launch, latents, pictures, both.frames, both.conditional, both.jobs, numbers, gathered)
    before, broken = latents.copy(), np.zeros(3, np.int32)
    launch = launches.blend_step(clip.frames, clip.pixels, 3)
    host.run(launch, predictions, both.first, both.covers, guidance, numbers, broken, latents)
    one, frames, rows = clip.tables, clip.frames, len(clip.tables.frames)
    np.testing.assert_array_equal(latents[frames : 2 * frames], before[frames : 2 * frames])
    for turn, job in enumerate((0, 2)):
        own, mine = slice(job * frames, (job + 1) * frames), slice(turn * rows, (turn + 1) * rows)
        alone, expected = before[own].copy(), np.empty_like(gathered[mine])
        launch = launches.gather(*one.frames.shape, clip.pixels)
        host.run(launch, alone, pictures[job], one.frames, one.conditional, one.jobs, numbers[job], expected)
        np.testing.assert_array_equal(gathered[mine], expected)
        launch = launches.blend_step(frames, clip.pixels)
        given = predictions[mine], one.first, one.covers, guidance[own], numbers[job]
        host.run(launch, *given, np.zeros(1, np.int32), alone)
        np.testing.assert_array_equal(latents[own], alone)


@quick
@given(rows=st.integers(1, 600), seed=st.integers(0, 999))
def test_every_row_is_told_what_its_job_is(host, rows, seed):
    chance = np.random.default_rng(seed)
    ids, jobs = chance.normal(size=(4, 3)).astype(np.float32), chance.integers(0, 4, rows).astype(np.int32)
    out = np.full((rows, 3), np.nan, np.float32)
    host.run(launches.time_ids(rows), ids, jobs, out)
    np.testing.assert_array_equal(out, ids[jobs])


@quick
@given(clip=clips(), channels=st.integers(1, 9))
def test_conditions_are_those_of_each_rows_frames(host, clip, channels):
    tables = clip.tables
    pose = clip.random(clip.frames, channels).astype(host.dtype)
    out = np.full((*tables.frames.shape, *pose.shape[1:]), np.nan, host.dtype)
    launch = launches.gather_conditions(*tables.frames.shape, channels * clip.pixels, host.dtype)
    host.run(launch, pose, tables.frames, tables.conditional, out)
    np.testing.assert_array_equal(out, pose[tables.frames] * tables.conditional[:, None, None, None, None])


@quick
@given(rows=st.integers(1, 600), step=st.sampled_from(STEPS))
def test_every_row_is_told_the_timestep(host, rows, step):
    out = np.full(rows, np.nan, np.float32)
    host.run(launches.timesteps(rows), np.zeros(rows, np.int32), numbers_of(step), out)
    np.testing.assert_array_equal(out, np.float32(step.timestep))


@quick
@given(clip=clips(), factor=st.sampled_from([0.18215, 1.0, 3.7]))
def test_the_decoders_input_is_divided_by_the_scaling_factor(host, clip, factor):
    latents = clip.random(clip.frames, 4)
    out = np.empty(latents.shape, host.dtype)
    host.run(launches.decoder_input(clip.frames, clip.pixels, factor), latents, out)
    np.testing.assert_array_equal(out, (latents / np.float32(factor)).astype(host.dtype))


@quick
@given(count=st.integers(1, 3), high=st.integers(1, 40), wide=st.integers(1, 40), seed=st.integers(0, 999))
def test_planes_become_pictures(host, count, high, wide, seed):
    planes = np.random.default_rng(seed).uniform(-1.5, 1.5, (count, 3, high, wide)).astype(host.dtype)
    planes.flat[0] = np.inf
    expected = np.empty((count, high, wide, 3), np.uint8)
    kernels.to_pictures(planes.astype(np.float32), expected)
    out = np.empty_like(expected)
    broken = np.zeros(1, np.int32)
    host.run(launches.to_pictures(count, high * wide, host.dtype), planes, broken, out)
    assert broken == 1  # infinity
    np.testing.assert_array_equal(out, expected)


class Network:
    """A U-Net in which every input counts and the frames of a segment see each other."""

    spec = network_specs(pose_channels=4, token_width=3, image_size=8)["unet"]

    def bind(self, inputs: dict[str, Array], outputs: dict[str, Array]) -> Callable[[], None]:
        def call() -> None:
            noisy, picture = inputs["latents"][:, :, :4], inputs["latents"][:, :, 4:]
            scalars = inputs["timestep"] + inputs["embedding"].sum((1, 2))
            mixed = noisy - 0.5 * noisy.mean(1, keepdims=True) + picture + inputs["pose"]
            outputs["prediction"][:] = mixed + scalars[:, None, None, None, None]

        return call


def run_step_program(host: Any, clip: Clip, conditions: Conditions, latents: Array) -> None:
    """All steps on latents [F,4,h,w], as a device runs them: kernels, the network, kernels."""
    tables, (rows, length) = clip.tables, clip.tables.frames.shape
    clips = (rows, length, 4, clip.high, clip.wide)
    inputs = {
        "latents": np.empty((rows, length, 8, clip.high, clip.wide), np.float32),
        "timestep": np.empty(rows, np.float32),
        "embedding": np.empty((rows, *conditions.embedding.shape), np.float32),
        "pose": np.empty(clips, np.float32),
    }
    prediction = np.empty(clips, np.float32)
    network = Network().bind(inputs, {"prediction": prediction})
    token, poses, frames = conditions.embedding, conditions.pose, tables.frames
    launch = launches.gather_conditions(rows, 1, token.size, token.dtype)
    host.run(launch, token, tables.jobs, tables.conditional, inputs["embedding"])
    launch = launches.gather_conditions(rows, length, poses[0].size, poses.dtype)
    host.run(launch, poses, frames, tables.conditional, inputs["pose"])
    for step in step_numbers(STEPS):
        host.run(launches.timesteps(rows), tables.jobs, step, inputs["timestep"])
        launch = launches.gather(rows, length, clip.pixels)
        picture, into = conditions.image_latents, inputs["latents"]
        host.run(launch, latents, picture, frames, tables.conditional, tables.jobs, step, into)
        network()
        launch = launches.blend_step(clip.frames, clip.pixels)
        given = prediction, tables.first, tables.covers, clip.guidance, step
        host.run(launch, *given, np.zeros(1, np.int32), latents)


@pytest.mark.parametrize("host", ["float32"], indirect=True)
@quick
@given(clip=clips())
def test_the_step_program_equals_the_denoisers(host, clip):
    conditions = Conditions(
        embedding=np.full((1, 3), 0.1, np.float32),
        image_latents=clip.random(4),
        pose=clip.random(clip.frames, 4),
        time_ids=(6.0, 127.0, 0.02),
    )
    plan = DenoisePlan(
        clip.frames,
        (clip.high, clip.wide),
        clip.guidance,
        tuple(STEPS),
        {PLAIN: clip.variant},
        Batching(most=64),
        clip.frames,
    )
    latents = clip.random(clip.frames, 4, scale=700.0)
    denoiser = CpuDenoiser(Network(), plan, conditions, latents)
    for step in STEPS:
        denoiser.step(step)
    run_step_program(host, clip, conditions, latents)
    np.testing.assert_array_equal(latents, denoiser.latents)
