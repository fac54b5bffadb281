"""A part of a motion, or another frame rate: the frames and the sound of that time, in step to 2 ms."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mimicmotion_trt import Limits, MotionError, PoseSequence, Settings
from mimicmotion_trt.media.writer import FragmentedMp4, VideoWriter
from mimicmotion_trt.pose.formats import write_foreign
from mimicmotion_trt.pose.motion import open_motion

from .test_odd_recordings import beeping, heard, onset

POSES = Path(__file__).parents[2] / "demo" / "balance.npz"


def opened(motion, **settings):
    return open_motion(motion, Settings(**settings), Limits(), "video")


def written(motion, path):
    """An MP4 of the motion's own frames, each as often as the video has it."""
    frames = list(motion.video())
    repeat = motion.frames // len(frames)
    with VideoWriter(path, fps=motion.fps, size=frames[0].shape[1::-1], audio=motion.audio) as writer:
        for frame in frames:
            for _ in range(repeat):
                writer.write(frame)
    assert writer.note == ""
    return path.read_bytes()


@pytest.mark.parametrize(
    ("container", "sound"), [("mp4", "aac"), ("matroska", "pcm_s16le"), ("mpegts", "aac")]
)
def test_a_part_has_its_own_frames_and_sound(clip, index_of, tmp_path, container, sound):
    """24 frames a second, a beep at 0.5 s."""
    motion = opened(beeping(clip, container=container, sound=sound), stride=1, start=0.25, end=0.75)
    assert [round(index_of(frame)) for frame in motion.video()] == list(range(6, 18))
    assert (motion.fps, motion.frames) == (24, 12)
    video = written(motion, tmp_path / "out.mp4")
    assert onset(heard(video)) == pytest.approx(0.25, abs=0.002)
    assert len(heard(video)) / 48_000 == pytest.approx(0.5, abs=0.03)
    frames = np.stack(list(motion.video()))
    movie = FragmentedMp4(motion.fps, (64, 48), audio=motion.audio)
    assert onset(heard(movie.write(frames) + movie.close())) == pytest.approx(0.25, abs=0.002)


def test_a_part_that_begins_between_frames_begins_with_the_next_one(clip, index_of, tmp_path):
    motion = opened(beeping(clip, sound="aac"), stride=2, start=0.26)
    assert [round(index_of(frame)) for frame in motion.video()][:3] == [7, 9, 11]
    assert onset(heard(written(motion, tmp_path / "out.mp4"))) == pytest.approx(0.5 - 7 / 24, abs=0.002)


@pytest.mark.parametrize(("fps", "shown"), [(8, range(0, 24, 3)), (10, [0, 2, 4, 7, 9, 12, 14, 16, 19, 21])])
def test_a_lower_rate_leaves_frames_out_and_keeps_time(clip, index_of, tmp_path, fps, shown):
    motion = opened(beeping(clip, sound="aac"), fps=fps)
    assert [round(index_of(frame)) for frame in motion.video()] == list(shown)
    assert (motion.fps, motion.frames) == (fps, len(shown))
    assert onset(heard(written(motion, tmp_path / "out.mp4"))) == pytest.approx(0.5, abs=0.002)


def test_a_higher_rate_looks_at_every_frame_once_and_keeps_time(clip, index_of, tmp_path):
    motion = opened(beeping(clip, sound="aac"), fps=48)
    assert [round(index_of(frame)) for frame in motion.video()] == list(range(24))
    assert (motion.fps, motion.frames, motion.sampling.rate) == (48, 48, 24)
    assert onset(heard(written(motion, tmp_path / "out.mp4"))) == pytest.approx(0.5, abs=0.002)


