"""The step program against the reference's order of work, around a small network with real dependencies."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimicmotion_trt.denoise.loop import CpuDenoiser
from mimicmotion_trt.denoise.plan import (
    Batching,
    Conditions,
    DenoisePlan,
    even_size,
    guidance_ramp,
    make_variant,
    split_rows,
)
from mimicmotion_trt.denoise.schedule import PLAIN, Step, euler_steps, karras_sigmas
from mimicmotion_trt.denoise.segments import cut_segments, fusion_weights
from mimicmotion_trt.engines import EngineSpec, network_specs
from mimicmotion_trt.errors import EngineError

Array = np.ndarray[Any, Any]
HIGH, WIDE, POSE, TOKEN = 2, 3, 5, 6


def predict(latents: Array, timestep: Array, embedding: Array, time_ids: Array, pose: Array) -> Array:
    """A linear network: every input counts, frames of a segment see each other and are told apart."""
    noisy, image = latents[:, :, :4], latents[:, :, 4:]
    scalars = timestep + embedding.sum(axis=(1, 2)) + 0.01 * time_ids.sum(axis=1)
    index = np.arange(latents.shape[1], dtype=np.float32)[:, None, None, None]
    mixed = noisy - 0.5 * noisy.mean(axis=1, keepdims=True) + 0.3 * image + 0.2 * pose[:, :, :4]
    return (mixed + 0.1 * scalars[:, None, None, None, None] + 0.02 * index).astype(np.float32)


class LinearEngine:
    """`predict` as an engine; counts the rows of each call."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.conditional = 0

    @property
    def gpu(self) -> None:
        return None

    @property
    def spec(self) -> EngineSpec:
        return network_specs(pose_channels=POSE, token_width=TOKEN, image_size=8)["unet"]

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Callable[[], None]:
        self.spec.check(inputs, outputs)

        def call() -> None:
            self.calls.append(len(inputs["latents"]))
            self.conditional += int(inputs["embedding"].any(axis=(1, 2)).sum())
            outputs["prediction"][:] = predict(**inputs)

        return call

    def close(self) -> None:
        pass


class IdleEngine(LinearEngine):
    """Answers nothing and allocates nothing."""

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Callable[[], None]:
        outputs["prediction"][:] = 0.5
        return lambda: None


def conditions_of(frames: int, latent_size: tuple[int, int] = (HIGH, WIDE)) -> Conditions:
    random = np.random.default_rng(0)
    return Conditions(
        embedding=random.normal(size=(1, TOKEN)).astype(np.float32),
        image_latents=random.normal(size=(4, *latent_size)).astype(np.float32),
        pose=random.normal(size=(frames, POSE, *latent_size)).astype(np.float32),
        time_ids=(6.0, 127.0, 0.02),
    )


def noise_of(frames: int) -> Array:
    return np.random.default_rng(1).normal(size=(frames, 4, HIGH, WIDE)).astype(np.float32) * 700


def plan_of(
    frames: int,
    segment: int,
    overlap: int,
    guidance: tuple[float, float] = (2.0, 2.0),
    batching: Batching = Batching(most=4),  # noqa: B008 - frozen
    latent_size: tuple[int, int] = (HIGH, WIDE),
) -> DenoisePlan:
    """A plan without steps of its own: the tests choose them."""
    segments, ramp = cut_segments(frames, segment, overlap), guidance_ramp(guidance, frames)
    variant = make_variant(segments, fusion_weights(segments), ramp, batching)
    (first,) = euler_steps(karras_sigmas(1, 0.002, 700.0))
    return DenoisePlan(frames, latent_size, ramp, (first,), {PLAIN: variant}, batching, segment)


def denoiser_of(
    engine: Any,
    frames: int,
    segment: int,
    overlap: int,
    guidance: tuple[float, float] = (2.0, 2.0),
    batch: int = 4,
    executor: ThreadPoolExecutor | None = None,
) -> CpuDenoiser:
    batching = Batching(most=batch, workers=2 if executor else 1)
    plan = plan_of(frames, segment, overlap, guidance, batching)
    return CpuDenoiser(engine, plan, conditions_of(frames), noise_of(frames), executor=executor)


