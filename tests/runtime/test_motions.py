"""A motion in any of its forms is the motion that it shows."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from mimicmotion_trt import LimitError, MotionError, PoseSequence, Settings, SettingsError, draw_poses
from mimicmotion_trt.limits import Limits
from mimicmotion_trt.media.animated import encode_animation, open_video
from mimicmotion_trt.media.picture import read_picture, write_picture
from mimicmotion_trt.media.writer import VideoWriter
from mimicmotion_trt.pose.formats import write_foreign
from mimicmotion_trt.pose.motion import open_motion, shows_skeletons, sized_pictures
from mimicmotion_trt.training.synthetic import iter_clips

ROOT = Path(__file__).parents[2]
INPUTS = ROOT / "tests" / "data" / "inputs"


@pytest.fixture(scope="module")
def poses():
    """20 frames, the middle of which are the same in every form."""
    return PoseSequence.load(ROOT / "demo" / "balance.npz")[:20]


def opened(motion, kind="auto", **settings):
    return open_motion(motion, Settings(**settings), Limits(), kind)


def same(found, poses, pixels=0.01):
    """Points that are seen, in pixels, and their scores."""
    for name in ("body", "hands", "face"):
        seen = getattr(poses, f"{name}_score") > 1e-4
        apart = (getattr(found, name) - getattr(poses, name))[seen] * poses.size
        assert np.abs(apart).max() < pixels
        assert np.abs(getattr(found, f"{name}_score") - getattr(poses, f"{name}_score")).max() < 2e-3


def test_openpose_keypoints_come_back(poses, tmp_path):
    data = write_foreign(poses, "openpose")
    motion = opened(data)
    assert (motion.fps, motion.frames, motion.poses.size) == (15.0, 20, poses.size)
    same(motion.poses, poses)
    for index, frame in enumerate(json.loads(data)):  # OpenPose writes a file for each frame
        (tmp_path / f"dance_{index}_keypoints.json").write_text(json.dumps(frame))
    same(opened(tmp_path).poses, poses)
    assert opened(tmp_path, stride=3, frames=4).frames == 4


def test_openpose_with_25_points_fractions_and_several_people(poses):
    frames = json.loads(write_foreign(poses, "openpose"))
    for frame in frames:
        body = np.reshape(frame["people"][0]["pose_keypoints_2d"], (18, 3))
        body[:, :2] /= poses.size
        whole = np.zeros((25, 3))
        whole[[*range(8), *range(9, 15), *range(15, 19)]] = body
        small = np.where(whole[:, 2:] > 0, [0.05, 0.05, 0], 0) + whole * [0.1, 0.1, 1]
        frame["people"] = [
            {"pose_keypoints_2d": small.ravel().tolist()},
            {"pose_keypoints_2d": whole.ravel().tolist()},
        ]
        frame["people"][1]["face_keypoints_2d"] = None
    found = opened(json.dumps(frames).encode()).poses
    seen = poses.body_score > 0
    assert np.abs((found.body - poses.body)[seen] * poses.size).max() < 0.01
    assert not found.face_score.any()


def test_frames_without_anybody_are_not_seen(poses):
    frames = json.loads(write_foreign(poses, "openpose"))
    frames[3]["people"] = []
    found = opened(json.dumps(frames).encode()).poses
    assert not found.body_score[3].any()
    assert found.body_score[4].any()


def test_coco_wholebody_in_its_forms(poses):
    """The neck is the middle of the shoulders, which is where all that have no neck of their own put it."""
    data = json.loads(write_foreign(poses, "coco-wholebody"))
    keys = ("keypoints", "foot_kpts", "face_kpts", "lefthand_kpts", "righthand_kpts")
    whole = np.array(
        [np.reshape(np.concatenate([e[key] for key in keys]), (133, 3)) for e in data["annotations"]]
    )
    results = [{"image_id": k, "keypoints": frame.ravel().tolist()} for k, frame in enumerate(whole)]
    instances = [
        {"instances": [{"keypoints": f[:, :2].tolist(), "keypoint_scores": f[:, 2].tolist()}]} for f in whole
    ]
    archive = io.BytesIO()
    np.savez(archive, keypoints=whole)
    first = opened(json.dumps(data).encode()).poses
    assert first.size == poses.size
    for form in (
        results,
        {"instance_info": instances},
        {"keypoints": whole.tolist(), "canvas_width": 1, "fps": 25},
    ):
        found = opened(json.dumps(form).encode()).poses
        scale = np.array(found.size) / first.size
        seen = first.body_score > 0
        assert np.abs((found.body * scale - first.body)[seen]).max() < 1e-4
    assert len(opened(archive.getvalue()).poses) == 20
    joints = [0, *range(2, 18)]
    seen = poses.body_score[:, joints] > 0
    assert np.abs((first.body - poses.body)[:, joints][seen] * poses.size).max() < 0.01


def shifted(person, by):
    """OpenPose's person elsewhere, by pixels to the right."""
    body = np.reshape(person["pose_keypoints_2d"], (-1, 3))
    return {"pose_keypoints_2d": (body + [by, 0, 0] * (body[:, 2:] > 0)).ravel().tolist()}


