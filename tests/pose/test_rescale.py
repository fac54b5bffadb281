"""The driving skeleton takes the reference's build and place."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimicmotion_trt.errors import MotionError
from mimicmotion_trt.pose import rescale_to_reference

SEEN = np.ones((1, 18))


@pytest.mark.parametrize("case", range(2))
def test_equals_the_reference(golden, make_sequence, case):
    of = {key.split("_", 1)[1]: value for key, value in golden.items() if key.startswith(f"rescale{case}_")}
    height, width, frame_height, frame_width = (int(side) for side in of["sizes"])
    motion = make_sequence(12, body=of["body"], hands=of["hands"], size=(frame_width, frame_height))
    reference = make_sequence(1, body=of["ref_body"][None], body_score=of["ref_score"][None])
    moved = rescale_to_reference(motion, reference, height, width)
    np.testing.assert_allclose(moved.body, of["body_out"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(moved.hands, of["hands"] * of["a"] + of["b"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(moved.face, motion.face * of["a"] + of["b"], rtol=0, atol=1e-6)
    assert moved.size == (width, height)
    np.testing.assert_array_equal(moved.body_score, motion.body_score)


def test_a_skeleton_fits_itself(make_sequence):
    sequence = make_sequence(1, body_score=SEEN, size=(64, 128))
    np.testing.assert_allclose(
        rescale_to_reference(sequence, sequence, 128, 64).body, sequence.body, atol=1e-6
    )


@given(scale=st.floats(0.2, 5), right=st.floats(-2, 2), down=st.floats(-2, 2), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_where_and_how_large_the_dancer_is_makes_no_difference(make_sequence, scale, right, down, seed):
    motion = make_sequence(4, seed)
    reference = make_sequence(1, seed + 1, body_score=SEEN)
    shift = np.array([right, down])
    elsewhere = make_sequence(
        4,
        seed,
        **{name: getattr(motion, name) * scale + shift for name in ("body", "hands", "face")},
    )
    expected = rescale_to_reference(motion, reference, 96, 64)
    actual = rescale_to_reference(elsewhere, reference, 96, 64)
    np.testing.assert_allclose(actual.body, expected.body, atol=1e-4)
    np.testing.assert_allclose(actual.face, expected.face, atol=1e-4)


def test_points_that_the_reference_hides_do_not_count(make_sequence):
    motion = make_sequence(3)
    score = np.ones((1, 18))
    score[0, 9:14] = 0.2
    reference = make_sequence(1, seed=1, body_score=score)
    body = reference.body.copy()
    body[0, 9:14] = 77.0
    moved = make_sequence(1, body=body, body_score=score)
    assert rescale_to_reference(motion, moved, 64, 64) == rescale_to_reference(motion, reference, 64, 64)


def test_frames_with_nobody_do_not_count(make_sequence):
    motion = make_sequence(4)
    body, score = motion.body.copy(), motion.body_score.copy()
    body[2], score[2] = 0.5, 0.0
    reference = make_sequence(1, seed=1, body_score=SEEN)
    with_gap = rescale_to_reference(make_sequence(4, body=body, body_score=score), reference, 64, 64)
    without = rescale_to_reference(motion.take([0, 1, 3]), reference, 64, 64)
    np.testing.assert_allclose(with_gap.body[[0, 1, 3]], without.body, atol=1e-6)


def test_too_little_to_compare_is_refused(make_sequence):
    motion, nose_only = make_sequence(3), np.eye(1, 18)
    with pytest.raises(MotionError, match="reference picture") as caught:
        rescale_to_reference(motion, make_sequence(1, body_score=nose_only), 64, 64)
    assert caught.value.field == "reference"
    level = np.full((1, 18, 2), 0.5)
    with pytest.raises(MotionError, match="reference picture"):
        rescale_to_reference(motion, make_sequence(1, body=level, body_score=SEEN), 64, 64)
    nobody = make_sequence(3, body_score=np.zeros((3, 18)))
    with pytest.raises(MotionError, match="motion"):
        rescale_to_reference(nobody, make_sequence(1, body_score=SEEN), 64, 64)


def test_the_reference_is_one_frame(make_sequence):
    with pytest.raises(MotionError, match="has 2 frames"):
        rescale_to_reference(make_sequence(), make_sequence(2), 64, 64)
    with pytest.raises(MotionError, match="size"):
        rescale_to_reference(make_sequence(), make_sequence(1), 0, 64)


def test_the_demo_motion_fits_the_demo_person(demo_motion, estimator, person):
    reference = estimator.estimate(person)
    moved = rescale_to_reference(demo_motion, reference, 512, 512)
    offset = moved.body[:, 1].mean(axis=0) - reference.body[0, 1]  # of the neck
    assert np.abs(offset).max() < 0.5
