"""From the networks' points to those that are drawn."""

from __future__ import annotations

import numpy as np

from mimicmotion_trt.pose.layout import FACE, face_in_body, to_openpose
from mimicmotion_trt.pose.wholebody import from_wholebody


def test_mediapipe_body_in_openpose_order():
    points = np.stack([np.arange(33.0), np.arange(33.0) * 2], axis=1)
    visibility = np.linspace(0.2, 0.9, 33)
    body, score = to_openpose(points, visibility)
    # nose, neck, then right before left: shoulder, elbow, wrist, hip, knee, ankle; eyes and ears
    right_and_left = [12, 14, 16, 11, 13, 15, 24, 26, 28, 23, 25, 27, 5, 2, 8, 7]
    assert body[:, 0].tolist() == [0, 11.5, *right_and_left]
    assert score[1] == visibility[11]  # the less sure shoulder
    assert score[2] == visibility[12]


def test_every_face_point_is_taken_once():
    assert len(FACE) == len(set(FACE)) == 68
    assert max(FACE) < 468


def test_nose_and_eyes_from_the_mesh():
    mesh = np.zeros((468, 2))
    mesh[4], mesh[33], mesh[133], mesh[362], mesh[263] = (5, 5), (1, 1), (3, 1), (7, 1), (9, 1)
    assert face_in_body(mesh).tolist() == [[5, 5], [2, 1], [8, 1]]


def test_wholebody_in_openpose_order():
    points = np.stack([np.arange(133.0), np.zeros(133)], axis=1)
    scores = np.linspace(0.31, 1.5, 133)  # the raw scores may be above 1
    pose = from_wholebody(points, scores, (100, 50))
    # COCO: nose, left and right eye, ears, shoulders, elbows, wrists, hips, knees, ankles
    right_and_left = [6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3]
    np.testing.assert_allclose(pose.body[0, :, 0] * 100, [0, 5.5, *right_and_left], rtol=1e-6)
    np.testing.assert_allclose(pose.face[0, :, 0] * 100, np.arange(23, 91), rtol=1e-6)
    np.testing.assert_allclose(pose.hands[0, 0, :, 0] * 100, np.arange(91, 112), rtol=1e-6)
    np.testing.assert_allclose(pose.hands[0, 1, :, 0] * 100, np.arange(112, 133), rtol=1e-6)
    np.testing.assert_allclose(pose.body_score[0, 2], scores[6], rtol=1e-6)
    assert pose.hands_score.max() == 1


def test_the_neck_is_seen_if_both_shoulders_are():
    points, scores = np.zeros((133, 2)), np.full(133, 0.5)
    assert from_wholebody(points, scores, (10, 10)).body_score[0, 1] == 1
    scores[6] = 0.3
    assert from_wholebody(points, scores, (10, 10)).body_score[0, 1] == 0
