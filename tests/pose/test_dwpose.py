"""DWPose's way through two networks, exercised with tiny ones that are made here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mimicmotion_trt.errors import InputError, MotionError
from mimicmotion_trt.pose import open_estimator
from mimicmotion_trt.pose.dwpose import (
    DwposeEstimator,
    decode_simcc,
    decode_yolox,
    from_wholebody,
    letterbox,
)

onnx = pytest.importorskip("onnx")

ROWS, GRID80 = 8400, 80


def _save(path: Path, nodes: list, constants: dict, shape: list[int], outputs: list[str]) -> Path:
    float32 = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "stand-in",
        [onnx.helper.make_tensor_value_info("input", float32, shape)],
        [onnx.helper.make_tensor_value_info(name, float32, None) for name in outputs],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def save_detector(path: Path, rows: np.ndarray, lit: np.ndarray | None = None) -> Path:
    """A person detector that sees the rows [8400,85] in every picture, and `lit` where its corner is white."""
    make = onnx.helper.make_node
    nodes = [
        make("Slice", ["input", "start", "end"], ["corner"]),
        make("ReduceMax", ["corner"], ["brightest"], keepdims=0),
        make("Div", ["brightest", "white"], ["share"]),
        make("Mul", ["lit", "share"], ["more"]),
        make("Add", ["rows", "more"], ["output"]),
    ]
    constants = {
        "start": np.array([0, 0, 0, 0]),
        "end": np.array([1, 3, 16, 16]),
        "white": np.float32(255),
        "lit": (np.zeros_like(rows) if lit is None else lit)[None],
        "rows": rows[None],
    }
    return _save(path, nodes, {k: np.asarray(v) for k, v in constants.items()}, [1, 3, 640, 640], ["output"])


def save_pose_network(path: Path) -> Path:
    """A pose network that finds all 133 points at the brightest spot.

    It takes the brightest value of each column and row, everyone twice since two classes stand for a pixel.
    The vertical peaks are a fifth as high, so that they make the scores.
    """
    make = onnx.helper.make_node
    nodes = [
        make("ReduceMax", ["input"], ["columns"], axes=[1, 2], keepdims=0),
        make("ReduceMax", ["input"], ["rows"], axes=[1, 3], keepdims=0),
        make("Gather", ["columns", "twice_x"], ["x"], axis=1),
        make("Gather", ["rows", "twice_y"], ["y"], axis=1),
        make("Mul", ["x", "ones"], ["simcc_x"]),
        make("Mul", ["y", "fifths"], ["simcc_y"]),
    ]
    constants = {
        "twice_x": np.repeat(np.arange(288), 2),
        "twice_y": np.repeat(np.arange(384), 2),
        "ones": np.ones((1, 133, 1), np.float32),
        "fifths": np.full((1, 133, 1), 0.2, np.float32),
    }
    return _save(path, nodes, constants, [1, 3, 384, 288], ["simcc_x", "simcc_y"])


def row_of(box: tuple[float, float, float, float], score: float, kind: int = 0) -> tuple[int, np.ndarray]:
    """Index and raw row of the cell of the finest grid that stands for a box (input pixels, corners)."""
    left, top, right, bottom = box
    x, y = (left + right) / 2 / 8, (top + bottom) / 2 / 8
    row = np.zeros(85, np.float32)
    row[:4] = x % 1, y % 1, np.log((right - left) / 8), np.log((bottom - top) / 8)
    row[4], row[5 + kind] = 0.9, score / 0.9
    return int(y) * GRID80 + int(x), row


def rows_of(*boxes: tuple) -> np.ndarray:
    rows = np.zeros((ROWS, 85), np.float32)
    for box in boxes:
        index, row = row_of(*box)
        rows[index] = row
    return rows


@pytest.fixture
def build(tmp_path):
    def make(*boxes: tuple) -> DwposeEstimator:
        detector = save_detector(tmp_path / "detector.onnx", rows_of(*boxes))
        return DwposeEstimator(detector, save_pose_network(tmp_path / "pose.onnx"), threads=1)

    return make


def picture_with_spots(*spots: tuple[int, int], shape=(400, 320)) -> np.ndarray:
    picture = np.zeros((*shape, 3), np.uint8)
    for x, y in spots:
        picture[y - 2 : y + 3, x - 2 : x + 3] = 255
    return picture


# A picture of 320x400 is enlarged by 1.6 to fill the detector's 640.
PERSON = ((1.6 * 100, 1.6 * 80, 1.6 * 200, 1.6 * 280), 0.8)  # stands from (100, 80) to (200, 280)
SMALL = ((1.6 * 240, 1.6 * 300, 1.6 * 270, 1.6 * 380), 0.9)


def test_points_find_their_way_from_the_crop_to_the_picture(build):
    pose = build(PERSON).estimate(picture_with_spots((130, 200)))
    assert pose.size == (320, 400)
    for points in (pose.body, pose.hands, pose.face):
        np.testing.assert_allclose(points * pose.size, np.broadcast_to([130, 200], points.shape), atol=2.5)


def test_the_smaller_peak_is_the_score(build):
    pose = build(PERSON).estimate(picture_with_spots((130, 200)))
    white = (255 - 103.53) / 57.375  # the largest normalised value, in the blue channel
    np.testing.assert_allclose(pose.body_score[0, 0], white / 5, rtol=1e-3)
    assert pose.body_score[0, 1] == 1  # the neck between two shoulders that are seen


def test_the_crop_has_a_margin_of_a_quarter(build):
    # The box is 100x200, its crop 150x200 times 1.25: 187.5x250 around (150, 180), so from x 56 and y 55.
    assert build(PERSON).estimate(picture_with_spots((60, 60))).body[0, 0] * 320 == pytest.approx(
        [60, 48], abs=3
    )
    outside = build(PERSON).estimate(picture_with_spots((40, 40)))
    assert abs(outside.body[0, 0, 0] * 320 - 40) > 10


def test_nobody_seen(build):
    for boxes in ((), [(*PERSON[:1], 0.2)], [(*PERSON, 3)]):  # none, too unsure, no person
        pose = build(*boxes).estimate(picture_with_spots((130, 200)))
        assert not pose.body_score.any()
        assert not pose.hands_score.any()


def test_the_largest_is_taken(build):
    picture = picture_with_spots((130, 200), (250, 340))
    assert build(PERSON, SMALL).estimate(picture).body[0, 0, 0] * 320 == pytest.approx(130, abs=2.5)


def test_the_person_is_followed_though_a_larger_one_comes(tmp_path):
    detector = save_detector(tmp_path / "detector.onnx", rows_of(SMALL), rows_of(PERSON))
    estimator = DwposeEstimator(detector, save_pose_network(tmp_path / "pose.onnx"), threads=1)
    alone = picture_with_spots((130, 200), (250, 340))
    joined = picture_with_spots((130, 200), (250, 340), (3, 3))
    for picture in (alone, joined):
        assert estimator.estimate(picture).body[0, 0, 0] * 320 == pytest.approx(250, abs=2.5)
    estimator.reset()
    assert estimator.estimate(joined).body[0, 0, 0] * 320 == pytest.approx(130, abs=2.5)


def test_yolox_rows_become_boxes():
    rows = np.zeros((ROWS, 6))
    rows[0, :4] = 0.5, 0.25, np.log(2), np.log(3)
    decoded = decode_yolox(rows)
    assert decoded[0, :4] == pytest.approx([4, 2, 16, 24])
    assert decoded[81, :4] == pytest.approx([8, 8, 8, 8])  # second row of the grid of 80x80
    assert decoded[6400, 2:4] == pytest.approx([16, 16])
    assert decoded[6400 + 41, :2] == pytest.approx([16, 16])  # of 40x40
    assert decoded[8399, :4] == pytest.approx([19 * 32, 19 * 32, 32, 32])  # last of 20x20


def test_simcc_classes_are_half_pixels():
    horizontal, vertical = np.zeros((133, 576)), np.zeros((133, 768))
    horizontal[:, 101], vertical[:, 400] = 0.9, 0.6
    points, scores = decode_simcc(horizontal, vertical)
    assert points[7].tolist() == [50.5, 200]
    assert scores[7] == 0.6


def test_the_detector_sees_blue_first_and_grey_beyond_the_picture():
    picture = np.zeros((100, 200, 3), np.uint8)
    picture[..., 0] = 255  # red
    values, scale = letterbox(picture)
    assert values.shape == (1, 3, 640, 640)
    assert scale == 3.2
    assert values[0, :, 100, 300].tolist() == [0, 0, 255]
    assert values[0, :, 320:].min() == values[0, :, 320:].max() == 114


@pytest.mark.parametrize("variable", ["MIMICMOTION_DWPOSE_DETECTOR", "MIMICMOTION_DWPOSE_POSE"])
def test_a_missing_network_is_named_with_its_variable(tmp_path, monkeypatch, variable):
    present = save_pose_network(tmp_path / "pose.onnx")
    monkeypatch.setenv("MIMICMOTION_DWPOSE_DETECTOR", str(present))
    monkeypatch.setenv("MIMICMOTION_DWPOSE_POSE", str(present))
    for value, reason in (("", "not given"), (str(tmp_path / "absent.onnx"), r"not at .*absent\.onnx")):
        monkeypatch.setenv(variable, value)
        with pytest.raises(InputError, match=reason) as caught:
            open_estimator("dwpose")
        assert variable in caught.value.remedy


def test_paths_from_the_environment(tmp_path, monkeypatch):
    rows = rows_of(PERSON)
    monkeypatch.setenv("MIMICMOTION_DWPOSE_DETECTOR", str(save_detector(tmp_path / "a.onnx", rows)))
    monkeypatch.setenv("MIMICMOTION_DWPOSE_POSE", str(save_pose_network(tmp_path / "b.onnx")))
    assert open_estimator("dwpose", threads=1).estimate(picture_with_spots((130, 200))).body_score.all()


def test_networks_of_another_kind_are_refused(tmp_path):
    detector = save_detector(tmp_path / "detector.onnx", rows_of(PERSON))
    pose = save_pose_network(tmp_path / "pose.onnx")
    few = save_detector(tmp_path / "few.onnx", np.zeros((10, 85), np.float32))
    with pytest.raises(InputError, match="YOLOX network gives outputs of shape"):
        DwposeEstimator(few, pose).estimate(picture_with_spots((130, 200)))
    with pytest.raises(InputError, match=r"pose\.onnx takes inputs of shape \[1, 3, 384, 288\]"):
        DwposeEstimator(pose, detector)  # exchanged by mistake


def test_a_frame_of_another_kind_is_refused(build):
    with pytest.raises(MotionError, match="A frame"):
        build(PERSON).estimate(np.zeros((5, 5), np.uint8))


def test_wholebody_in_openpose_order():
    points = np.stack([np.arange(133.0), np.zeros(133)], axis=1)
    scores = np.linspace(0.31, 1.5, 133)  # the raw scores may be above 1
    pose = from_wholebody(points, scores, (100, 50))
    # COCO: nose, left and right eye, ears, shoulders, elbows, wrists, hips, knees, ankles
    right_and_left = [6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3]
    np.testing.assert_allclose(pose.body[0, :, 0] * 100, [0, 5.5, *right_and_left], rtol=1e-6)
    np.testing.assert_allclose(pose.face[0, :, 0] * 100, np.arange(23, 91), rtol=1e-6)
    np.testing.assert_allclose(pose.hands[0, 0, :, 0] * 100, np.arange(91, 112), rtol=1e-6)
    np.testing.assert_allclose(pose.hands[0, 1, :, 0] * 100, np.arange(112, 133), rtol=1e-6)
    np.testing.assert_allclose(pose.body_score[0, 2], scores[6], rtol=1e-6)
    assert pose.hands_score.max() == 1


def test_the_neck_is_seen_if_both_shoulders_are():
    points, scores = np.zeros((133, 2)), np.full(133, 0.5)
    assert from_wholebody(points, scores, (10, 10)).body_score[0, 1] == 1
    scores[6] = 0.3
    assert from_wholebody(points, scores, (10, 10)).body_score[0, 1] == 0
