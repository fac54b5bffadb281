"""Reading the body's networks."""

from __future__ import annotations

import numpy as np

from mimicmotion_trt.pose.body import BodyDetector, BodyTracker, refine
from mimicmotion_trt.pose.models import sigmoid


def test_a_point_moves_to_the_centre_of_its_peak():
    heatmaps = np.zeros((64, 64, 2))
    heatmaps[30, 33, 0] = heatmaps[30, 34, 0] = 0.9
    refined = refine(np.array([[32.5 / 64, 31.2 / 64], [0.5, 0.5]]), heatmaps)
    np.testing.assert_allclose(refined[0], [33.5 / 64, 30 / 64])
    np.testing.assert_allclose(refined[1], [0.5, 0.5])  # its own heatmap is empty


def test_a_faint_or_far_peak_moves_nothing():
    heatmaps = np.full((64, 64, 1), 0.49)
    heatmaps[10, 10, 0] = 1.0
    point = np.array([[0.5, 0.5]])
    np.testing.assert_array_equal(refine(point, heatmaps), point)


def test_points_outside_and_at_the_edge_are_safe():
    heatmaps = np.ones((64, 64, 3))
    refined = refine(np.array([[-0.1, 0.5], [1.0, 0.5], [0.0, 0.999]]), heatmaps)
    np.testing.assert_array_equal(refined[:2], [[-0.1, 0.5], [1.0, 0.5]])
    np.testing.assert_allclose(refined[2], [1.5 / 64, 61.5 / 64])


def test_sigmoid_does_not_overflow():
    np.testing.assert_allclose(sigmoid([-1e9, 0, 1e9]), [0, 0.5, 1])


def test_a_person_is_detected_and_her_points_are_found(person):
    (candidate,) = BodyDetector(threads=2)(person)
    body = BodyTracker(threads=2)(person, candidate.crop)
    assert body.presence > 0.5
    np.testing.assert_allclose(body.points[0], [223, 124], atol=8)  # the nose
    np.testing.assert_allclose(body.points[[5, 2]], [[202, 103], [247, 105]], atol=10)  # her eyes
    again = BodyTracker(threads=2)(person, body.next_crop)
    assert np.abs(again.points[:11] - body.points[:11]).max() < 12


def test_an_empty_picture_shows_nobody():
    assert BodyDetector(threads=2)(np.full((50, 80, 3), 128, np.uint8)) == []
