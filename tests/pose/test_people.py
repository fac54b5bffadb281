"""Telling people apart and choosing one."""

from __future__ import annotations

import numpy as np

from mimicmotion_trt.pose.people import distinct_boxes, rank


def test_of_overlapping_boxes_the_first_stays():
    boxes = np.array([[0, 0, 10, 10], [1, 1, 11, 11], [20, 0, 30, 10], [0, 9, 10, 19]], float)
    assert distinct_boxes(boxes, 0.45) == [0, 2, 3]


def test_a_box_that_was_dropped_drops_nobody():
    boxes = np.array([[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]], float)
    assert distinct_boxes(boxes, 0.4) == [0, 2]


def test_no_boxes():
    assert distinct_boxes(np.zeros((0, 4)), 0.5) == []


def test_the_largest_comes_first_and_the_middle_breaks_ties():
    centres = np.array([[10, 50], [50, 50], [90, 50]], float)
    assert rank(centres, np.array([10, 10, 30]), (100, 100), None) == [2, 1, 0]


def test_whoever_was_followed_comes_first():
    centres = np.array([[10, 50], [50, 50], [90, 50]], float)
    assert rank(centres, np.array([1, 10, 30]), (100, 100), np.array([20.0, 50.0])) == [0, 1, 2]