def test_of_several_people_in_a_file_the_one_who_is_meant_is_followed(poses, tmp_path):
    """One stands, another walks past them; in some frames one of them is missing, and the order changes."""
    frames = json.loads(write_foreign(poses, "openpose"))
    for index, frame in enumerate(frames):
        person = frame["people"][0]
        walker = shifted(person, 30 * index - 300)
        people = [person, walker] if index % 2 else [walker, person]
        frame["people"] = [one for one in people if index != 5 or one is person]
        (tmp_path / f"{index}.json").write_text(json.dumps(frame))
    stands, walks = poses.body[:, 1, 0], poses.body[:, 1, 0] + (30 * np.arange(20) - 300) / poses.size[0]
    for source in (json.dumps(frames).encode(), tmp_path):
        for driver, neck in (("left", walks), ("right", stands), ("2", stands)):
            found = opened(source, driver=driver).poses
            there = found.body_score[:, 1] > 0
            assert list(np.flatnonzero(~there)) == ([5] if driver == "left" else [])
            assert np.abs(found.body[there, 1, 0] - neck[there]).max() < 1e-4
        with pytest.raises(SettingsError, match="no more than 2 people"):
            opened(source, driver="3")


def test_somebody_who_is_hardly_found_is_no_larger_for_what_was_not_seen(poses):
    """OpenPose writes 0, 0 for joints that it has not found; a small person of low scores far from there."""
    frames = json.loads(write_foreign(poses, "openpose"))
    for frame in frames:
        body = np.reshape(frame["people"][0]["pose_keypoints_2d"], (18, 3))
        faint = np.where(body[:, 2:] > 0, body * [0.1, 0.1, 0] + [*(0.85 * np.array(poses.size)), 0.2], 0)
        faint[10:] = 0
        frame["people"].insert(0, {"pose_keypoints_2d": faint.ravel().tolist()})
    found = opened(json.dumps(frames).encode()).poses
    assert np.abs(found.body[:, 1] - poses.body[:, 1]).max() < 1e-4


def test_fractions_of_pictures_of_several_sizes(poses):
    """Frames of another canvas are moved into the first one's; places stay fractions in all of them."""
    frames = json.loads(write_foreign(poses[:4], "openpose"))
    width, height = poses.size
    for index, frame in enumerate(frames):
        body = np.reshape(frame["people"][0]["pose_keypoints_2d"], (18, 3)) / [width, height, 1]
        frame["people"] = [{"pose_keypoints_2d": body.ravel().tolist()}]
        scale = 1 + index % 2
        frame["canvas_width"], frame["canvas_height"] = scale * width, scale * height
    found = opened(json.dumps(frames).encode()).poses
    seen = poses[:4].body_score > 0
    assert found.size == poses.size
    assert np.abs(found.body - poses[:4].body)[seen].max() < 1e-4


def test_files_of_pictures_are_one_motion_in_one_picture(poses, tmp_path):
    """ComfyUI's, MMPose's and COCO's files of one frame each; in one of them is nobody, in another only a face."""
    frames = json.loads(write_foreign(poses[:6], "openpose"))
    frames[2]["people"] = []
    frames[4]["people"][0]["pose_keypoints_2d"] = []
    for index, frame in enumerate(frames):
        (tmp_path / f"{index}.json").write_text(json.dumps([frame]))
    found = opened(tmp_path).poses
    assert (found.size, found.body_score.any(axis=1).tolist()) == (
        poses.size,
        [True, True, False, True, False, True],
    )
    rng = np.random.default_rng(0)
    whole = rng.uniform(100, 180, (4, 133, 2))
    whole[3] += 400  # beyond the size that the other files would be given
    for index, points in enumerate(whole):
        small = {"keypoints": (points / 4).tolist(), "keypoint_scores": [0.9] * 133}
        large = {"keypoints": points.tolist(), "keypoint_scores": [0.9] * 133}
        (tmp_path / f"{index}.json").write_text(json.dumps([small, large] if index < 3 else [large]))
    for index in (4, 5):
        (tmp_path / f"{index}.json").unlink()
    found = opened(tmp_path).poses
    assert (len(found), found.size) == (4, (768, 768))
    np.testing.assert_allclose(found.face * found.size, whole[:, 23:91], atol=1e-3)


