"""Pose pictures equal the reference's to the pixel, whatever is drawn is drawn without a crash."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mimicmotion_trt.errors import MotionError
from mimicmotion_trt.pose import draw_poses, iter_pose_pictures
from mimicmotion_trt.pose.draw import Drawing
from mimicmotion_trt.pose.sequence import SHAPES


@pytest.fixture(params=range(4))
def drawn(request, golden, make_sequence):
    """A golden sequence of one frame and its picture [H,W,3]."""
    of = {
        key.split("_", 1)[1]: value
        for key, value in golden.items()
        if key.startswith(f"draw{request.param}_")
    }
    sequence = make_sequence(
        body=of["body"][None],
        body_score=of["body_score"][None],
        hands=of["hands"][None],
        hands_score=of["hand_score"][None],
        face=of["face"][None],
        face_score=of["face_score"][None],
    )
    return sequence, of["image"].transpose(1, 2, 0)


def test_equals_the_reference_to_the_pixel(drawn):
    sequence, picture = drawn
    height, width = picture.shape[:2]
    np.testing.assert_array_equal(draw_poses(sequence, height, width, canvas=2160), picture[None])


def test_frames_do_not_leak_into_each_other(make_sequence):
    sequence = make_sequence(frames=3)
    together = draw_poses(sequence, 96, 64, canvas=256)
    assert together.shape == (3, 96, 64, 3)
    assert together.dtype == np.uint8
    for frame, picture in zip(sequence, together, strict=True):
        np.testing.assert_array_equal(draw_poses(frame, 96, 64, canvas=256)[0], picture)


def test_streaming_gives_pictures_that_stay_as_they_are(make_sequence):
    sequence = make_sequence(frames=3)
    pictures = list(iter_pose_pictures(sequence, 96, 64, canvas=256))
    np.testing.assert_array_equal(np.stack(pictures), draw_poses(sequence, 96, 64, canvas=256))


@pytest.mark.parametrize(
    ("part", "others"), [("body", ("hands", "face")), ("hands", ("body",)), ("face", ())]
)
def test_only_the_parts_that_are_asked_for_are_drawn(make_sequence, part, others):
    poses = make_sequence(1)
    alone = draw_poses(poses, 96, 64, canvas=256, drawing=Drawing(parts=(part,)))
    assert alone.any()
    without = {f"{name}_score": np.zeros_like(getattr(poses, f"{name}_score")) for name in others}
    hidden = replace(poses, **without)  # black dots over what is below them
    assert (draw_poses(hidden, 96, 64, canvas=256, drawing=Drawing(parts=(part,))) == alone).all()
    together = draw_poses(poses, 96, 64, canvas=256, drawing=Drawing(parts=("body", "hands", "face")))
    np.testing.assert_array_equal(together, draw_poses(poses, 96, 64, canvas=256))


def test_points_below_the_floor_are_left_out_and_hide_nothing(make_sequence):
    poses = make_sequence(1, hands_score=np.full((1, 2, 21), 0.2), face_score=np.full((1, 68), 0.2))
    floored = draw_poses(poses, 96, 64, canvas=256, drawing=Drawing(floor=0.25))
    np.testing.assert_array_equal(
        floored, draw_poses(poses, 96, 64, canvas=256, drawing=Drawing(parts=("body",)))
    )
    assert not draw_poses(poses, 96, 64, canvas=256, drawing=Drawing(floor=1.0)).any()


def test_the_gain_makes_what_is_hardly_sure_as_bright_as_what_is(make_sequence):
    half = make_sequence(
        1,
        body_score=np.full((1, 18), 0.5),
        hands_score=np.full((1, 2, 21), 0.5),
        face_score=np.full((1, 68), 0.5),
    )
    sure = replace(
        half, **{f"{n}_score": np.ones_like(getattr(half, f"{n}_score")) for n in ("body", "hands", "face")}
    )
    expected = draw_poses(sure, 96, 64, canvas=256)
    for gain in (2.0, 10.0):
        found = draw_poses(half, 96, 64, canvas=256, drawing=Drawing(gain=gain))
        np.testing.assert_array_equal(found, expected)
    assert draw_poses(half, 96, 64, canvas=256).max() < expected.max()


def test_nobody_is_black(make_sequence):
    zero = {name: np.zeros((2, *shape)) for name, shape in SHAPES.items() if name.endswith("score")}
    assert not draw_poses(make_sequence(2, **zero), 128, 64, canvas=512).any()


def test_confidence_is_brightness(make_sequence):
    def brightness(score):
        scores = {n: np.full((1, *s), score) for n, s in SHAPES.items() if n.endswith("score")}
        return int(draw_poses(make_sequence(1, **scores), 128, 64, canvas=512).sum())

    assert brightness(0.4) < brightness(0.7) < brightness(1.0)


def test_an_unsure_joint_takes_its_limbs_with_it(make_sequence):
    hidden = {n: np.zeros((1, *SHAPES[n])) for n in ("hands_score", "face_score")}
    score = np.zeros((1, 18))
    score[0, [2, 3]] = 1.0
    both = draw_poses(make_sequence(1, body_score=score, **hidden), 128, 64, canvas=512)
    score[0, 3] = 0.29
    one = draw_poses(make_sequence(1, body_score=score, **hidden), 128, 64, canvas=512)
    assert 0 < np.count_nonzero(one) < np.count_nonzero(both) / 2


@given(
    body=hnp.arrays(np.float32, (1, 18, 2), elements=st.floats(-(2.0**99), 2.0**99, width=32)),
    hands=hnp.arrays(np.float32, (1, 2, 21, 2), elements=st.floats(-20, 20, width=32)),
    face=hnp.arrays(
        np.float32, (1, 68, 2), elements=st.sampled_from([-(2.0**127), -1.0, 0.0, 0.5, 1.0, 2.0**127])
    ),
    size=st.tuples(st.integers(1, 80), st.integers(1, 80)),
    canvas=st.integers(1, 300),
)
@settings(max_examples=40, suppress_health_check=list(HealthCheck))
def test_any_keypoints_can_be_drawn(make_sequence, body, hands, face, size, canvas):
    sequence = make_sequence(1, body=body, hands=hands, face=face)
    assert draw_poses(sequence, *size, canvas=canvas).shape == (1, *size, 3)


@pytest.mark.parametrize(
    ("height", "width", "canvas"), [(0, 64, 2160), (64, -1, 2160), (64, 64, 0), (64, 8192, 2160)]
)
def test_impossible_sizes_are_refused_before_drawing(make_sequence, height, width, canvas):
    with pytest.raises(MotionError) as caught:
        iter_pose_pictures(make_sequence(), height, width, canvas)
    assert caught.value.field.startswith("settings.")
