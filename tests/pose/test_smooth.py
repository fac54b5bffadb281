"""Smoothed keypoints: less jitter, little lag, and what is hardly seen counts little."""

from __future__ import annotations

import numpy as np
import pytest

from mimicmotion_trt.pose.smooth import smooth_poses

FPS = 15.0


@pytest.fixture
def shaking(make_sequence):
    """Four seconds of someone who stands still but for one wrist; every point shakes by 1.5 pixels."""

    def make(fps=FPS, wave=0.0, score=0.9, size=(400, 800), seed=0):
        frames = int(4 * fps)
        still = make_sequence(1, seed=7, fps=fps, size=size)
        truth = np.repeat(still.body.astype(np.float64), frames, axis=0)
        truth[:, 4, 0] += wave * np.sin(2 * np.pi * np.arange(frames) / fps)
        noise = np.random.default_rng(seed).normal(0, 1.5, truth.shape) / size
        scores = np.full((frames, 18), score)
        return make_sequence(frames, body=truth + noise, body_score=scores, fps=fps, size=size), truth

    return make


def jitter(body):
    return np.abs(np.diff(body, 2, axis=0)).mean()


def test_who_stands_still_shakes_less_the_lower_the_cutoff(shaking):
    poses, truth = shaking()
    found = [smooth_poses(poses, cutoff).body for cutoff in (4.0, 1.0, 0.25)]
    shaken = [jitter(poses.body), *map(jitter, found)]
    assert shaken == sorted(shaken, reverse=True)
    assert shaken[2] < 0.4 * shaken[0]
    errors = [np.square(body - truth)[15:].mean() for body in (poses.body, *found)]
    assert errors == sorted(errors, reverse=True)


def test_a_wave_of_the_hand_lags_by_less_than_a_third_of_its_reach(shaking):
    poses, truth = shaking(wave=0.12)
    smoothed = smooth_poses(poses, 1.0)
    assert np.abs(smoothed.body - truth)[:, 4, 0].max() < 0.12 / 3


def test_cutoffs_are_in_hertz_whatever_the_frame_rate(shaking):
    """A step of 2 % of the person, which is too slow to raise the cutoff, takes the same time at 15 and at 60 fps."""
    reached = []
    for fps in (15.0, 60.0):
        poses, _ = shaking(fps=fps)
        body = np.repeat(poses.body[:1].copy(), len(poses), axis=0)
        body[len(poses) // 4 :, :, 0] += 0.002
        step = smooth_poses(type(poses)(**{**fields(poses), "body": body}), 0.5).body
        reached.append((step[len(poses) // 2, 3, 0] - body[0, 3, 0]) / 0.002)
    assert 0.7 < reached[0] < 1.01
    assert reached[0] == pytest.approx(reached[1], abs=0.1)


def fields(poses):
    names = ("body", "body_score", "hands", "hands_score", "face", "face_score", "fps", "size")
    return {name: getattr(poses, name) for name in names}


def test_points_that_are_not_seen_neither_drag_nor_move(shaking):
    poses, _ = shaking()
    values = fields(poses)
    scores, wrong = poses.body_score.copy(), poses.body.copy()
    scores[20:25, 4] = 0
    wrong[20:25, 4] = 0.9, 0.9  # where an estimator may put what it does not see
    elsewhere = wrong.copy()
    elsewhere[20:25, 4] = 0.1, 0.2
    one, other = (
        smooth_poses(type(poses)(**{**values, "body": body, "body_score": scores}), 1.0)
        for body in (wrong, elsewhere)
    )
    seen = np.r_[0:20, 25 : len(poses)]
    np.testing.assert_array_equal(one.body[seen], other.body[seen])
    np.testing.assert_array_equal(one.body[20:25, 4], wrong[20:25, 4])
    np.testing.assert_array_equal(one.body_score, scores)


def test_a_glitch_of_little_confidence_is_passed_over(shaking):
    poses, truth = shaking()
    values, body = fields(poses), poses.body.copy()
    body[30, 4] += 0.1
    pulled = []
    for score in (0.9, 0.05):
        scores = poses.body_score.copy()
        scores[30, 4] = score
        smoothed = smooth_poses(type(poses)(**{**values, "body": body, "body_score": scores}), 1.0)
        pulled.append(np.abs(smoothed.body[30, 4] - truth[30, 4]).max())
    assert pulled[1] < 0.02 < pulled[0]


def test_someone_who_comes_back_elsewhere_is_there_at_once(shaking):
    poses, _ = shaking()
    values, body, scores = fields(poses), poses.body.copy(), poses.body_score.copy()
    scores[10:40] = 0
    body[40:] += 0.3
    smoothed = smooth_poses(type(poses)(**{**values, "body": body, "body_score": scores}), 1.0)
    assert np.abs(smoothed.body[40] - body[40]).max() < 0.01


def test_the_first_frame_and_what_does_not_move_stay(make_sequence):
    poses = make_sequence(1)
    assert np.abs(smooth_poses(poses, 1.0).hands - poses.hands).max() < 1e-6
    still = poses.take([0] * 8)
    for name in ("body", "hands", "face"):
        np.testing.assert_allclose(getattr(smooth_poses(still, 0.3), name), getattr(still, name), atol=1e-6)