def test_a_row_is_cut_as_a_whole(clip, index_of, tmp_path):
    """Two clips of a second: a beep at 0.5 s, one at 1.5 s."""
    one, silent = beeping(clip, sound="aac"), clip(24, rate=24)
    motion = opened([one, one], stride=1, start=0.75, end=1.75)
    assert [round(index_of(frame)) for frame in motion.video()] == [*range(18, 24), *range(18)]
    assert onset(heard(written(motion, tmp_path / "both.mp4"))) == pytest.approx(0.75, abs=0.002)
    for start in (0, 0.5, 1.25):
        motion = opened([silent, one], stride=1, start=start)
        sound = heard(written(motion, tmp_path / f"{start}.mp4"))
        assert onset(sound) == pytest.approx(1.5 - start, abs=0.002)
    slow = opened([one, one], fps=12, start=0.5)
    assert [round(index_of(frame)) for frame in slow.video()] == [*range(12, 24, 2), *range(0, 24, 2)]
    assert (slow.fps, slow.frames) == (12, 18)


def test_times_beyond_the_motion_name_its_length(clip):
    for settings in ({"start": 1.5}, {"end": 3}):
        with pytest.raises(MotionError, match=r"the motion is 1\.00 s long"):
            opened(beeping(clip), **settings)
        with pytest.raises(MotionError, match=r"the motion is 2\.00 s long"):
            opened([beeping(clip)] * 2, **{name: value + 1 for name, value in settings.items()})


def test_keypoints_and_pose_pictures_are_cut_and_picked_alike(tmp_path):
    poses = replace(PoseSequence.load(POSES)[:30], fps=30.0)
    pictures = np.arange(30, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    for settings in ({"start": 0.2, "end": 0.8}, {"fps": 7}, {"stride": 2, "fps": 4, "start": 0.1}):
        found = opened(poses, **settings)
        pairs = zip(found.sampling.taken, found.poses, strict=True)
        assert all((poses[index].body == one.body).all() for index, one in pairs)
        assert found.poses.fps == found.fps
    shown = opened(pictures, start=0.4, fps=5, frames=3)
    assert [int(picture[0, 0, 0]) for picture in shown.pictures()] == [6, 9, 12]
    with pytest.raises(MotionError, match="15 pose pictures a second") as caught:
        opened(pictures, fps=30)
    assert caught.value.field == "settings.fps"


def test_two_motions_of_keypoints_in_a_row_are_cut_as_one():
    poses = replace(PoseSequence.load(POSES)[:30], fps=30.0)
    found = opened([poses, poses[::-1]], start=0.5, end=1.5)
    np.testing.assert_array_equal(found.poses.body, np.concatenate([poses.body[15:], poses.body[:14:-1]]))
    assert opened([poses, poses], fps=60, frames=70).sampling.taken == range(36)


def test_folders_of_pose_pictures_and_of_keypoints_are_cut(tmp_path):
    """Eight pictures at 15 a second."""
    folder = Path(__file__).parents[1] / "data" / "inputs" / "poses"
    whole, part = list(opened(folder).pictures()), list(opened(folder, start=0.2, end=0.4).pictures())
    assert [picture.tobytes() for picture in part] == [picture.tobytes() for picture in whole[3:6]]
    for index, frame in enumerate(json.loads(write_foreign(PoseSequence.load(POSES)[:9], "openpose"))):
        (tmp_path / f"{index}.json").write_text(json.dumps(frame))
    poses = opened(tmp_path)
    np.testing.assert_array_equal(opened(tmp_path, start=0.2, fps=7.5).poses.body, poses.poses.body[3::2])


def test_animated_pictures_and_videos_of_skeletons_are_cut_too(clip, index_of):
    file = io.BytesIO()
    frames = [Image.new("RGB", (64, 48), (20 + 4 * index,) * 3) for index in range(12)]
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], duration=50, lossless=True)
    shown = opened(file.getvalue(), start=0.2, end=0.4, stride=1).video()
    assert [round(index_of(frame)) for frame in shown] == [4, 5, 6, 7]
    skeletons = open_motion(beeping(clip), Settings(start=0.5, fps=12), Limits(), "pose-video")
    assert [round(index_of(frame)) for frame in skeletons.pictures()] == list(range(12, 24, 2))
    with pytest.raises(MotionError, match="24 pose pictures a second"):
        open_motion(beeping(clip), Settings(fps=30), Limits(), "pose-video")