def test_images_without_an_entry_show_nobody_and_come_by_number(poses):
    data = json.loads(write_foreign(poses, "coco-wholebody"))
    expected = opened(json.dumps(data).encode()).poses
    entries = [entry for entry in data["annotations"] if entry["image_id"] not in (0, 7)][::-1]
    without = opened(json.dumps({**data, "annotations": entries}).encode()).poses
    assert len(without) == 20
    assert list(np.flatnonzero(~without.body_score.any(axis=1))) == [0, 7]
    np.testing.assert_allclose(without.body[8:], expected.body[8:])
    found = opened(json.dumps(entries).encode()).poses  # results alone: nothing says that there is a frame 0
    assert (len(found), list(np.flatnonzero(~found.body_score.any(axis=1)))) == (19, [6])
    sparse = [{**entry, "image_id": entry["image_id"] ** 3} for entry in entries]  # of a data set
    assert len(opened(json.dumps(sparse).encode()).poses) == 18
    body_only = {
        "instance_info": [{"instances": [{"keypoints": [[9, 9]] * 17, "keypoint_scores": [0.5] * 17}]}]
    }
    assert opened(json.dumps(body_only).encode()).poses.body_score.all()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"people": [{"pose_keypoints_2d": [1, 2, 3]}]}', "1 points"),
        (b"[]", "empty"),
        (b'{"people": []}', "nobody"),
        (b'{"something": 1}', "something"),
        (b'{"people": [], "canvas_width": 0, "canvas_height": 512}', "picture is 0x512"),
        (b'[{"people": [{"pose_keypoints_2d": [1, 2,', "truncated"),
    ],
)
def test_json_that_holds_no_keypoints(content, says):
    with pytest.raises(MotionError, match=says):
        opened(content)


def test_files_that_are_cut_off_are_named_so(poses, tmp_path):
    pictures = tmp_path / "pictures.npy"
    np.save(pictures, np.zeros((4, 64, 64, 3), np.uint8))
    whole = pictures.read_bytes()
    pictures.rename(tmp_path / "pictures").write_bytes(whole)  # told by its content
    assert opened(tmp_path / "pictures").frames == opened(whole).frames == 4
    pictures.write_bytes(whole[:-1000])
    for cut in (poses.to_bytes()[:-100], write_foreign(poses, "openpose")[:-100], pictures, whole[:-1000]):
        with pytest.raises(MotionError, match="truncated"):
            opened(cut)


def test_transparent_pose_pictures_lie_over_black():
    motion = opened(INPUTS / "poses")
    assert motion.frames == 8
    for picture, path in zip(motion.pictures(), sorted((INPUTS / "poses").iterdir()), strict=True):
        with Image.open(path) as transparent:
            expected = np.asarray(transparent.convert("RGBA"))
        assert (picture[expected[..., 3] == 0] == 0).all()
        assert (picture[expected[..., 3] == 255] == expected[expected[..., 3] == 255][:, :3]).all()


def test_pose_pictures_of_any_size(poses, tmp_path):
    for index, picture in enumerate(draw_poses(poses[:3], 200, 120, 512)):
        write_picture(tmp_path / f"{index}.png", picture)
    pictures = list(sized_pictures(opened(tmp_path), 64, 128))
    assert {picture.shape for picture in pictures} == {(128, 64, 3)}
    assert all(picture.max() > 60 for picture in pictures)


@pytest.fixture(scope="module")
def skeletons(poses):
    width, height = poses.size
    return draw_poses(poses, 256, round(256 * width / height / 2) * 2, 512)


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".webm"])
def test_a_video_of_skeletons_is_recognised(skeletons, tmp_path, suffix):
    path = tmp_path / f"poses{suffix}"
    with VideoWriter(path, fps=30, size=(skeletons.shape[2], 256)) as writer:
        for picture in skeletons:
            writer.write(picture)
    motion = opened(path)
    assert (motion.frames, motion.fps) == (10, pytest.approx(15))
    assert motion.video is None
    assert sum(1 for _ in motion.pictures()) == 10
    assert opened(path, kind="video").pictures is None


