"""The reference picture as the networks want it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimicmotion_trt.denoise.kernels import _bicubic, _blur, clip_pixels, to_signed
from mimicmotion_trt.engines import ImageStatistics
from mimicmotion_trt.media.picture import read_picture

PLAIN = ImageStatistics(size=16, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@pytest.mark.parametrize("name", ["single", "long", "augmented"])
def test_golden_image_embedding(animator, golden_run, name):
    run = golden_run(name)
    token = animator.networks.embed_picture(read_picture(run.picture))
    np.testing.assert_allclose(token, run.image_embedding[-1], atol=1e-5)


def test_pictures_become_signed_planes():
    picture = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 15
    planes = to_signed(picture)
    assert planes.shape == (3, 2, 3)
    assert planes.flags.c_contiguous
    np.testing.assert_allclose(planes, picture.transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)
    assert to_signed(np.array([[[0, 255, 0]]], np.uint8)).ravel().tolist() == [-1, 1, -1]
    assert to_signed(np.zeros((5, 2, 3, 3), np.uint8)).shape == (5, 3, 2, 3)


@settings(max_examples=40)
@given(st.integers(2, 600), st.integers(2, 256))
def test_rows_of_the_matrices_sum_to_one(size, target):
    np.testing.assert_allclose(_blur(size, target).sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(_bicubic(size, target).sum(axis=1), 1, atol=1e-12)


def test_the_blur_is_the_reference_formula():
    """448 -> 224: sigma 0.5, three taps; 1000 -> 100: sigma 4.5, eighteen taps made nineteen."""
    weights = np.exp(-np.array([1, 0, 1]) / (2 * 0.5**2))
    np.testing.assert_allclose(_blur(448, 224)[100, 99:102], weights / weights.sum())
    assert np.count_nonzero(_blur(1000, 100)[500]) == 19
    assert np.count_nonzero(_blur(100, 224)[50] > 1e-12) == 1  # enlarging blurs nothing


def test_the_blurs_border_is_reflected_without_repeating_it():
    row = _blur(448, 224)[0]
    inner = _blur(448, 224)[100, 99:102]
    np.testing.assert_allclose(row[:2], [inner[1], 2 * inner[0]])


def test_bicubic_hits_both_corners_and_keeps_the_picture_at_its_own_size():
    np.testing.assert_allclose(_bicubic(7, 7), np.eye(7), atol=1e-12)
    matrix = _bicubic(10, 4)
    assert matrix[0, 0] == 1
    assert matrix[-1, -1] == pytest.approx(1)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 192), (128, 64), (8, 8)])
def test_a_plain_picture_stays_plain(height, width):
    image = np.full((3, height, width), 0.5, np.float32)
    pixels = clip_pixels(image, PLAIN)
    assert pixels.shape == (1, 3, 16, 16)
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels, 0.75, atol=1e-6)


def test_mean_and_deviation_are_the_channels_own():
    statistics = ImageStatistics(size=16, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    pixels = clip_pixels(np.zeros((3, 32, 32), np.float32), statistics)
    np.testing.assert_allclose(pixels[0, :, 0, 0], [0.4 / 0.5, 0.3 / 1.0, 0.2 / 2.0], rtol=1e-5)
