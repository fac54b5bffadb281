"""The default estimator on a real person."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimicmotion_trt.errors import MotionError
from mimicmotion_trt.media.picture import read_picture
from mimicmotion_trt.pose import open_estimator
from mimicmotion_trt.pose.mediapipe import FACE, face_in_body, to_openpose

MIRRORED_BODY = [0, 1, 5, 6, 7, 2, 3, 4, 11, 12, 13, 8, 9, 10, 15, 14, 17, 16]
MIRRORED_FACE = [*range(16, -1, -1), *range(26, 16, -1), 27, 28, 29, 30, 35, 34, 33, 32, 31,
                 45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40,
                 *range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), 67, 66, 65]  # fmt: skip
HEAD = [0, 14, 15, 16, 17]


def scaled(picture, factor):
    import cv2

    return cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)


def beside(*pictures, height=512):
    """Pictures next to each other on grey, all standing on its lower edge."""
    wide = np.full((height, sum(p.shape[1] for p in pictures), 3), 90, np.uint8)
    left = 0
    for picture in pictures:
        wide[height - len(picture) :, left : left + picture.shape[1]] = picture
        left += picture.shape[1]
    return wide


def test_a_person_is_found(estimator, person):
    pose = estimator.estimate(person)
    assert (len(pose), pose.size) == (1, (512, 512))
    pixels = pose.body[0] * 512
    np.testing.assert_allclose(pixels[[0, 14, 15]], [[223, 123], [202, 103], [247, 105]], atol=5)
    neck, right, left = pixels[1], pixels[2], pixels[5]
    np.testing.assert_allclose(neck, (right + left) / 2, atol=1e-3)
    assert right[0] < 200 < 280 < left[0]  # she faces us: her right is on our left
    assert pose.body_score[0, [0, 1, 2, 5, 14, 15]].min() > 0.9


def test_the_face_lies_on_the_face(estimator, person):
    pose = estimator.estimate(person)
    assert pose.face_score.min() > 0.9
    face = pose.face[0] * 512
    middle = face.mean(axis=0)
    assert np.hypot(*(middle - [223, 125])) < 15
    assert face[8, 1] == face[:, 1].max()  # the chin
    assert face[17:27, 1].max() < face[36:48, 1].min()  # brows over eyes
    assert face[36:48, 1].max() < face[30, 1] < face[48:60, 1].min()  # eyes, nose, mouth
    np.testing.assert_allclose(face[36:42].mean(axis=0), pose.body[0, 14] * 512, atol=4)


def test_what_is_hidden_is_unsure(estimator, person):
    pose = estimator.estimate(person)  # hands hidden by a helmet, legs outside
    assert pose.hands_score.max() < 0.1
    assert pose.body_score[0, [10, 13]].max() < 0.5


def test_a_mirrored_person_is_mirrored(estimator, person):
    pose = estimator.estimate(person)
    estimator.reset()
    mirrored = estimator.estimate(person[:, ::-1])
    flip = np.array([1.0, 0.0]) + np.array([-1.0, 1.0]) * pose.body[0][MIRRORED_BODY]
    np.testing.assert_allclose(mirrored.body[0][HEAD], flip[HEAD], atol=0.03)
    flip = np.array([1.0, 0.0]) + np.array([-1.0, 1.0]) * pose.face[0][MIRRORED_FACE]
    np.testing.assert_allclose(mirrored.face[0], flip, atol=0.02)


@pytest.mark.parametrize("factor", [0.2, 0.5, 3.01, 7.5])  # the last is 3840 pixels a side
def test_the_size_of_the_picture_makes_little_difference(estimator, person, factor):
    expected = estimator.estimate(person)
    estimator.reset()
    pose = estimator.estimate(scaled(person, factor))
    np.testing.assert_allclose(pose.body[0][HEAD], expected.body[0][HEAD], atol=0.03)
    np.testing.assert_allclose(pose.face[0], expected.face[0], atol=0.02)


@pytest.mark.parametrize("shape", [(512, 1401), (1403, 512)])
def test_landscape_and_portrait(estimator, person, shape):
    picture = np.full((*shape, 3), 90, np.uint8)
    left = (shape[1] - 512) // 2
    picture[-512:, left : left + 512] = person
    pose = estimator.estimate(picture)
    nose = pose.body[0, 0] * [shape[1], shape[0]]
    np.testing.assert_allclose(nose, [left + 223, shape[0] - 512 + 123], atol=6)


def test_grey_pictures(estimator, person):
    grey = np.repeat(person.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)
    np.testing.assert_allclose(estimator.estimate(grey).body[0, 0] * 512, [223, 123], atol=6)


@pytest.mark.parametrize("shape", [(1, 1), (100, 100), (3, 400), (720, 1280)])
def test_nobody_has_no_score(estimator, shape):
    pose = estimator.estimate(np.full((*shape, 3), 60, np.uint8))
    assert not pose.body_score.any()
    assert not pose.hands_score.any()
    assert not pose.face_score.any()
    assert pose.size == shape[::-1]


@pytest.mark.parametrize("large_first", [True, False])
def test_of_several_people_the_largest_is_taken(estimator, person, large_first):
    large, small = person, scaled(person, 0.5)
    picture = beside(large, small) if large_first else beside(small, large)
    nose = estimator.estimate(picture).body[0, 0] * [768, 512]
    np.testing.assert_allclose(nose, [223 + (0 if large_first else 256), 123], atol=8)


def test_the_same_person_is_followed_though_a_larger_one_comes(estimator, person):
    small, gap = scaled(person, 0.5), np.full((512, 300, 3), 90, np.uint8)
    alone = beside(small, gap, np.full_like(person, 90))
    joined = beside(small, gap, person)
    estimator.estimate(alone)
    followed = estimator.estimate(joined).body[0, 0] * [1068, 512]
    np.testing.assert_allclose(followed, [112, 256 + 61], atol=8)
    estimator.reset()
    chosen = estimator.estimate(joined).body[0, 0] * [1068, 512]
    assert chosen[0] > 556


def test_a_moving_person_is_followed(estimator, person):
    for shift in range(0, 80, 16):
        nose = estimator.estimate(np.roll(person, shift, axis=1)).body[0, 0] * 512
        np.testing.assert_allclose(nose, [223 + shift, 123], atol=6)


def test_a_person_who_comes_back_is_found_again(estimator, person):
    estimator.estimate(person)
    assert not estimator.estimate(np.zeros_like(person)).body_score.any()
    assert estimator.estimate(person).body_score[0, 0] > 0.9


def test_a_clip_does_not_depend_on_the_one_before(estimator, person):
    first = estimator.estimate(person)
    estimator.estimate(np.roll(person, 60, axis=1))
    estimator.reset()
    assert estimator.estimate(person) == first


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((5, 5), np.uint8),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((5, 5, 3)),
        np.zeros((0, 5, 3), np.uint8),
        7,
    ],
)
def test_a_frame_of_another_kind_is_refused(estimator, frame):
    with pytest.raises(MotionError, match="A frame"):
        estimator.estimate(frame)


def test_estimating_prints_nothing_and_importing_is_light(person_path):
    code = (
        "import sys, mimicmotion_trt.pose as pose\n"
        "heavy = {'cv2', 'onnxruntime', 'av', 'torch', 'diffusers'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
        "import cv2\n"
        "pose.open_estimator('mediapipe', threads=2).estimate(cv2.imread(sys.argv[1]))\n"
        "assert 'torch' not in sys.modules\n"
    )
    command = [sys.executable, "-c", code, str(person_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_mediapipe_body_in_openpose_order():
    points = np.stack([np.arange(33.0), np.arange(33.0) * 2], axis=1)
    visibility = np.linspace(0.2, 0.9, 33)
    body, score = to_openpose(points, visibility)
    # nose, neck, then right before left: shoulder, elbow, wrist, hip, knee, ankle; eyes and ears
    right_and_left = [12, 14, 16, 11, 13, 15, 24, 26, 28, 23, 25, 27, 5, 2, 8, 7]
    assert body[:, 0].tolist() == [0, 11.5, *right_and_left]
    assert score[1] == visibility[11]  # the less sure shoulder
    assert score[2] == visibility[12]


def test_every_face_point_is_taken_once():
    assert len(FACE) == len(set(FACE)) == 68
    assert max(FACE) < 468


def test_nose_and_eyes_from_the_mesh():
    mesh = np.zeros((468, 2))
    mesh[4], mesh[33], mesh[133], mesh[362], mesh[263] = (5, 5), (1, 1), (3, 1), (7, 1), (9, 1)
    assert face_in_body(mesh).tolist() == [[5, 5], [2, 1], [8, 1]]


@pytest.fixture(scope="module")
def dancer() -> Any:
    """uint8 [384,256,3]: a drawn person, from head to foot, facing us, whom the estimator finds at most sizes.

    `make_clip(1_050_050, 1, 384, 256, character_seed=1_000_082, style="rich", blur=0.0, occlusion=False).reference`.
    """
    return read_picture(Path(__file__).parents[1] / "data" / "inputs" / "dancer.png")


@pytest.mark.parametrize(
    ("who", "nose"),
    [
        ("left", (98, 216)),
        ("right", (588, 245)),
        ("largest", (318, 143)),
        ("centre", (318, 143)),
        ("1", (98, 216)),
        ("2", (318, 143)),
        ("0.6,0.2,1,1", (588, 245)),
    ],
)
def test_the_person_who_is_asked_for_is_found(dancer, who, nose):
    """Three people: a smaller one, a large one, the smallest."""
    picture = beside(
        scaled(dancer, 0.7), dancer, np.full((300, 70, 3), 90, np.uint8), scaled(dancer, 0.6), height=400
    )
    found = open_estimator(threads=2, person=who).estimate(picture).body[0, 0]
    np.testing.assert_allclose(found * [picture.shape[1], 400], nose, atol=12)


@pytest.mark.parametrize(("size", "left"), [(0.3, 300), (0.4, 600), (0.5, 50)])
def test_somebody_small_in_a_wide_picture_is_found(dancer, size, left):
    small = scaled(dancer, size)
    picture = np.full((400, 900, 3), 90, np.uint8)
    picture[400 - len(small) :, left : left + small.shape[1]] = small
    found = open_estimator(threads=2).estimate(picture).body[0, 0, 0] * 900
    assert found == pytest.approx(left + 139 * size, abs=5)
    picture[:] = 90
    assert not open_estimator(threads=2).estimate(picture).body_score.any()


def test_a_box_in_pixels_is_one_of_the_picture_as_it_came(dancer):
    """1792 pixels wide: more than the estimator looks at."""
    picture = scaled(beside(dancer, np.full((384, 384, 3), 90, np.uint8), dancer[:, ::-1], height=384), 2)
    for box, nose in (("1280,0,1792,768", (640 + 256 - 139) * 2), ("0,0,512,768", 139 * 2)):
        found = open_estimator(threads=2, person=box).estimate(picture).body[0, 0, 0] * picture.shape[1]
        assert found == pytest.approx(nose, abs=20)


def test_people_who_cross_are_not_taken_for_each_other(dancer):
    """One walks to the right, one to the left and behind; in the middle only the front one is seen."""
    back = scaled(dancer, 0.9)[:, ::-1]
    estimators = [open_estimator(threads=2, person=who) for who in ("left", "right")]
    noses: list[list[float]] = [[], []]
    steps = np.arange(0, 400, 25)
    for step in steps:
        picture = np.full((400, 700, 3), 90, np.uint8)
        picture[400 - len(back) :, 440 - step : 440 - step + back.shape[1]] = back
        picture[16:, step : step + 256] = dancer
        for estimator, found in zip(estimators, noses, strict=True):
            pose = estimator.estimate(picture)
            found.append(float(pose.body[0, 0, 0]) * 700 if pose.body_score.any() else np.nan)
    rightwards, leftwards = (np.array(found) for found in noses)
    assert np.abs(rightwards - (steps + 139)).max() < 15  # never lost
    away = np.abs(leftwards - (440 - steps + (256 - 139) * 0.9))
    assert np.sum(away > 15) <= 1  # the frame in which two thirds of them are hidden
    assert np.nanmax(away) < 100
    assert np.isnan(leftwards).sum() <= 7
    assert not np.isnan(leftwards[-3:]).any()
