"""Networks: what goes in is checked, and of those found in a picture each person is taken once."""

from __future__ import annotations

import numpy as np
import pytest

from mimicmotion_trt.errors import InputError
from mimicmotion_trt.pose.network import OnnxNetwork, distinct_boxes, rank, shrink, sigmoid


def test_a_network_that_is_none_is_refused(tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a network")
    with pytest.raises(InputError, match=r"broken\.onnx cannot be loaded"):
        OnnxNetwork(path)


def test_sigmoid_does_not_overflow():
    np.testing.assert_allclose(sigmoid([-1e9, 0, 1e9]), [0, 0.5, 1])


def test_shrinking_keeps_the_shape_and_small_pictures():
    assert shrink(np.zeros((1000, 3000, 3), np.uint8), 1280).shape == (427, 1280, 3)
    assert shrink(np.zeros((1, 5000, 3), np.uint8), 1280).shape == (1, 1280, 3)
    small = np.zeros((10, 20, 3), np.uint8)
    assert shrink(small, 1280) is small


def test_of_overlapping_boxes_the_best_stays():
    boxes = np.array([[0, 9, 10, 19], [1, 1, 11, 11], [0, 0, 10, 10], [20, 0, 30, 10]], float)
    assert distinct_boxes(boxes, np.array([0.6, 0.8, 0.9, 0.7]), 0.5, 0.45) == [2, 3, 0]


def test_a_box_that_was_dropped_drops_nobody():
    boxes = np.array([[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]], float)
    assert distinct_boxes(boxes, np.array([0.9, 0.8, 0.7]), 0.5, 0.4) == [0, 2]


def test_an_unsure_box_is_left_out():
    boxes = np.array([[0, 0, 10, 10], [20, 0, 30, 10]], float)
    assert distinct_boxes(boxes, np.array([0.49, 0.51]), 0.5, 0.4) == [1]
    assert distinct_boxes(np.zeros((0, 4)), np.zeros(0), 0.5, 0.4) == []


def test_the_largest_comes_first_and_the_middle_breaks_ties():
    centres = np.array([[10, 50], [50, 50], [90, 50]], float)
    assert rank(centres, np.array([10, 10, 30]), (100, 100), None) == [2, 1, 0]


def test_whoever_was_followed_comes_first():
    centres = np.array([[10, 50], [50, 50], [90, 50]], float)
    assert rank(centres, np.array([1, 10, 30]), (100, 100), np.array([20.0, 50.0])) == [0, 1, 2]
