"""The part of a picture that is animated holds the person, and the pose lies where the person is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimicmotion_trt import estimate_poses
from mimicmotion_trt.media.picture import fit_picture, read_picture
from mimicmotion_trt.pose import PoseSequence
from mimicmotion_trt.pose.framing import Crop, choose_crop, frame_reference, person_span
from mimicmotion_trt.pose.sequence import single_frame

LEFT = Path(__file__).parents[1] / "data" / "framing" / "person_left.jpg"


def standing(size: tuple[int, int], left: float, top: float, right: float, bottom: float) -> PoseSequence:
    """A person seen from nose to ankles in a picture of `size`, whose joints fill this box in pixels."""
    x = np.array([0.5, 0.5, 0.3, 0, 0, 0.7, 1, 1, 0.4, 0.4, 0.4, 0.6, 0.6, 0.6, 0.48, 0.52, 0.46, 0.54])
    y = np.array(
        [0.1, 0.2, 0.2, 0.35, 0.5, 0.2, 0.35, 0.5, 0.5, 0.75, 1, 0.5, 0.75, 1, 0.08, 0.08, 0.09, 0.09]
    )
    body = np.stack([left + x * (right - left), top + y * (bottom - top)], axis=1) / size
    return single_frame(size, body=body, body_score=np.ones(18))


def dotted(pose: PoseSequence) -> Any:
    """A grey picture uint8 [H,W,3] with a white square of 29 pixels around every joint."""
    width, height = pose.size
    picture = np.full((height, width, 3), 90, np.uint8)
    for x, y in np.round(pose.body[0] * pose.size).astype(int):
        picture[max(0, y - 14) : y + 15, max(0, x - 14) : x + 15] = 255
    return picture


@pytest.mark.parametrize(
    ("picture", "box", "size", "crop"),
    [
        ((800, 400), (300, 40, 480, 380), (256, 512), Crop(300, 0, 500, 400)),  # centred: nothing is cut
        ((800, 400), (20, 40, 160, 380), (256, 512), Crop(0, 0, 200, 400)),
        ((800, 400), (600, 40, 780, 380), (256, 512), Crop(590, 0, 790, 400)),
        (
            (800, 400),
            (705, 40, 795, 380),
            (256, 512),
            Crop(600, 0, 800, 400),
        ),  # no further than the picture goes
        ((400, 800), (100, 20, 300, 300), (512, 512), Crop(0, 0, 400, 400)),
        ((400, 800), (100, 450, 300, 780), (512, 512), Crop(0, 400, 400, 800)),
        ((800, 400), (295, 40, 480, 380), (256, 512), Crop(300, 0, 500, 400)),  # a little is cut: 5 of 185
    ],
)
def test_the_crop_holds_the_person(picture, box, size, crop):
    found = choose_crop(standing(picture, *box), picture, size, "person")
    assert abs(np.subtract(astuple(found), astuple(crop))).max() <= 15, found
    assert found.size == crop.size
    assert found.left - 5 <= box[0]
    assert found.right + 5 >= box[2]


def astuple(crop: Crop) -> tuple[int, ...]:
    return crop.left, crop.top, crop.right, crop.bottom


@pytest.mark.parametrize("framing", ["person", "centre", "pad"])
@pytest.mark.parametrize("picture", [(512, 1024), (256, 512), (257, 513)])
def test_a_picture_of_the_videos_shape_is_taken_whole(picture, framing):
    crop = choose_crop(standing(picture, 5, 5, 100, 500), picture, (256, 512), framing)
    assert abs(np.subtract(crop.size, picture)).max() <= 1


def test_where_no_crop_holds_the_person_the_edges_are_continued():
    """Arms wider than the crop: the picture is fitted so that both hands are in it, its edges above and below."""
    pose = standing((800, 400), 100, 40, 700, 380)
    picture = dotted(pose)
    picture[0], picture[-1] = (200, 0, 0), (0, 0, 200)
    framed = frame_reference(picture, pose, (128, 256), "person")
    assert framed.crop.left <= 100
    assert framed.crop.right >= 700
    assert framed.crop.top < 0 < 400 < framed.crop.bottom
    assert framed.picture.shape == (256, 128, 3)
    assert (framed.picture[0] == framed.picture[20]).all()  # continued
    assert framed.picture[0, 64, 0] > framed.picture[-1, 64, 0]
    assert (framed.pose.body_score > 0).all()
    assert ((framed.pose.body > 0) & (framed.pose.body < 1)).all()


def test_pad_has_the_whole_picture_in_it():
    pose = standing((800, 400), 300, 40, 480, 380)
    crop = frame_reference(dotted(pose), pose, (128, 256), "pad").crop
    assert (crop.left, crop.right) == (0, 800)
    assert (crop.top, crop.bottom) == (-600, 1000)


@pytest.mark.parametrize("framing", ["person", "centre", "pad"])
@pytest.mark.parametrize("size", [(64, 128), (128, 64), (128, 128), (192, 64)])
@pytest.mark.parametrize("box", [(20, 40, 200, 380), (300, 40, 480, 380), (100, 40, 780, 380)])
def test_the_pose_lies_where_the_person_is(box, size, framing):
    """At each joint of the framed pose the framed picture has the dot that was drawn there."""
    pose = standing((800, 400), *box)
    framed = frame_reference(dotted(pose), pose, size, framing)
    for x, y in framed.pose.body[0] * size:
        if 1 <= x < size[0] - 1 and 1 <= y < size[1] - 1:
            assert framed.picture[int(y), int(x)].min() > 100


def test_the_centred_crop_is_as_the_reference_cuts_it(person, person_path):
    """To the byte, where the person is inside it."""
    pose = estimate_poses(person_path, threads=2)
    for size in ((64, 64), (128, 128)):
        for framing in ("person", "centre"):
            framed = frame_reference(person, pose, size, framing)
            np.testing.assert_array_equal(framed.picture, fit_picture(person, *size))
            np.testing.assert_array_equal(framed.pose.body, pose.body)


def test_the_top_of_the_head_is_above_the_nose():
    pose = standing((400, 400), 100, 100, 300, 300)
    low, high = person_span(pose, (400, 400), 1) or (0, 0)
    assert low == pytest.approx(120 - 0.9 * 20)
    assert high == pytest.approx(300)


def test_of_nobody_the_middle_is_taken():
    pose = single_frame((800, 400))
    assert choose_crop(pose, (800, 400), (256, 512), "person") == Crop(300, 0, 500, 400)


def test_a_person_at_the_left_of_a_wide_picture():
    """Of 768x384, x 39 to 189; the centred crop keeps 256 to 512, an empty background."""
    picture = read_picture(LEFT)
    framed = frame_reference(picture, estimate_poses(picture, threads=2), (256, 384), "person")
    assert (framed.crop.left, framed.crop.right) == (0, 256)
    np.testing.assert_array_equal(framed.picture, picture[:, :256])
    assert framed.picture.std(axis=(0, 1)).max() > 1.5 * picture[:, 256:512].std(axis=(0, 1)).max()
