"""A folder of pose pictures is read in the order a person would count it."""

import numpy as np
import pytest

from mimicmotion_trt.errors import LimitError, MotionError
from mimicmotion_trt.limits import Limits
from mimicmotion_trt.media.picture import list_pictures, read_pictures, write_picture


def test_natural_order(tmp_path):
    for number in (10, 2, 1, 33):
        write_picture(tmp_path / f"frame_{number}.png", np.full((4, 6, 3), number, np.uint8))
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / ".hidden.png").write_bytes(b"")
    assert [int(picture[0, 0, 0]) for picture in read_pictures(list_pictures(tmp_path))] == [1, 2, 10, 33]


def test_sizes_must_agree(tmp_path):
    write_picture(tmp_path / "1.png", np.zeros((4, 6, 3), np.uint8))
    write_picture(tmp_path / "2.png", np.zeros((4, 7, 3), np.uint8))
    with pytest.raises(MotionError, match=r"2\.png is 7x4, but 1\.png is 6x4"):
        list(read_pictures(list_pictures(tmp_path)))


def test_faults_name_the_motion(tmp_path):
    with pytest.raises(MotionError, match="no pictures"):
        list_pictures(tmp_path)
    with pytest.raises(MotionError, match="not a folder"):
        list_pictures(tmp_path / "missing")
    (tmp_path / "bad.png").write_bytes(b"no")
    with pytest.raises(MotionError, match=r"bad\.png"):
        next(read_pictures([tmp_path / "bad.png"]))
    write_picture(tmp_path / "bad.png", np.zeros((4, 6, 3), np.uint8))
    for limits in (Limits(frame_pixels=23), Limits(picture_pixels=23)):
        with pytest.raises(LimitError) as caught:
            next(read_pictures([tmp_path / "bad.png"], limits))
        assert caught.value.field == "motion"
