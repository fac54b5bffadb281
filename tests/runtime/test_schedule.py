"""Sigmas and Euler steps, against the reference's and against the formulas written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimicmotion_trt.schedule import euler_steps, initial_scale, karras_sigmas


@pytest.mark.parametrize("name", ["single", "long", "augmented"])
def test_golden_sigmas_and_timesteps(golden_run, name):
    run = golden_run(name)
    sigmas = karras_sigmas(run.settings.steps, 0.002, 700.0)
    np.testing.assert_allclose(sigmas, run.sigmas, rtol=1e-6)
    timesteps = [step.timestep for step in euler_steps(sigmas)]
    np.testing.assert_allclose(timesteps, run.timesteps, rtol=1e-6)


@given(st.integers(1, 100), st.floats(1e-4, 1), st.floats(2, 1e4))
def test_sigmas_fall_from_the_largest_to_zero(steps, low, high):
    sigmas = karras_sigmas(steps, low, high)
    assert sigmas.shape == (steps + 1,)
    assert sigmas.dtype == np.float32
    assert (np.diff(sigmas) < 0).all()
    np.testing.assert_allclose(sigmas[0], high, rtol=1e-5)
    assert sigmas[-1] == 0
    if steps > 1:
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
    assert initial_scale(karras_sigmas(25, 0.002, 700.0)) == pytest.approx(math.sqrt(700.0**2 + 1))
