"""Following a hand or a face."""

from __future__ import annotations

import numpy as np
import pytest

from mimicmotion_trt.pose.crops import Crop
from mimicmotion_trt.pose.parts import FaceFinder, Part, PartTracker


class StandIn:
    """A finder that sees the part at one place if the crop's centre is near it."""

    root = 0

    def __init__(self, place: tuple[float, float]) -> None:
        self.place = np.array(place)
        self.crops: list[Crop] = []

    def find(self, picture: np.ndarray, crop: Crop) -> Part:
        self.crops.append(crop)
        near = np.hypot(*(self.place - crop.centre)) < crop.side / 2
        return Part(np.stack([self.place, self.place + 1]), 0.9 if near else 0.1)

    def crop_of(self, points: np.ndarray) -> Crop:
        return Crop.around(points, 0.0, 20.0)


PICTURE = np.zeros((100, 100, 3), np.uint8)
GUESS = Crop((50.0, 50.0), 30.0)
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
    there = Crop((90.0, 90.0), 30.0)
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
    face = finder.find(person, Crop((222.0, 120.0), 160.0, angle))
    better = finder.find(person, finder.crop_of(face.points))
    assert better.presence > 0.9
    np.testing.assert_allclose(better.points[4], [223, 123], atol=5)  # the tip of the nose