def reference_step(
    x: Array, sigma: float, following: float, segment: int, overlap: int, guidance: tuple[float, float]
) -> Array:
    """One step in the reference's order: predictions are summed, divided by their weights, guided, stepped."""
    frames, c = len(x), conditions_of(len(x))
    x = x.astype(np.float64)
    scaled = x / np.sqrt(sigma**2 + 1)
    summed, total = np.zeros((2, *x.shape)), np.zeros(frames)
    for frame in cut_segments(frames, segment, overlap):
        length = len(frame)
        u = 2 * (np.arange(length) + 0.5) / length
        weight = np.minimum(u, 2 - u)
        total[frame] += weight
        for branch in (0, 1):  # unconditional first
            image = np.broadcast_to(c.image_latents * branch, (length, 4, HIGH, WIDE))
            prediction = predict(
                np.concatenate([scaled[frame], image], axis=1)[None].astype(np.float32),
                np.array([0.25 * np.log(sigma)], np.float32),
                c.embedding[None] * branch,
                np.array([c.time_ids], np.float32),
                c.pose[frame][None] * branch,
            )[0]
            summed[branch][frame] += weight[:, None, None, None] * prediction
    unconditional, conditional = summed / total[:, None, None, None]
    scale = np.linspace(*guidance, frames)[:, None, None, None]
    v = unconditional + scale * (conditional - unconditional)
    x0 = -v * sigma / np.sqrt(sigma**2 + 1) + x / (sigma**2 + 1)
    return x + (x - x0) / sigma * (following - sigma)


@st.composite
def programs(draw: st.DrawFn) -> dict[str, Any]:
    segment = draw(st.integers(2, 9))
    guides = st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 7.5])
    return {
        "frames": draw(st.integers(1, 24)),
        "segment": segment,
        "overlap": draw(st.integers(1, segment - 1)),
        "guidance": (draw(guides), draw(guides)),
        "batch": draw(st.integers(1, 7)),
    }


@settings(max_examples=60)
@given(programs(), st.booleans())
def test_steps_equal_the_references(program, two_workers):
    sigmas = karras_sigmas(3, 0.002, 700.0)
    with ThreadPoolExecutor(1) as executor:
        denoiser = denoiser_of(LinearEngine(), **program, executor=executor if two_workers else None)
        del program["batch"]
        expected = denoiser.latents.astype(np.float64)
        for step in euler_steps(sigmas):
            expected = reference_step(expected, step.sigma, step.next, *list(program.values())[1:])
            denoiser.step(step)
            assert np.abs(denoiser.latents - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 64])
def test_the_number_of_rows_in_a_batch_does_not_matter(batch):
    def run(batch: int) -> Array:
        denoiser = denoiser_of(LinearEngine(), 20, 8, 3, (1.5, 3.0), batch)
        for step in euler_steps(karras_sigmas(3, 0.002, 700.0)):
            denoiser.step(step)
        return denoiser.latents

    np.testing.assert_allclose(run(batch), run(5), rtol=1e-5, atol=1e-4)


@given(st.integers(1, 60), st.integers(1, 8), st.integers(1, 2))
def test_batches_take_the_fewest_rounds(rows, most, workers):
    size = even_size(rows, most, workers)
    assert 1 <= size <= min(rows, most)
    if workers == 1:
        assert size == min(rows, most)


@pytest.mark.parametrize(
    ("rows", "sizes", "parts"),
    [
        (7, (1, 2, 4), (4, 2, 1)),
        (9, (1, 2, 4), (4, 4, 1)),
        (7, (2, 4), (4, 2, 2)),
        (3, (4,), (4,)),
        (5, (4,), (4, 4)),
        (1, (1,), (1,)),
    ],
)
def test_rows_are_split_into_the_batches_that_an_engine_takes(rows, sizes, parts):
    assert split_rows(rows, sizes) == parts


@pytest.mark.parametrize("sizes", [(1, 2, 4), (2, 4), (4,), (8,)])
def test_an_engine_that_takes_few_numbers_of_rows_answers_the_same(sizes):
    """A batch with fewer rows than that is filled up with rows of weight 0."""
    steps = euler_steps(karras_sigmas(3, 0.002, 700.0))
    engine, expected = LinearEngine(), denoiser_of(LinearEngine(), 20, 8, 3, (1.5, 3.0))
    plan = plan_of(20, 8, 3, (1.5, 3.0), Batching(sizes))
    denoiser = CpuDenoiser(engine, plan, conditions_of(20), noise_of(20))
    for step in steps:
        denoiser.step(step)
        expected.step(step)
    np.testing.assert_allclose(denoiser.latents, expected.latents, rtol=1e-5, atol=1e-4)
    assert set(engine.calls) <= set(sizes)


