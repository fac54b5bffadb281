"""The fused arithmetic against naive formulas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimicmotion_trt.denoise.kernels import blend, gather, to_pictures


@st.composite
def segments(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Latents [F,4,h,w] and the frames of one segment: 0, then a window."""
    frames, high, wide = draw(st.integers(1, 9)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    latents = random.normal(size=(frames, 4, high, wide)).astype(np.float32)
    first = draw(st.integers(1, frames))
    last = draw(st.integers(first, frames))
    return latents, np.array([0, *range(first, last)])


@given(segments(), st.floats(-700, 700, width=32))
def test_gather_picks_and_scales(segment, scale):
    latents, frames = segment
    out = np.full((len(frames), *latents.shape[1:]), np.nan, np.float32)
    gather(latents, frames, scale, out)
    np.testing.assert_array_equal(out, latents[frames] * np.float32(scale))


def test_gather_casts_to_half_precision():
    latents = np.random.default_rng(0).normal(size=(3, 4, 2, 2)).astype(np.float32)
    out = np.empty((2, 4, 2, 2), np.float16)
    gather(latents, np.array([0, 2]), 0.5, out)
    np.testing.assert_allclose(out, latents[[0, 2]] * 0.5, rtol=1e-3)


def test_gather_writes_into_the_first_channels_of_the_engines_input():
    latents = np.ones((2, 4, 2, 2), np.float32)
    engine_input = np.zeros((2, 8, 2, 2), np.float32)
    gather(latents, np.array([0, 1]), 3.0, engine_input[:, :4])
    assert (engine_input[:, :4] == 3).all()
    assert (engine_input[:, 4:] == 0).all()


@given(segments(), st.integers(0, 2**32))
def test_blend_adds_each_frames_share(segment, seed):
    latents, frames = segment
    random = np.random.default_rng(seed)
    prediction = random.normal(size=(len(frames), *latents.shape[1:])).astype(np.float32)
    share = random.normal(size=len(frames)).astype(np.float32)
    expected = latents.copy()
    for slot, frame in enumerate(frames):
        expected[frame] += share[slot] * prediction[slot]
    blend(prediction, share, frames, latents, np.empty_like(prediction))
    np.testing.assert_array_equal(latents, expected)


def test_pixels_are_truncated_not_rounded():
    values = [-1, -np.inf, np.inf, 1, 7.5, -7.5, 0, 1 - 1e-3, 2 * 254.999 / 255 - 1, 2 * 254.01 / 255 - 1]
    expected = [0, 0, 255, 255, 255, 0, 127, 254, 254, 254]
    planes = np.tile(np.array(values, np.float32), (1, 3, 1, 1))
    out = np.empty((1, 1, len(values), 3), np.uint8)
    to_pictures(planes, out)
    for channel in range(3):
        assert out[0, 0, :, channel].tolist() == expected


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_planes_become_pictures(dtype):
    planes = np.random.default_rng(0).uniform(-1.5, 1.5, (2, 3, 4, 5)).astype(dtype)
    exact = planes.astype(np.float32)  # whatever the planes are
    expected = (np.clip(exact * np.float32(0.5) + np.float32(0.5), 0, 1) * np.float32(255)).astype(np.uint8)
    out = np.empty((2, 4, 5, 3), np.uint8)
    to_pictures(planes.copy(), out)
    np.testing.assert_array_equal(out, expected.transpose(0, 2, 3, 1))