@pytest.mark.parametrize(("width", "height", "canvas"), [(128, 192, 128), (256, 256, 256), (1280, 720, 720)])
def test_skeletons_are_recognised_with_thick_lines_too(poses, width, height, canvas):
    drawn = draw_poses(poses.take(range(0, 20, 5)), height, width, canvas)
    assert shows_skeletons(iter(drawn))
    wider = np.ones((3, 3) if height > 200 else (2, 2), np.uint8)
    assert shows_skeletons(np.asarray(cv2.dilate(picture, wider), np.uint8) for picture in drawn)


@pytest.mark.parametrize("style", ["rich", "doll"])
def test_a_drawn_person_before_black_is_no_skeleton(style):
    for clip in iter_clips(1_050_000, 4, 2, 256, 160, style=style):
        assert not shows_skeletons(iter((clip.frames * (clip.masks[..., None] > 0)).astype(np.uint8)))


def test_a_recording_of_a_person_is_no_skeleton():
    assert opened(INPUTS / "zero_size.mp4").pictures is None
    assert opened(INPUTS / "zero_size.mp4", kind="pose-video").video is None
    with pytest.raises(MotionError, match="kind of a motion"):
        opened(INPUTS / "zero_size.mp4", kind="dance")


@pytest.mark.parametrize(("form", "options"), [("WEBP", {"lossless": True}), ("PNG", {}), ("GIF", {})])
def test_animated_pictures(skeletons, form, options):
    """12 pictures of 40 ms, the last one held for 0.4 s."""
    pictures = [Image.fromarray(picture) for picture in skeletons[:12]]
    file = io.BytesIO()
    times = [40] * 11 + [400]
    pictures[0].save(file, form, save_all=True, append_images=pictures[1:], duration=times, loop=0, **options)
    motion = opened(file.getvalue(), stride=1)
    assert motion.fps == pytest.approx(25)
    assert motion.frames == pytest.approx(21, abs=1 if form != "PNG" else 10)
    shown = list(motion.pictures())
    assert np.abs(shown[0].astype(int) - skeletons[0]).mean() < 3
    assert np.abs(shown[-1].astype(int) - skeletons[11]).mean() < 3


@pytest.mark.parametrize("suffix", [".apng", ".avi"])
def test_frames_that_are_alike_stay_frames(skeletons, suffix):
    alike = [skeletons[0]] * 3 + [skeletons[9]] * 3
    video = open_video(encode_animation(alike, 10, suffix))
    shown = [frame.astype(int) for _, frame in video.frames()]
    assert (video.fps, len(shown)) == (10, 6)
    assert all(np.abs(one - other).mean() < 1 for one, other in zip(shown, alike, strict=True))


def test_motion_jpeg(skeletons):
    file = io.BytesIO()
    with av.open(file, "w", format="mjpeg") as output:
        stream = output.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = skeletons.shape[2], 256, "yuvj420p"
        for picture in skeletons[:6]:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        output.mux(stream.encode(None))
    assert opened(file.getvalue(), stride=1).frames == 6


def test_files_in_a_row(poses, skeletons, tmp_path):
    poses.save(tmp_path / "a.npz")
    replace(poses, fps=poses.fps * 2).save(tmp_path / "b.json")
    motion = opened([tmp_path / "a.npz", tmp_path / "b.json"])
    assert (motion.frames, motion.fps, len(motion.poses)) == (30, poses.fps, 30)
    assert motion.poses[:20].body.tolist() == poses.body.tolist()
    videos = [INPUTS / "zero_size.mp4", INPUTS / "mono_stereo.ts"]
    motion = opened(videos)
    assert (motion.frames, motion.fps) == (48, pytest.approx(15))
    assert motion.audio == [(videos[1], pytest.approx(1.6))]
    assert sum(1 for _ in opened(videos, frames=30).video()) == 30
    with pytest.raises(MotionError, match="different kinds"):
        opened([tmp_path / "a.npz", INPUTS / "zero_size.mp4"])
    with pytest.raises(LimitError, match="frames of the motion"):
        open_motion(videos, Settings(), Limits(frames=47))


def test_an_avif_is_turned_as_phones_write_it():
    turned, upright = read_picture(INPUTS / "turned.avif"), read_picture(INPUTS / "upright.jpg")
    assert turned.shape == (384, 256, 3)
    assert np.abs(turned.astype(int) - upright).mean() < 3
