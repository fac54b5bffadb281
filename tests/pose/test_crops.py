"""Crops: a square looks at a turned part of a picture, and points find their way back."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimicmotion_trt.pose.crops import Crop

CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])


def test_the_whole_picture_stands_in_the_middle_of_its_square():
    crop = Crop.whole(np.zeros((40, 100, 3), np.uint8))
    np.testing.assert_allclose(crop.to_picture(CORNERS), [[0, -30], [100, -30], [100, 70], [0, 70]])


def test_pointing_puts_the_end_straight_above_the_start():
    crop = Crop.pointing((50, 50), (70, 50), side=80)  # the end lies to the right
    np.testing.assert_allclose(crop.to_picture(np.array([0.5, 0.25])), [70, 50], atol=1e-9)


def test_a_crop_without_extent_is_one_pixel():
    assert Crop.pointing((5, 5), (5, 5), side=0).side == 1
    assert Crop.around(np.zeros((3, 2)), 0.3, 1.5).side == 1


@given(
    angle=st.floats(-math.pi, math.pi),
    scale=st.floats(1, 3),
    seed=st.integers(0, 1000),
)
@settings(max_examples=50, deadline=None)
def test_around_holds_every_point(angle, scale, seed):
    points = np.random.default_rng(seed).uniform(-100, 100, (12, 2))
    crop = Crop.around(points, angle, scale)
    sides = crop.to_picture(np.array([[1.0, 0.0], [0.0, 1.0]])) - crop.to_picture(np.zeros(2))
    inside = (points - crop.to_picture(np.zeros(2))) @ sides.T / crop.side**2
    assert inside.min() >= -1e-9
    assert inside.max() <= 1 + 1e-9


def test_shifting_follows_the_crops_own_axes():
    crop = Crop((0.0, 0.0), 10.0, math.pi / 2).shifted(0, 0.5)  # down, in a crop lying on its side
    np.testing.assert_allclose(crop.centre, (-5, 0), atol=1e-9)


@pytest.mark.parametrize("angle", [0.0, 0.5, math.pi / 2, -2.0])
def test_what_is_cut_out_lies_where_to_picture_says(angle):
    crop = Crop((60.0, 45.0), 64.0, angle)
    spot = crop.to_picture(np.array([0.25, 0.75]))
    picture = np.zeros((90, 120, 3), np.uint8)
    x, y = np.rint(spot).astype(int)
    picture[y - 1 : y + 2, x - 1 : x + 2] = 255
    cut = crop.cut(picture, 128)
    assert cut.shape == (1, 128, 128, 3)
    row, column = np.unravel_index(cut[0, ..., 0].argmax(), (128, 128))
    assert abs(column - 32) <= 3
    assert abs(row - 96) <= 3
    assert cut.max() == 255


def test_beyond_the_edge_is_black():
    cut = Crop((0.0, 0.0), 20.0).cut(np.full((50, 50, 3), 200, np.uint8), 20)
    assert cut[0, 0, 0, 0] == 0
    assert cut[0, 15, 15, 0] == 200
