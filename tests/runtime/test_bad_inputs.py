"""Inputs that cannot be used raise errors of their own, and the next job runs."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mimicmotion_trt import (
    Animator,
    InputError,
    LimitError,
    Limits,
    MotionError,
    PictureError,
    PoseSequence,
    Settings,
    SettingsError,
)
from mimicmotion_trt.media.picture import write_picture


@pytest.fixture
def quick(animator: Animator) -> Settings:
    return animator.settings(steps=1, guidance=1, size=(64, 64))


@pytest.fixture
def refused(
    animator: Animator, quick: Settings, person: Path, person_pose: PoseSequence, dance: PoseSequence
) -> Callable[..., InputError]:
    """The error that an animation raises."""

    def run(kind, image=None, motion=None, using=animator, settings=quick, **more):
        image = person if image is None else image
        motion = dance[:2] if motion is None else motion
        more = {"reference_pose": person_pose, **more}
        with pytest.raises(kind) as caught:
            using.animate(image, motion, settings, **more).result()
        assert type(caught.value) is kind
        assert caught.value.message
        return caught.value

    return run


def png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is and holds nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_after_every_failure_the_next_job_runs(animator, quick, refused, person, person_pose, dance, clip_of):
    """Failures while opening, estimating, encoding; the job after them gives what it gave before."""

    def good():
        return animator.animate(person, dance[:2], quick, reference_pose=person_pose).result().frames()

    before = good()
    refused(PictureError, image=b"no picture")
    refused(PictureError, image=np.full((256, 256, 3), 127, np.uint8), reference_pose=None)
    refused(MotionError, motion=clip_of(12)[:9000])
    refused(MotionError, motion=clip_of(2, empty=True))
    refused(MotionError, motion=np.zeros((2, 64, 128, 3), np.uint8))
    refused(LimitError, image=png_header(100_000, 100_000))
    np.testing.assert_array_equal(good(), before)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"image": 3}, "the picture is an int."),
        ({"motion": 3}, "the motion is an int."),
        ({"motion": []}, "the list of motions is empty."),
    ],
)
def test_what_is_no_picture_or_motion_at_all_is_told(refused, given, told):
    kind = PictureError if "image" in given else MotionError
    assert refused(kind, **given).message == told


# --- the picture -----------------------------------------------------------------------------------------


def test_a_picture_that_is_not_there(refused, tmp_path):
    error = refused(PictureError, image=tmp_path / "nobody.png")
    assert error.field == "image"
    assert "nobody.png" in error.message
    assert error.remedy


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", bytes(1000)])
def test_what_is_no_picture(refused, tmp_path, data):
    (tmp_path / "picture.png").write_bytes(data)
    for form in (data, tmp_path / "picture.png"):
        assert refused(PictureError, image=form).field == "image"


def test_a_picture_that_is_cut_off(refused, person):
    assert "cut off" in refused(PictureError, image=person.read_bytes()[:5000]).message


@pytest.mark.parametrize("image", [np.zeros((64, 64), np.uint8), np.zeros((64, 64, 3), np.float32)])
def test_arrays_that_are_no_picture(refused, image):
    assert "uint8 [H,W,3]" in refused(PictureError, image=image).remedy


def test_a_header_that_claims_ten_thousand_million_pixels(refused):
    error = refused(LimitError, image=png_header(100_000, 100_000))
    assert error.field == "image"
    assert "10,000,000,000" in error.message


def test_a_picture_of_nobody(refused):
    empty = np.full((256, 256, 3), 127, np.uint8)
    assert refused(PictureError, image=empty, reference_pose=None).field == "image"


# --- the motion ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["nothing.mp4", "nothing.npz", "nothing.json", "nothing", "x" * 5000, "a\0b"]
)
def test_a_motion_that_is_not_there(refused, tmp_path, name):
    error = refused(MotionError, motion=f"{tmp_path}/{name}")
    assert error.field == "motion"
    assert error.remedy


@pytest.mark.parametrize("name", ["motion.mp4", "motion.npz", "motion.json", "motion"])
@pytest.mark.parametrize("data", [b"", b"this is a text", b"{}", b"PK\x03\x04 and no more", b"\xff" * 500])
def test_what_is_no_motion(refused, tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    assert refused(MotionError, motion=tmp_path / name).field == "motion"


@pytest.mark.parametrize("data", [b"", b"this is a text", b"{}", b"[1, 2]", b"PK\x03\x04"])
def test_bytes_that_are_no_motion(refused, data):
    assert refused(MotionError, motion=data).field == "motion"


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.95])
def test_a_video_that_is_cut_off(refused, clip_of, keep):
    data = clip_of(12)
    error = refused(MotionError, motion=data[: int(len(data) * keep)])
    assert error.field == "motion"


def test_a_video_of_nobody(refused, clip_of):
    error = refused(MotionError, motion=clip_of(4, empty=True))
    assert "nobody was found in 2 frames" in error.message


def test_keypoints_with_nan(refused, dance, tmp_path):
    body = np.array(dance.body[:2])
    body[1, 3, 0] = np.nan
    with pytest.raises(MotionError, match=r"body is nan in frame 1, point \[3, 0\]"):
        replace(dance[:2], body=body)
    dance[:2].save(tmp_path / "motion.json")
    values = json.loads((tmp_path / "motion.json").read_text())
    values["body"][1][3][0] = float("nan")
    (tmp_path / "motion.json").write_text(json.dumps(values))
    error = refused(MotionError, motion=tmp_path / "motion.json")
    assert error.field == "motion.body"
    assert "frame 1, point [3, 0]" in error.message


def test_keypoints_of_nobody(refused, dance):
    blank = replace(dance[:2], body_score=np.zeros_like(dance.body_score[:2]))
    error = refused(MotionError, motion=blank)
    assert "visible" in error.message


@pytest.mark.parametrize(
    "motion", [3, object(), [], np.zeros((2, 64, 64, 3)), np.zeros((0, 64, 64, 3), np.uint8)]
)
def test_things_that_are_no_motion(refused, motion):
    error = refused(MotionError, motion=motion)
    assert error.field == "motion"
    assert error.remedy


def test_pose_pictures_of_another_size(refused, pose_pictures, tmp_path):
    error = refused(MotionError, motion=pose_pictures(2, 64, 128))
    assert "128x64" in error.message
    assert "64x64" in error.message
    for index, picture in enumerate([*pose_pictures(1, 64, 64), *pose_pictures(1, 64, 128)]):
        write_picture(tmp_path / f"{index}.png", picture)
    assert "1.png" in refused(MotionError, motion=tmp_path).message


def test_folders_without_usable_pictures(refused, tmp_path):
    assert "no pictures" in refused(MotionError, motion=tmp_path).message
    (tmp_path / "1.png").write_bytes(b"no picture")
    assert "1.png" in refused(MotionError, motion=tmp_path).message


@pytest.mark.parametrize(
    ("change", "stride", "field"),
    [({"fps": 1e308}, None, "motion"), ({"fps": 1e-3}, None, "motion"), ({}, 10_000, "settings.stride")],
)
def test_a_frame_rate_that_no_video_has_is_found_before_the_work(
    animator, person, quick, dance, change, stride, field
):
    with pytest.raises(MotionError, match="frames per second") as caught:
        animator.animate(person, replace(dance, **change), replace(quick, stride=stride))
    assert caught.value.field == field


def test_a_video_whose_frames_last_for_days_is_refused_before_the_work(animator, person, quick, clip_of):
    data = bytearray(clip_of(3))
    at = data.index(b"stts") + 8  # the table of the frames' lengths: how many entries, then (frames, ticks)
    data[at + 8 : at + 12] = struct.pack(">I", 2**31 - 1)
    with pytest.raises(MotionError, match="frames per second"):
        animator.animate(person, bytes(data), quick)


@pytest.mark.parametrize("pose", [3, "pose.npz", [], object()])
def test_things_that_are_no_reference_pose(refused, pose):
    assert refused(MotionError, reference_pose=pose).field == "reference_pose"


def test_a_reference_pose_of_two_frames(refused, dance):
    assert refused(MotionError, reference_pose=dance[:2]).field == "reference_pose"


def test_a_reference_pose_of_nobody(refused, person_pose):
    blank = PoseSequence.concat([replace(person_pose, body_score=np.zeros((1, 18)))])
    assert "visible" in refused(MotionError, reference_pose=blank).message


def test_an_unknown_estimator(refused):
    error = refused(InputError, reference_pose=None, estimator="crystal ball")
    assert "mediapipe" in error.remedy


# --- limits and settings ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strict(bundle: Path) -> Iterator[Animator]:
    """An animator that takes next to nothing."""
    limits = Limits(
        picture_bytes=50_000, picture_pixels=200_000, motion_bytes=4000, frame_pixels=100 * 100, frames=3,
        output_pixels=64 * 64,
    )  # fmt: skip
    with Animator.load(bundle, threads=1, limits=limits) as animator:
        yield animator


def test_within_the_limits(strict, quick, person_pose, dance):
    small = np.zeros((64, 64, 3), np.uint8)
    assert len(strict.animate(small, dance[:3], quick, reference_pose=person_pose).result()) == 3
    assert (
        len(strict.animate(small, dance, replace(quick, frames=3), reference_pose=person_pose).result()) == 3
    )


def test_a_picture_over_the_limits(refused, strict, person):
    assert refused(LimitError, image=person, using=strict).field == "image"
    assert refused(LimitError, image=np.zeros((500, 500, 3), np.uint8), using=strict).field == "image"


def test_motions_over_the_limits(refused, strict, dance, pose_pictures, clip_of, tmp_path):
    small = np.zeros((64, 64, 3), np.uint8)
    for index, picture in enumerate(pose_pictures(4)):
        write_picture(tmp_path / f"{index}.png", picture)
    for motion in (dance[:4], pose_pictures(4), tmp_path, clip_of(2)):
        error = refused(LimitError, image=small, motion=motion, using=strict)
        assert error.field == "motion"
        assert error.remedy


def test_a_video_over_the_limits(refused, strict, quick, dance):
    small = np.zeros((64, 64, 3), np.uint8)
    error = refused(LimitError, image=small, using=strict, settings=replace(quick, size=(128, 64)))
    assert error.field == "settings.size"


@pytest.mark.parametrize(
    "values", [{"frames": 0}, {"picture_bytes": -1}, {"motion_bytes": 1.5}, {"frames": True}]
)
def test_limits_are_positive_whole_numbers(values):
    with pytest.raises(LimitError, match=next(iter(values))):
        Limits(**values)


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True])
def test_threads(bundle, threads):
    with pytest.raises(SettingsError) as caught:
        Animator.load(bundle, threads=threads)
    assert caught.value.field == "threads"


def test_settings_of_another_kind(refused):
    assert refused(SettingsError, settings={"steps": 3}).field == "settings"


def test_a_clip_that_takes_more_memory_than_it_may_is_refused_before_the_work(bundle, person, dance):
    with Animator.load(bundle, threads=1, limits=Limits(memory_bytes=2**30)) as animator:
        with pytest.raises(LimitError, match=r"about [\d.]+ GB of memory, and 1\.1 GB are allowed") as caught:
            animator.animate(person, dance[:4], animator.settings(size=(2048, 1024)))
        assert caught.value.field == "settings.size"
        animator.animate(person, dance[:4], animator.settings(size=(64, 64)))


def test_a_kind_of_motion_that_is_none(refused):
    error = refused(MotionError, motion_kind="film")
    assert error.field == "motion_kind"
    assert "pose-video" in error.remedy
