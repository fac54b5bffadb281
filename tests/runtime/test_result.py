"""Saving a result: whole or not at all."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from mimicmotion_trt import Cancelled, OutputError, Result
from mimicmotion_trt.media.picture import read_picture


@pytest.fixture(scope="module")
def result(animator, person, person_pose, dance) -> Result:
    settings = animator.settings(steps=1, guidance=1, size=(64, 128), stride=2)
    return animator.animate(person, dance[:9], settings, reference_pose=person_pose).result()


def decoded(path: Path) -> tuple[np.ndarray, float]:
    """Frames of a video file and its frame rate."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        rate = float(stream.average_rate)
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]), rate


def test_frames_can_be_read_again_and_again(result):
    frames = result.frames()
    assert frames.shape == (5, 128, 64, 3)
    assert len(result) == 5
    for _ in range(2):
        np.testing.assert_array_equal(np.stack(list(result)), frames)


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "webm"])
def test_a_video_holds_the_frames_at_the_motions_speed(result, tmp_path, suffix):
    path = result.save(tmp_path / f"out.{suffix}")
    assert path == tmp_path / f"out.{suffix}"
    frames, rate = decoded(path)
    assert rate == pytest.approx(15, rel=0.01)
    assert frames.shape == (5, 128, 64, 3)
    grey = frames.mean(axis=(1, 2, 3)) - result.frames().mean(axis=(1, 2, 3))
    assert np.abs(grey).max() < 5  # colours survive the codec


def test_a_gif(result, tmp_path):
    frames, _ = decoded(result.save(str(tmp_path / "out.gif")))
    assert frames.shape == (5, 128, 64, 3)


@pytest.mark.parametrize(("name", "first"), [("frames/", "frames/00001.png"), ("f_%04d.png", "f_0001.png")])
def test_pictures_are_the_frames_to_the_pixel(result, tmp_path, name, first):
    result.save(f"{tmp_path}/{name}")
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert files[0] == tmp_path / first
    np.testing.assert_array_equal(np.stack([read_picture(file) for file in files]), result.frames())


def test_saving_twice_gives_the_same_bytes(result, tmp_path):
    first, second = (result.save(tmp_path / name).read_bytes() for name in ("a.mp4", "b.mp4"))
    assert first == second


def test_the_motions_sound_comes_along(animator, person, person_pose, clip_of, tmp_path):
    settings = animator.settings(steps=1, guidance=1, size=(64, 64))
    job = animator.animate(person, clip_of(30, sound=True), settings, reference_pose=person_pose)
    path = job.result().save(tmp_path / "out.mp4")
    with av.open(str(path)) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]
        video, audio = (float(stream.duration * stream.time_base) for stream in container.streams)
        assert audio == pytest.approx(video, abs=0.1)


@pytest.mark.parametrize("name", ["out.xyz", "out", "nowhere/out.mp4", "nowhere/%04d.png", "folder.mp4"])
def test_what_cannot_be_written_leaves_nothing(result, tmp_path, name):
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(OutputError) as caught:
        result.save(tmp_path / name)
    assert caught.value.field == "output"
    assert caught.value.remedy
    assert [path.name for path in tmp_path.rglob("*")] == ["folder.mp4"]


def test_a_failure_on_the_way_keeps_the_file_of_before(result, tmp_path, monkeypatch):
    (tmp_path / "out.mp4").write_bytes(b"before")
    frames = result.frames()

    def breaks_off(self):
        yield frames[0]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Result, "__iter__", breaks_off)
    for name in ("out.mp4", "out.gif", "frames/"):
        with pytest.raises(OSError, match="No space"):
            result.save(f"{tmp_path}/{name}")
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    assert (tmp_path / "out.mp4").read_bytes() == b"before"


def test_a_result_without_frames_is_not_saved(animator, person, person_pose, dance, tmp_path):
    job = animator.animate(person, dance[:1], reference_pose=person_pose)
    empty = Result(job.animation)
    assert empty.frames().shape == (0, 64, 128, 3)
    with pytest.raises(OutputError, match="no frame"):
        empty.save(tmp_path / "out.mp4")
    assert not list(tmp_path.iterdir())


def test_a_result_says_what_it_is_in_a_line(animator, result, person, person_pose, dance):
    assert repr(result) == "<Result: 5 frames of 64x128, 15 fps, 0.3 s>"
    assert repr(dance) == "<PoseSequence: 50 frames of 480x854, 30 fps, 1.7 s>"
    job = animator.animate(person, dance[:3], reference_pose=person_pose)
    assert repr(job) == "<Job: 3 frames of 128x64, 30 fps, 0.1 s>"
    assert "cpu: 64x128, 128x64, 16 frames" in repr(animator)
    assert all(len(repr(event)) < 300 for event in job)


def test_a_notebook_shows_a_player_and_a_sheet(animator, result, person, person_pose, dance):
    html = result._repr_html_()
    assert 'src="data:video/mp4;base64,' in html
    assert 'src="data:image/jpeg;base64,' in html
    assert "data:image/jpeg" in dance._repr_html_()
    empty = Result(animator.animate(person, dance[:1], reference_pose=person_pose).animation)
    assert empty._repr_html_() == "<p>No frames yet of 128x64.</p>"


def test_a_closed_result_says_so(animator, person, person_pose, dance, tmp_path):
    settings = animator.settings(steps=1, guidance=1, size=(64, 64))
    closed = animator.animate(person, dance[:1], settings, reference_pose=person_pose).result()
    closed.close()
    closed.close()
    for use in (closed.frames, lambda: next(iter(closed)), lambda: closed.save(tmp_path / "out.mp4")):
        with pytest.raises(OutputError, match="closed"):
            use()
    assert not list(tmp_path.iterdir())
    assert repr(closed) == "<Result: 1 frame of 64x64, 30 fps, 0.0 s, closed>"
    assert "closed" in closed._repr_html_()  # a notebook shows it without a traceback


def test_there_is_no_result_after_ctrl_c(animator, person, person_pose, dance):
    def press(event):
        raise KeyboardInterrupt

    settings = animator.settings(steps=1, guidance=1, size=(64, 64))
    job = animator.animate(person, dance[:2], settings, reference_pose=person_pose)
    with pytest.raises(KeyboardInterrupt):
        job.result(progress=press)
    with pytest.raises(Cancelled, match="interrupted"):
        job.result()
