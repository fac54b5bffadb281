"""What a caller chooses of the poses changes what is animated, and nothing by default."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mimicmotion_trt import MotionError, PictureError, SettingsError
from mimicmotion_trt.pose.face import keep_face
from mimicmotion_trt.pose.smooth import smooth_poses


@pytest.fixture
def animated(animator, person, person_pose):
    """The finished animation with small settings."""

    def run(motion, *, reference=person_pose, **settings):
        small = {"steps": 1, "guidance": 1, "size": (64, 64), "overlap": 3, **settings}
        return animator.animate(person, motion, animator.settings(**small), reference_pose=reference).result()

    return run


@pytest.fixture
def gap(dance):
    """Eight frames at 15 a second, in three of which nobody is seen."""
    there = np.array([1, 1, 0, 0, 0, 1, 1, 1], np.float32)
    poses = dance.strided(2)[:8]
    return replace(poses, body_score=poses.body_score * there[:, None])


def test_the_default_of_every_control_changes_nothing(animated, dance):
    plain = animated(dance[:4])
    named = animated(
        dance[:4],
        draw="body,hands,face",
        face="driver",
        smooth=None,
        hold=None,
        confidence_floor=0,
        confidence_gain=1,
    )
    np.testing.assert_array_equal(plain.frames(), named.frames())


@pytest.mark.parametrize(
    "chosen", [{"draw": "body"}, {"face": "none"}, {"confidence_floor": 0.9}, {"confidence_gain": 0.4}]
)
def test_what_is_drawn_is_what_the_network_sees(animated, dance, chosen):
    plain, other = animated(dance[:2]), animated(dance[:2], **chosen)
    np.testing.assert_array_equal(other.animation.poses.body, plain.animation.poses.body)
    assert (plain.frames() != other.frames()).any()


def test_the_references_face_rides_on_the_drivers_head(animated, dance, person_pose):
    plain = animated(dance[:3]).animation
    kept = animated(dance[:3], face="reference").animation
    own = plain.poses[:1]
    expected = keep_face(plain.poses[1:], own)
    np.testing.assert_array_equal(kept.poses[1:].face, expected.face)
    np.testing.assert_array_equal(kept.poses[:1].face, own.face)
    np.testing.assert_array_equal(kept.poses.body, plain.poses.body)
    hidden = replace(person_pose, face_score=np.zeros_like(person_pose.face_score))
    with pytest.raises(PictureError, match="the face of the person"):
        animated(dance[:3], face="reference", reference=hidden)


def test_keypoints_are_smoothed_before_they_are_fitted(animated, dance):
    smooth = animated(dance[:6], smooth=0.5, rescale=False).animation.poses[1:]
    np.testing.assert_array_equal(smooth.body, smooth_poses(dance[:6], 0.5).body)
    assert (smooth.body != dance[:6].body).any()


def test_someone_who_is_not_seen_disappears_after_the_time_that_is_given(animated, gap):
    shown = {}
    for hold in (None, 0, 0.1, 10):
        result = animated(gap, hold=hold)
        assert result.held == 3
        shown[hold] = (result.animation.poses[1:].body_score.max(axis=1) > 0).tolist()
    assert shown[None] == shown[10] == [True] * 8
    assert shown[0] == [True] * 2 + [False] * 3 + [True] * 3
    assert shown[0.1] == [True] * 3 + [False] * 2 + [True] * 3


def test_progress_tells_in_how_many_frames_nobody_was_seen(animator, person, person_pose, gap):
    job = animator.animate(person, gap, animator.settings(steps=1, size=(64, 64)), reference_pose=person_pose)
    assert {event.held for event in job} == {3}


@pytest.mark.parametrize(
    "chosen",
    [{"draw": "body"}, {"face": "reference"}, {"smooth": 1}, {"hold": 1}, {"confidence_gain": 2}],
)
def test_pose_pictures_have_no_keypoints_to_change(animated, pose_pictures, chosen):
    with pytest.raises(SettingsError, match="pose pictures") as caught:
        animated(pose_pictures(2), **chosen)
    assert caught.value.field == f"settings.{next(iter(chosen))}"


def test_more_frames_a_second_are_animated_between_those_of_the_motion(animated, dance):
    """Every other pose is the motion's; the others lie in the middle."""
    poses = dance.strided(2)[:4]  # 15 a second
    plain, fast = animated(poses), animated(poses, fps=30)
    assert (len(fast), fast.fps, fast.animation.frames) == (8, 30, 8)
    own, between = plain.animation.poses[1:], fast.animation.poses[1:]
    np.testing.assert_array_equal(between.body[::2], own.body)
    np.testing.assert_allclose(between.body[1:-1:2], (own.body[1:] + own.body[:-1]) / 2, atol=1e-6)
    np.testing.assert_array_equal(between.hands_score[1], np.minimum(*own.hands_score[:2]))
    assert len(animated(poses, fps=30, frames=5)) == 5
    assert len(animated(poses, fps=5)) == 2


def test_frames_between_one_who_is_seen_and_nobody_are_held_by_halves(animated, gap):
    assert animated(gap).held == 3
    assert animated(gap, fps=30).held == 6
    assert animated(gap, fps=5).held in (1, 2)


def test_a_video_is_cut_and_brought_to_its_rate(animated, animator, person, clip_of):
    """Ten frames at 30 a second."""
    result = animated(clip_of(10, sound=True), start=0.1, end=0.2, fps=60)
    assert (len(result), result.fps) == (6, 60)
    job = animator.animate(person, clip_of(10), animator.settings(steps=1, size=(64, 64), fps=60, frames=5))
    reports = [(event.step, event.steps) for event in job if event.stage == "pose"]
    assert reports == [(1, 3), (2, 3), (5, 5)]  # the last of the found ones is told with those between them
    with pytest.raises(MotionError, match=r"0\.33 s long"):
        animated(clip_of(10), start=1)