@pytest.mark.parametrize(
    ("guidance", "conditional", "unconditional"),
    [((1, 1), 3, 0), ((2, 2), 3, 3), ((1, 2), 3, 3), ((0, 0), 0, 3), ((0, 1), 3, 3)],
)
def test_only_rows_that_count_are_run(guidance, conditional, unconditional):
    engine = LinearEngine()
    denoiser = denoiser_of(engine, 18, 8, 3, guidance)
    assert denoiser.plan.segment_count == 3
    (step,) = euler_steps(karras_sigmas(1, 0.002, 700.0))
    denoiser.step(step)
    assert sum(engine.calls) == len(denoiser.plan.first.rows) == conditional + unconditional
    assert engine.conditional == conditional


def test_guidance_one_is_the_conditional_prediction():
    first, second = (denoiser_of(LinearEngine(), 10, 8, 3, guidance) for guidance in ((1, 1), (1, 1 + 1e-6)))
    (step,) = euler_steps(karras_sigmas(1, 0.002, 700.0))
    first.step(step)
    second.step(step)
    assert [len(one.plan.first.rows) for one in (first, second)] == [2, 4]
    np.testing.assert_allclose(first.latents, second.latents, rtol=1e-4, atol=1e-4)


def test_segments_done_rise_to_all_of_them():
    denoiser = denoiser_of(LinearEngine(), 40, 8, 3, batch=2)
    (step,) = euler_steps(karras_sigmas(1, 0.002, 700.0))
    before = denoiser.latents.copy()
    done = []
    for count in denoiser.run(step):
        done.append(count)
        if count < denoiser.plan.segment_count:
            np.testing.assert_array_equal(denoiser.latents, before)  # they stay until all rows are in
    assert done == sorted(done)
    assert done[-1] == denoiser.plan.segment_count
    assert not np.array_equal(denoiser.latents, before)


def test_a_finished_frame_is_what_the_network_believes():
    denoiser = denoiser_of(LinearEngine(), 6, 8, 3)
    step = euler_steps(karras_sigmas(4, 0.5, 20.0))[1]
    x = denoiser.latents.astype(np.float64)
    reference = reference_step(x, step.sigma, 0.0, 8, 3, (2.0, 2.0))  # a step to zero lands on x0
    denoiser.step(step)
    np.testing.assert_allclose(denoiser.denoised(3, step), reference[3], rtol=1e-3, atol=0.1)


def test_nothing_is_allocated_in_steps():
    plan = plan_of(40, 8, 3, latent_size=(64, 64))
    noise = np.zeros((40, 4, 64, 64), np.float32)
    denoiser = CpuDenoiser(IdleEngine(), plan, conditions_of(40, latent_size=(64, 64)), noise)
    steps: list[Step] = euler_steps(karras_sigmas(10, 0.002, 700.0))
    for step in steps[:2]:
        denoiser.step(step)
    gc.collect()
    tracemalloc.start()
    try:
        for step in steps[2:]:
            denoiser.step(step)
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    frame = denoiser.latents[0].nbytes
    assert frame == 65_536
    assert (
        peak < frame
    )  # since the second step: not even one frame's latents; only the interpreter's odds and ends
    assert now < frame / 2


def test_an_engines_failure_comes_through_from_either_worker():
    class Failing(LinearEngine):
        def __init__(self, at: int) -> None:
            super().__init__()
            self.at = at

        def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Callable[[], None]:
            call, self.at = super().bind(inputs, outputs), self.at - 1
            return self.fail if self.at < 0 else call

        def fail(self) -> None:
            raise EngineError("out of memory.")

    (step,) = euler_steps(karras_sigmas(1, 0.002, 700.0))
    for at in (0, 1):
        with ThreadPoolExecutor(1) as executor:
            denoiser = denoiser_of(Failing(at), 18, 8, 3, batch=3, executor=executor)
            before = denoiser.latents.copy()
            with pytest.raises(EngineError, match="out of memory"):
                denoiser.step(step)
            np.testing.assert_array_equal(denoiser.latents, before)


def test_guidance_is_linear_over_the_frames():
    assert guidance_ramp((1.0, 3.0), 5).tolist() == [1.0, 1.5, 2.0, 2.5, 3.0]
    assert guidance_ramp((1.5, 3.0), 1).tolist() == [1.5]
