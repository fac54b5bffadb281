"""What a pose sequence holds, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from mimicmotion_trt.errors import MotionError
from mimicmotion_trt.pose import PoseSequence


def test_knows_its_length_and_keeps_float32(make_sequence):
    sequence = make_sequence(frames=5)
    assert len(sequence) == 5
    assert sequence.body.dtype == np.float32
    assert sequence.size == (64, 128)


def test_arrays_are_read_only_copies(make_sequence):
    body = np.full((1, 18, 2), 0.5, np.float32)
    sequence = make_sequence(1, body=body)
    body[:] = 0
    assert sequence.body[0, 0, 0] == 0.5
    with pytest.raises(ValueError, match="read-only"):
        sequence.body[0] = 0


def test_coordinates_may_lie_outside_the_picture(make_sequence):
    make_sequence(1, body=np.full((1, 18, 2), -3.5))


def test_frames_by_index_slice_and_list(make_sequence):
    sequence = make_sequence(frames=6)
    np.testing.assert_array_equal(sequence[4].body, sequence.body[4:5])
    np.testing.assert_array_equal(sequence[-1].body, sequence.body[5:])
    np.testing.assert_array_equal(sequence[1:5:2].face, sequence.face[[1, 3]])
    np.testing.assert_array_equal(sequence.take([5, 0, 0]).hands, sequence.hands[[5, 0, 0]])
    assert len(list(sequence)) == 6
    with pytest.raises(IndexError):
        sequence[6]
    with pytest.raises(MotionError, match="no frames"):
        sequence[3:3]


def test_a_stride_keeps_the_speed(make_sequence):
    sequence = make_sequence(frames=7, fps=30)
    halved = sequence.strided(2)
    assert (len(halved), halved.fps) == (4, 15.0)
    assert sequence.strided(1) == sequence
    with pytest.raises(MotionError, match="stride"):
        sequence.strided(0)


def test_concat_undoes_slicing(make_sequence):
    sequence = make_sequence(frames=5)
    assert PoseSequence.concat([sequence[:2], sequence[2:]]) == sequence
    with pytest.raises(MotionError, match="do not join"):
        PoseSequence.concat([sequence, make_sequence(fps=25)])
    with pytest.raises(MotionError, match="at least one"):
        PoseSequence.concat([])


def test_equality_looks_at_the_values(make_sequence):
    assert make_sequence(seed=1) == make_sequence(seed=1)
    assert make_sequence(seed=1) != make_sequence(seed=2)
    assert make_sequence(fps=10) != make_sequence(fps=20)
    assert make_sequence() != "poses"


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_a_coordinate_that_is_no_number_is_named(make_sequence, bad):
    hands = np.full((3, 2, 21, 2), 0.5)
    hands[2, 1, 7, 0] = bad
    with pytest.raises(MotionError, match=r"hands is (nan|inf) in frame 2, point \[1, 7, 0\]") as caught:
        make_sequence(hands=hands)
    assert caught.value.field == "motion.hands"
    assert caught.value.remedy


@pytest.mark.parametrize("bad", [-0.01, 1.01, np.nan])
def test_scores_lie_between_0_and_1(make_sequence, bad):
    score = np.full((3, 18), 0.5)
    score[1, 4] = bad
    with pytest.raises(MotionError, match=r"body_score is .* in frame 1, point \[4\]"):
        make_sequence(body_score=score)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("body", np.zeros((3, 17, 2))),
        ("body", np.zeros((18, 2))),
        ("body", [[["0.5", "0.5"]] * 18] * 3),
        ("body", [[1.0], [1.0, 2.0]]),
        ("body", None),
        ("body", np.zeros((3, 18, 2), complex)),
        ("face_score", np.zeros((3, 68), bool)),
        ("face", np.zeros((0, 68, 2))),
    ],
)
def test_wrong_shapes_and_types_are_named(make_sequence, name, value):
    with pytest.raises(MotionError, match=f"^{name} has") as caught:
        make_sequence(**{name: value})
    assert caught.value.field == f"motion.{name}"


def test_arrays_must_agree_in_frames(make_sequence):
    with pytest.raises(MotionError, match="differ in frames"):
        make_sequence(frames=3, face=np.zeros((2, 68, 2)))


@pytest.mark.parametrize("fps", [0, -1, np.nan, np.inf, "30", None, True])
def test_fps_is_positive(make_sequence, fps):
    with pytest.raises(MotionError, match="fps"):
        make_sequence(fps=fps)


@pytest.mark.parametrize("size", [(0, 5), (5, -1), (5,), (5.5, 6), None, "ab", (1, 2, 3)])
def test_size_is_two_whole_numbers(make_sequence, size):
    with pytest.raises(MotionError, match="size"):
        make_sequence(size=size)
