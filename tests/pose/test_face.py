"""The reference's face on the driver's head: its shape stays, its place, size and turn are the driver's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimicmotion_trt import PictureError
from mimicmotion_trt.pose.face import STABLE, keep_face
from mimicmotion_trt.pose.sequence import single_frame

SIZE = (200, 400)
RANDOM = np.random.default_rng(3)
OWN, OTHER = (RANDOM.uniform(0.3, 0.6, (68, 2)) for _ in range(2))


def one_face(points, scores=0.8, size=SIZE):
    return single_frame(size, face=points, face_score=np.broadcast_to(np.float64(scores), 68))


def moved(points, angle, scale, shift, size=SIZE):
    """Points turned, scaled and moved as they are seen in a picture of that size."""
    pixels = points * size
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return (pixels @ turn.T + shift) / size


@given(st.floats(-3, 3), st.floats(0.3, 3), st.floats(-50, 50), st.floats(-50, 50))
def test_the_same_face_elsewhere_is_that_face(angle, scale, right, down):
    there = moved(OWN, angle, scale, (right, down))
    found = keep_face(one_face(there), one_face(OWN))
    np.testing.assert_allclose(found.face[0], there, atol=1e-4)


def test_the_shape_is_the_references_and_nothing_is_sheared():
    found = keep_face(one_face(OTHER), one_face(OWN))
    pixels, own = found.face[0] * SIZE, OWN * SIZE
    apart = lambda points: np.linalg.norm(points[:, None] - points[None], axis=-1)  # noqa: E731
    ratio = apart(pixels)[np.triu_indices(68, 1)] / apart(own)[np.triu_indices(68, 1)]
    assert np.ptp(ratio) / ratio.mean() < 1e-3
    side = lambda p: np.sign(np.linalg.det([p[36] - p[27], p[45] - p[27]]))  # noqa: E731  # no mirror image
    assert side(pixels) == side(own)


def test_a_mouth_that_opens_moves_nothing():
    open_mouth = OWN.copy()
    open_mouth[48:, 1] += 0.1
    open_mouth[:17, 1] += 0.05
    found = keep_face(one_face(open_mouth), one_face(OWN))
    np.testing.assert_allclose(found.face[0], OWN, atol=1e-5)


def test_confidences_are_the_drivers_and_weigh_the_fit():
    scores = np.full(68, 0.7)
    scores[30] = 0.0
    driver = OWN.copy()
    driver[30] = 0.05, 0.95  # a nose that is not seen
    found = keep_face(one_face(driver, scores), one_face(OWN, 0.5))
    np.testing.assert_allclose(found.face[0], OWN, atol=1e-5)
    np.testing.assert_array_equal(found.face_score[0], scores.astype(np.float32))


def test_no_face_is_drawn_where_the_drivers_is_not_seen():
    scores = np.full(68, 0.9)
    scores[list(STABLE)[2:]] = 0
    hidden, seen = one_face(OTHER, scores), one_face(OTHER)
    both = type(seen).concat([hidden, seen])
    found = keep_face(both, one_face(OWN))
    assert not found.face_score[0].any()
    assert found.face_score[1].all()
    np.testing.assert_array_equal(found.body, both.body)


def test_a_reference_without_a_face_is_refused():
    with pytest.raises(PictureError, match="face") as caught:
        keep_face(one_face(OTHER), one_face(OWN, 0.1))
    assert caught.value.field == "settings.face"
    some = np.full(68, 0.9)
    some[:17] = 0  # the jaw alone is not seen
    found = keep_face(replace(one_face(OTHER)), one_face(OWN, some))
    assert not found.face_score[0, :17].any()
    assert found.face_score[0, 17:].all()
