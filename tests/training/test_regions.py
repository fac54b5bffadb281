"""Hand boxes and what is near the limbs, cell by latent."""

from __future__ import annotations

import numpy as np
import pytest

from mimicmotion_trt.training.config import ObjectiveConfig
from mimicmotion_trt.training.data.regions import box_on_grid, hand_mask, region_weights, skeleton_mask

SIZE = (12, 8)  # h, w


@pytest.fixture
def pose() -> dict[str, np.ndarray]:
    """One frame: a left hand between (0.30, 0.51) and (0.60, 0.74), a limb along x = 0.5 from neck to hip."""
    pose = {
        "body": np.zeros((1, 18, 2), np.float32),
        "body_score": np.zeros((1, 18), np.float32),
        "hands": np.zeros((1, 2, 21, 2), np.float32),
        "hands_score": np.zeros((1, 2, 21), np.float32),
    }
    pose["hands"][0, 0] = np.linspace((0.30, 0.51), (0.60, 0.74), 21)
    pose["hands_score"][0, 0] = 0.9
    pose["body"][0, [1, 8]] = (0.5, 0.25), (0.5, 0.5)
    pose["body_score"][0, [1, 8]] = 1.0
    return pose


def test_a_hand_box_covers_the_latents_it_touches(pose):
    # x: 0.30*8 = 2.4 to 0.60*8 = 4.8, columns 2 to 4; y: 0.51*12 = 6.12 to 0.74*12 = 8.88, rows 6 to 8
    mask = hand_mask(pose["hands"], pose["hands_score"], SIZE, 0.8)
    expected = np.zeros((1, *SIZE), bool)
    expected[0, 6:9, 2:5] = True
    np.testing.assert_array_equal(mask, expected)


def test_one_weak_keypoint_leaves_the_hand_out(pose):
    pose["hands_score"][0, 0, 20] = 0.8  # not above the threshold
    assert not hand_mask(pose["hands"], pose["hands_score"], SIZE, 0.8).any()
    assert hand_mask(pose["hands"], pose["hands_score"], SIZE, 0.79).any()


@pytest.mark.parametrize(
    ("low", "high", "touched"),
    [
        ((-0.5, 0.0), (0.01, 0.01), (0, 1, 0, 1)),  # cut at the picture's edge
        ((1.2, 0.5), (1.5, 0.6), (6, 8, 8, 8)),  # beside the picture: nothing
        ((-1.0, -1.0), (2.0, 2.0), (0, 12, 0, 8)),
    ],
)
def test_boxes_at_the_edge(low, high, touched):
    assert box_on_grid(np.array([low, high], np.float32), SIZE) == touched


def test_near_a_limb(pose):
    # The limb runs from (4, 3) to (4, 6) in latents; 0.06 of 12 rows is 0.72 of them: columns 3 and 4, whose centres
    # are 0.5 away, in rows 3 to 5; the corners above and below are sqrt(0.5) = 0.707 away.
    mask = skeleton_mask(pose["body"], pose["body_score"], SIZE, 0.06)
    expected = np.zeros((1, *SIZE), bool)
    expected[0, 2:7, 3:5] = True
    np.testing.assert_array_equal(mask, expected)
    pose["body_score"][0, 8] = 0.29
    assert not skeleton_mask(pose["body"], pose["body_score"], SIZE, 0.06).any()


def test_weights_and_their_switches(pose):
    both = region_weights(ObjectiveConfig(skeleton_weight=3.0), SIZE, **pose)
    assert both.shape == (1, 1, *SIZE)
    assert both[0, 0, 7, 3] == 10.0
    assert both[0, 0, 6, 3] == 10.0  # hand and limb: the larger
    assert both[0, 0, 3, 3] == 3.0
    assert both[0, 0, 0, 0] == 1.0
    off = region_weights(ObjectiveConfig(hand_weight=1.0), SIZE, **pose)
    assert (off == 1.0).all()
