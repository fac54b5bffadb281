"""Sigmas and Euler steps, against the reference's and against the formulas written out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimicmotion_trt import Settings
from mimicmotion_trt.denoise.schedule import (
    ALIGNED,
    PLAIN,
    aligned_sigmas,
    euler_steps,
    initial_scale,
    karras_sigmas,
    sigmas_of,
    steps_of,
)
from mimicmotion_trt.settings import make_settings


def chosen(**values) -> Settings:
    """Settings as a bundle without settings of its own fills them in."""
    return make_settings({}, values)


@pytest.mark.parametrize("name", ["single", "long", "augmented"])
def test_golden_sigmas_and_timesteps(golden_run, name):
    run = golden_run(name)
    sigmas = karras_sigmas(run.settings.steps, 0.002, 700.0)
    np.testing.assert_allclose(sigmas, run.sigmas, rtol=1e-6)
    timesteps = [step.timestep for step in euler_steps(sigmas)]
    np.testing.assert_allclose(timesteps, run.timesteps, rtol=1e-6)


@given(st.integers(1, 100), st.floats(1e-4, 1), st.floats(2, 1e4), st.booleans())
def test_sigmas_fall_from_the_largest_to_zero(steps, low, high, aligned):
    sigmas = (aligned_sigmas if aligned else karras_sigmas)(steps, low, high)
    assert sigmas.shape == (steps + 1,)
    assert sigmas.dtype == np.float32
    assert (np.diff(sigmas) < 0).all()
    np.testing.assert_allclose(sigmas[0], high, rtol=1e-5)
    assert sigmas[-1] == 0
    if steps > 1 and not aligned:
        np.testing.assert_allclose(sigmas[-2], low, rtol=1e-5)


def test_one_step_goes_from_the_largest_sigma_to_zero():
    assert karras_sigmas(1, 0.002, 700.0).tolist() == [700.0, 0.0]


@given(st.floats(0.002, 700), st.floats(0, 1), st.floats(-100, 100), st.floats(-10, 10))
def test_a_step_is_the_euler_step_written_out(sigma, fraction, x, v):
    following = fraction * sigma * 0.999
    (step,) = euler_steps(np.array([sigma, following]))
    x0 = -v * sigma / math.sqrt(sigma**2 + 1) + x / (sigma**2 + 1)
    d = (x - x0) / sigma
    expected = x + d * (following - sigma)
    assert step.keep * x + step.push * v == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert step.scale == pytest.approx(1 / math.sqrt(sigma**2 + 1))
    assert step.timestep == pytest.approx(0.25 * math.log(sigma))
    assert (step.sigma, step.next) == (sigma, following)


def test_the_last_step_lands_on_what_the_network_believes():
    (step,) = euler_steps(np.array([0.5, 0.0]))
    x, v = 0.7, -0.2
    assert step.keep * x + step.push * v == pytest.approx(-v * 0.5 / math.sqrt(1.25) + x / 1.25)


def test_noise_starts_at_the_largest_sigma():
    assert initial_scale(700.0) == pytest.approx(math.sqrt(700.0**2 + 1))


def test_ten_aligned_steps_are_the_published_ones():
    """The last published level is sigma_min; every schedule of ours ends in 0 instead."""
    np.testing.assert_allclose(aligned_sigmas(10, 0.002, 700.0), [*ALIGNED[:-1], 0.0], rtol=1e-6)


def test_other_numbers_of_aligned_steps_are_interpolated_in_ln_sigma():
    """Five steps take every second level; twenty put the geometric mean between any two."""
    np.testing.assert_allclose(aligned_sigmas(5, 0.002, 700.0), [*ALIGNED[:-1:2], 0.0], rtol=1e-6)
    between = [math.sqrt(a * b) for a, b in itertools.pairwise(ALIGNED)]
    np.testing.assert_allclose(aligned_sigmas(20, 0.002, 700.0)[1::2], between, rtol=1e-6)
    assert aligned_sigmas(1, 0.002, 700.0).tolist() == [700.0, 0.0]


def test_a_narrower_range_is_a_part_of_the_same_curve():
    """From one published level to another, with a step for each between: these levels themselves."""
    np.testing.assert_allclose(aligned_sigmas(6, 0.173, 15.886), [*ALIGNED[2:8], 0.0], rtol=1e-6)


def test_a_wider_range_stretches_the_outermost_pieces():
    sigmas = aligned_sigmas(10, 1e-4, 2000.0)
    np.testing.assert_allclose(sigmas, [2000.0, *ALIGNED[1:-1], 0.0], rtol=1e-6)


def test_settings_choose_the_schedule():
    assert sigmas_of(chosen(steps=7)).tolist() == karras_sigmas(7, 0.002, 700.0).tolist()
    aligned = Settings(steps=7, schedule="align-your-steps", sigma_min=0.01, sigma_max=80.0)
    assert sigmas_of(aligned).tolist() == aligned_sigmas(7, 0.01, 80.0).tolist()


def test_every_step_is_plain_without_options():
    steps = steps_of(chosen(steps=9))
    assert steps == euler_steps(karras_sigmas(9, 0.002, 700.0))
    assert {step.variant for step in steps} == {PLAIN}


def test_the_interval_of_guidance_is_open_below_and_closed_above():
    settings = chosen(
        steps=10, schedule="align-your-steps", guidance_interval=(float(np.float32(0.981)), 700.0)
    )
    assert [step.guided for step in steps_of(settings)] == [True] * 6 + [False] * 4
    limited = chosen(steps=10, guidance_interval=(0.3, 20.0))
    assert all(step.guided == (0.3 < step.sigma <= 20.0) for step in steps_of(limited))


def test_shifts_of_neighbouring_steps_lie_far_apart():
    shifts = [step.shift for step in steps_of(chosen(steps=50, layout="shifted"))]
    assert shifts[0] == 0
    assert all(0 <= shift < 1 for shift in shifts)
    apart = np.abs(np.diff(shifts))
    assert np.minimum(apart, 1 - apart).min() > 0.38
    assert np.diff(np.sort(shifts)).min() > 0.01  # no border comes back to where it was


@given(
    st.integers(1, 40),
    st.integers(1, 8),
    st.none() | st.tuples(st.floats(0, 1), st.floats(2, 500)),
    st.tuples(st.floats(0, 0.4), st.floats(0.5, 1)),
)
def test_the_full_network_runs_where_there_is_nothing_to_reuse(steps, interval, guided, posed):
    """In the first step, where guidance or the pose begins or ends, and at the latest `interval` steps after the
    last time."""
    start, end = posed
    found = steps_of(
        chosen(steps=steps, reuse_interval=interval, guidance_interval=guided, pose_start=start, pose_end=end)
    )
    age = 0
    for before, step in zip([None, *found[:-1]], found, strict=True):
        age += 1
        fresh = before is None or age == interval
        fresh |= before is not None and (before.variant, before.posed) != (step.variant, step.posed)
        assert step.full == fresh
        age = 0 if step.full else age
