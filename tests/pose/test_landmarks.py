"""What the networks find in crops: crops look at turned parts of a picture, bodies, hands and faces are followed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimicmotion_trt.pose.landmarks import (
    BodyDetector,
    BodyTracker,
    FaceFinder,
    Part,
    PartTracker,
    Region,
    refine,
)

CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])


def test_the_whole_picture_stands_in_the_middle_of_its_square():
    crop = Region.whole(np.zeros((40, 100, 3), np.uint8))
    np.testing.assert_allclose(crop.to_picture(CORNERS), [[0, -30], [100, -30], [100, 70], [0, 70]])


def test_pointing_puts_the_end_straight_above_the_start():
    crop = Region.pointing((50, 50), (70, 50), side=80)  # the end lies to the right
    np.testing.assert_allclose(crop.to_picture(np.array([0.5, 0.25])), [70, 50], atol=1e-9)


def test_a_crop_without_extent_is_one_pixel():
    assert Region.pointing((5, 5), (5, 5), side=0).side == 1
    assert Region.around(np.zeros((3, 2)), 0.3, 1.5).side == 1


@given(
    angle=st.floats(-math.pi, math.pi),
    scale=st.floats(1, 3),
    seed=st.integers(0, 1000),
)
@settings(max_examples=50)
def test_around_holds_every_point(angle, scale, seed):
    points = np.random.default_rng(seed).uniform(-100, 100, (12, 2))
    crop = Region.around(points, angle, scale)
    sides = crop.to_picture(np.array([[1.0, 0.0], [0.0, 1.0]])) - crop.to_picture(np.zeros(2))
    inside = (points - crop.to_picture(np.zeros(2))) @ sides.T / crop.side**2
    assert inside.min() >= -1e-9
    assert inside.max() <= 1 + 1e-9


def test_shifting_follows_the_crops_own_axes():
    crop = Region((0.0, 0.0), 10.0, math.pi / 2).shifted(0, 0.5)  # down, in a crop lying on its side
    np.testing.assert_allclose(crop.centre, (-5, 0), atol=1e-9)


@pytest.mark.parametrize("angle", [0.0, 0.5, math.pi / 2, -2.0])
def test_what_is_cut_out_lies_where_to_picture_says(angle):
    crop = Region((60.0, 45.0), 64.0, angle)
    spot = crop.to_picture(np.array([0.25, 0.75]))
    picture = np.zeros((90, 120, 3), np.uint8)
    x, y = np.rint(spot).astype(int)
    picture[y - 1 : y + 2, x - 1 : x + 2] = 255
    cut = crop.cut(picture, 128)
    assert cut.shape == (1, 128, 128, 3)
    row, column = np.unravel_index(cut[0, ..., 0].argmax(), (128, 128))
    assert abs(column - 32) <= 3
    assert abs(row - 96) <= 3
    assert cut.max() == 255


def test_beyond_the_edge_is_black():
    cut = Region((0.0, 0.0), 20.0).cut(np.full((50, 50, 3), 200, np.uint8), 20)
    assert cut[0, 0, 0, 0] == 0
    assert cut[0, 15, 15, 0] == 200


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


class StandIn:
    """A finder that sees the part at one place if the crop's centre is near it."""

    root = 0

    def __init__(self, place: tuple[float, float]) -> None:
        self.place = np.array(place)
        self.crops: list[Region] = []

    def find(self, picture: np.ndarray, crop: Region) -> Part:
        self.crops.append(crop)
        near = np.hypot(*(self.place - crop.centre)) < crop.side / 2
        return Part(np.stack([self.place, self.place + 1]), 0.9 if near else 0.1)

    def crop_of(self, points: np.ndarray) -> Region:
        return Region.around(points, 0.0, 20.0)


PICTURE = np.zeros((100, 100, 3), np.uint8)
GUESS = Region((50.0, 50.0), 30.0)
WRIST = np.array([50.0, 50.0])


def test_a_new_part_is_looked_at_twice_a_known_one_once():
    finder = StandIn((50, 50))
    tracker = PartTracker(finder)
    assert tracker.find(PICTURE, GUESS, WRIST).presence == 0.9
    assert [crop.side for crop in finder.crops] == [30, 20]
    tracker.find(PICTURE, GUESS, WRIST)
    assert len(finder.crops) == 3


def test_the_crop_moves_with_the_body():
    finder = StandIn((50, 50))
    tracker = PartTracker(finder)
    tracker.find(PICTURE, GUESS, WRIST)
    finder.place = np.array([62.0, 50.0])
    tracker.find(PICTURE, GUESS, WRIST + np.array([12, 0]))
    assert finder.crops[-1].centre == (62.5, 50.5)


def test_what_is_lost_is_looked_for_where_the_body_suggests():
    finder = StandIn((50, 50))
    tracker = PartTracker(finder)
    tracker.find(PICTURE, GUESS, WRIST)
    finder.place = np.array([90.0, 90.0])
    there = Region((90.0, 90.0), 30.0)
    assert tracker.find(PICTURE, there, np.array([90.0, 90.0])).presence == 0.9


def test_the_other_hand_is_not_taken_for_this_one():
    far = np.array([80.0, 50.0])
    assert PartTracker(StandIn((50, 50))).find(PICTURE, GUESS, far).presence == 0


def test_after_forgetting_the_guess_counts():
    finder = StandIn((50, 50))
    tracker = PartTracker(finder)
    tracker.find(PICTURE, GUESS, WRIST)
    tracker.forget()
    tracker.find(PICTURE, GUESS, WRIST)
    assert finder.crops[2] == GUESS


@pytest.mark.parametrize("angle", [0.0, 0.6, -0.6])
def test_a_face_is_found_upright_or_tilted(person, angle):
    finder = FaceFinder(threads=2)
    face = finder.find(person, Region((222.0, 120.0), 160.0, angle))
    better = finder.find(person, finder.crop_of(face.points))
    assert better.presence > 0.9
    np.testing.assert_allclose(better.points[4], [223, 123], atol=5)  # the tip of the nose
