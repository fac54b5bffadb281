"""Which frames are taken: of a part, by a stride, at a rate, and no more than a number of them, in this order."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mimicmotion_trt import LimitError, Limits, MotionError, Settings
from mimicmotion_trt.pose.sampling import interpolate, places, sample

counts, rates = st.integers(1, 400), st.sampled_from([7.5, 15.0, 23.976, 24.0, 25.0, 29.97, 30.0, 60.0])


def sampled(count, rate, **settings):
    return sample(count, rate, Settings(**settings), Limits(frames=10**6))


@given(counts, rates, st.integers(1, 9), st.none() | st.integers(1, 50))
def test_without_times_every_nth_frame_is_taken(count, rate, stride, frames):
    found = sampled(count, rate, stride=stride, frames=frames)
    assert list(found.taken) == list(range(0, count, stride))[:frames]
    assert (found.fps, found.rate, found.frames) == (rate / stride, rate / stride, len(found.taken))
    assert found.begin == 0
    assert (
        sample(count, rate, Settings(frames=frames), Limits(), stride) == found
    )  # as the motion's own stride


@given(counts, rates, st.integers(1, 6), st.floats(0.5, 120))
def test_the_video_is_as_long_as_the_motion_whatever_its_rate(count, rate, stride, fps):
    found, length = sampled(count, rate, stride=stride, fps=fps), math.ceil(count / stride) * stride / rate
    assert found.fps == fps
    assert length - 1e-5 <= found.frames / fps < length + 1 / fps
    assert list(found.taken) == sorted(set(found.taken))
    assert set(found.taken) <= set(range(0, count, stride))


@given(counts, rates, st.floats(0.5, 120))
def test_a_lower_rate_shows_the_frame_that_the_motion_shows_at_that_time(count, rate, fps):
    assume(fps < rate)
    found = sampled(count, rate, fps=fps)
    times = np.arange(found.frames) / fps
    shown = np.array(found.taken) / rate
    assert (shown <= times + 1e-6).all()
    assert (times < shown + 1 / rate + 1e-6).all()


@given(counts, rates, st.integers(1, 9))
def test_a_whole_part_of_the_rate_is_a_stride(count, rate, stride):
    assert list(sampled(count, rate, fps=rate / stride).taken) == list(range(0, count, stride))


@given(counts, rates, st.floats(0, 1), st.floats(0, 1))
def test_what_is_cut_begins_and_ends_at_its_times(count, rate, one, other):
    start, end = (share * count / rate for share in sorted((one, other)))
    assume(math.ceil(start * rate) < math.floor(end * rate))
    found = sampled(count, rate, start=start, end=end)
    times = np.array(found.taken) / rate
    assert ((start - 1.1e-3 <= times) & (times < end)).all()
    assert found.begin == times[0] < start + 1 / rate
    assert times[-1] + 1 / rate >= end - 1.1e-3
    assert list(found.taken) == list(range(found.taken[0], found.taken[-1] + 1))
    fast = sampled(count, rate, start=start, end=end, fps=2 * rate)
    assert (fast.frames, fast.begin) == (2 * len(found.taken), found.begin)


@given(rates, st.lists(st.integers(1, 100), min_size=2, max_size=5))
def test_parts_that_follow_each_other_are_the_whole(rate, lengths):
    """Each begins where the one before ends, at times that are rounded as people write them."""
    cuts = [round(cut / rate, 3) for cut in np.cumsum([0, *lengths])]
    count = sum(lengths)
    parts = [
        sampled(count, rate, start=start, end=min(end, count / rate)).taken for start, end in pairwise(cuts)
    ]
    assert [index for part in parts for index in part] == list(range(count))


@given(counts, rates, st.floats(0.5, 240), st.integers(1, 50))
def test_fewer_frames_are_the_first_ones(count, rate, fps, frames):
    whole, cut = sampled(count, rate, fps=fps), sampled(count, rate, fps=fps, frames=frames)
    assert cut.frames == min(frames, whole.frames)
    assert list(cut.taken) == list(whole.taken)[: len(cut.taken)]
    if cut.interpolates:
        assert len(cut.taken) <= cut.frames  # no frame is looked at in vain
        assert len(cut.taken) > places(cut.frames, cut.rate, fps)[-1] - 1e-6 or len(cut.taken) == count


@pytest.mark.parametrize(
    ("settings", "field", "says"),
    [
        ({"start": 2.0}, "settings.start", "2.00 s long"),
        ({"start": 99}, "settings.start", "2.00 s long"),
        ({"end": 2.5}, "settings.end", "2.00 s long"),
        ({"start": 0.51, "end": 0.52}, "settings.end", "no frame from 0.51 to 0.52 s"),
    ],
)
def test_times_beyond_the_motion_name_its_length(settings, field, says):
    with pytest.raises(MotionError, match=says) as caught:
        sampled(20, 10.0, **settings)
    assert caught.value.field == field


def test_an_end_a_little_late_is_the_end():
    """Someone who reads 10 seconds off a player does not know that the file has 9.98."""
    assert sampled(299, 29.97, end=10.0).frames == 299
    with pytest.raises(MotionError, match=r"9\.98 s long"):
        sampled(299, 29.97, end=10.2)


def test_the_limit_counts_the_frames_of_the_video():
    with pytest.raises(LimitError, match="frames of the motion"):
        sample(100, 10.0, Settings(fps=30), Limits(frames=299))
    assert sample(100, 10.0, Settings(fps=30), Limits(frames=300)).frames == 300
    assert sample(10**6, 10.0, Settings(start=5, end=6), Limits(frames=10)).frames == 10
    with pytest.raises(LimitError):
        sample(10**6, 0.01, Settings(fps=1000), Limits())


# ---- between frames ----


def test_between_two_frames_points_lie_between_and_are_as_sure_as_the_less_sure(make_sequence):
    poses = make_sequence(3)
    found = interpolate(poses, np.array([0, 0.25, 1, 1.5, 2, 2.75]), 60.0)
    assert (len(found), found.fps) == (6, 60.0)
    for name in ("body", "hands", "face"):
        own, mixed = getattr(poses, name), getattr(found, name)
        np.testing.assert_array_equal(mixed[[0, 2, 4]], own)
        np.testing.assert_array_equal(mixed[5], own[2])
        np.testing.assert_allclose(mixed[1], 0.75 * own[0] + 0.25 * own[1], atol=1e-6)
        np.testing.assert_allclose(mixed[3], (own[1] + own[2]) / 2, atol=1e-6)
        scores, known = getattr(found, f"{name}_score"), getattr(poses, f"{name}_score")
        np.testing.assert_array_equal(scores[[0, 2, 4, 5]], known[[0, 1, 2, 2]])
        np.testing.assert_array_equal(scores[3], np.minimum(known[1], known[2]))


def test_a_point_that_one_frame_does_not_show_stays_where_the_other_shows_it(make_sequence):
    score = np.ones((2, 18))
    score[0, 4] = 0
    poses = make_sequence(2, body_score=score)
    found = interpolate(poses, np.array([0.5]), 60.0)
    np.testing.assert_array_equal(found.body[0, 4], poses.body[1, 4])
    assert found.body_score[0, 4] == 0


@given(counts, rates, st.floats(0.5, 240))
def test_places_are_the_times_of_the_videos_frames(count, rate, fps):
    np.testing.assert_allclose(places(count, rate, fps) / rate, np.arange(count) / fps, rtol=1e-9, atol=1e-6)
