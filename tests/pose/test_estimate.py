"""From a clip to poses in one call."""

from __future__ import annotations

import numpy as np
import pytest

from mimicmotion_trt.errors import InputError, MotionError
from mimicmotion_trt.pose import PoseSequence, estimate_poses, open_estimator
from mimicmotion_trt.pose.sequence import single_frame


class Brightness:
    """An estimator that puts every point at the frame's mean brightness; black frames show nobody."""

    def __init__(self) -> None:
        self.resets = 0

    def estimate(self, frame: np.ndarray) -> PoseSequence:
        mean = float(frame.mean()) / 255
        size = (frame.shape[1], frame.shape[0])
        return single_frame(size, body=np.full((18, 2), mean), body_score=np.full(18, float(mean > 0)))

    def reset(self) -> None:
        self.resets += 1


def levels(*values: int, shape=(12, 16)) -> np.ndarray:
    return np.stack([np.full((*shape, 3), value, np.uint8) for value in values])


def test_frames_as_array_list_and_generator():
    frames = levels(51, 102, 153)
    expected = estimate_poses(frames, Brightness())
    np.testing.assert_allclose(expected.body[:, 0, 0], [0.2, 0.4, 0.6], rtol=1e-6)
    assert (expected.size, expected.fps) == ((16, 12), 30.0)
    assert estimate_poses(list(frames), Brightness()) == expected
    assert estimate_poses((frame for frame in frames), Brightness()) == expected


def test_one_picture_is_a_clip_of_one_frame():
    assert len(estimate_poses(levels(51)[0], Brightness())) == 1
    assert len(estimate_poses(levels(51), Brightness())) == 1


def test_rate_and_stride():
    frames = levels(10, 20, 30, 40, 50)
    poses = estimate_poses(frames, Brightness(), fps=60, stride=2)
    np.testing.assert_allclose(poses.body[:, 0, 0] * 255, [10, 30, 50], rtol=1e-5)
    assert poses.fps == 30
    with pytest.raises(MotionError, match="stride"):
        estimate_poses(frames, Brightness(), stride=0)


def test_a_gap_is_kept_but_nobody_at_all_is_refused():
    poses = estimate_poses(levels(50, 0, 50), Brightness())
    assert poses.body_score[:, 0].tolist() == [1, 0, 1]
    with pytest.raises(MotionError, match="Nobody was found in 2 frames") as caught:
        estimate_poses(levels(0, 0), Brightness())
    assert caught.value.remedy


def test_each_clip_starts_anew():
    estimator = Brightness()
    estimate_poses(levels(50), estimator)
    estimate_poses(levels(50), estimator)
    assert estimator.resets == 2


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 5, 5, 3), np.float32),
        np.zeros((2, 5, 5, 4), np.uint8),
        np.zeros((5, 5), np.uint8),
        np.zeros((0, 5, 5, 3), np.uint8),
        [],
        [[1, 2, 3]],
        7,
        None,
    ],
)
def test_frames_of_another_kind_are_refused(frames):
    with pytest.raises(MotionError) as caught:
        estimate_poses(frames, Brightness())
    assert caught.value.remedy


def test_frames_differing_in_size_are_refused():
    with pytest.raises(MotionError, match="Frame 1"):
        estimate_poses([levels(50)[0], levels(50, shape=(5, 5))[0]], Brightness())


def test_an_unknown_estimator_is_refused_with_those_known():
    with pytest.raises(InputError, match="openpose") as caught:
        open_estimator("openpose")
    assert "mediapipe, dwpose" in caught.value.remedy
    with pytest.raises(InputError, match="threads"):
        open_estimator("mediapipe", threads=0)


def test_a_picture_by_path_and_by_bytes(person_path, estimator, person):
    by_path = estimate_poses(person_path, estimator)
    assert by_path.body_score[0, 0] > 0.9
    assert estimate_poses(str(person_path), estimator) == by_path
    assert estimate_poses(person_path.read_bytes(), estimator) == by_path
    np.testing.assert_allclose(estimate_poses(person, estimator).body, by_path.body, atol=0.02)


def test_a_video_is_read_with_its_own_rate(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for value in (50, 100, 150, 200):
            frame = av.VideoFrame.from_ndarray(levels(value, shape=(48, 64))[0], format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    poses = estimate_poses(path, Brightness())
    assert (len(poses), poses.size, poses.fps) == (4, (64, 48), 12.0)
    np.testing.assert_allclose(poses.body[:, 0, 0] * 255, [50, 100, 150, 200], atol=4)
    assert estimate_poses(path.read_bytes(), Brightness()) == poses
    halved = estimate_poses(path, Brightness(), stride=2)
    assert (len(halved), halved.fps) == (2, 6.0)


def test_what_cannot_be_read_is_a_motion_error(tmp_path):
    with pytest.raises(MotionError, match="cannot be read"):
        estimate_poses(tmp_path / "absent.mp4", Brightness())
    with pytest.raises(MotionError):
        estimate_poses(b"no video", Brightness())
