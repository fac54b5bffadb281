"""Recordings made on the fly become shards: what is kept, what is left out and why, and what a kill leaves."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from mimicmotion_trt.errors import InputError, MotionError, SettingsError
from mimicmotion_trt.files import lock_folder
from mimicmotion_trt.media.picture import read_picture, write_picture
from mimicmotion_trt.media.writer import VideoWriter
from mimicmotion_trt.pose import PoseSequence
from mimicmotion_trt.training.data.shards import read_entries
from mimicmotion_trt.training.data.transforms import around_person, share_inside
from mimicmotion_trt.training.footage.cutting import NOBODY, SEVERAL, SHAKY, SHORT, Rules, cut, jitter
from mimicmotion_trt.training.footage.preparation import Options
from mimicmotion_trt.training.footage.survey import NOT_COUNTED, ChangeMeter, Survey
from mimicmotion_trt.training.footage.videos import find_videos, open_frames
from mimicmotion_trt.training.prepare import app
from mimicmotion_trt.training.synthetic import make_clip

ROOT = Path(__file__).parents[2]
HEIGHT, WIDTH, FPS = 192, 144, 15.0
FLAGS = ["--size", "96x128", "--min-frames", "5", "--frames-fps", "15", "--shard-clips", "1"]


def dancer(seed: int, frames: int) -> np.ndarray:
    return make_clip(seed, frames, HEIGHT, WIDTH, blur=0.0, occlusion=False, style="rich").frames


def portrait(frames: int) -> np.ndarray:
    """A real person, moved about."""
    picture = cv2.resize(read_picture(ROOT / "demo/person.jpg"), (192, 192), interpolation=cv2.INTER_AREA)
    steps = [np.array([[1, 0, 5 * np.sin(i / 6)], [0, 1, 0.0]]) for i in range(frames)]
    moved = [cv2.warpAffine(picture, s, (192, 192), borderMode=cv2.BORDER_REPLICATE) for s in steps]
    return np.stack(moved)


def film(path: Path, *parts: np.ndarray, fps: float = FPS) -> None:
    frames = np.concatenate(parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, fps=fps, size=(frames.shape[2], frames.shape[1])) as writer:
        for frame in frames:
            writer.write(frame)


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("footage")
    blank = np.full((3, HEIGHT, WIDTH, 3), 60, np.uint8)
    film(folder / "a/dance.mp4", dancer(1, 7), dancer(2, 5), blank, dancer(3, 4))
    data = (folder / "a/dance.mp4").read_bytes()
    (folder / "copy.mp4").write_bytes(data)
    (folder / "broken.mp4").write_bytes(data[: len(data) // 4])
    (folder / "text.mp4").write_text("no video")
    film(folder / "two.mp4", np.concatenate([dancer(8, 5), dancer(9, 5)], axis=2))
    rng = np.random.default_rng(0)
    shaken = [np.roll(frame, tuple(rng.integers(-20, 20, 2)), (0, 1)) for frame in dancer(6, 5)]
    film(folder / "shaken.mp4", np.stack(shaken))
    for index, frame in enumerate(portrait(5)):
        for kind in ("images", "masks"):
            (folder / "tiktok/00001" / kind).mkdir(parents=True, exist_ok=True)
            write_picture(folder / "tiktok/00001" / kind / f"{index + 1:04d}.png", frame)
    return folder


def run(folder: Path, output: Path, *flags: str) -> dict[str, Any]:
    arguments = [str(folder), "--output", str(output), "--json", *FLAGS, *flags]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    numbers: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return numbers


@pytest.fixture(scope="module")
def prepared(footage: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("prepared") / "shards"
    return output, run(footage, output)


def test_one_person_clips_are_kept_and_all_else_is_counted(prepared: tuple[Path, dict[str, Any]]) -> None:
    output, numbers = prepared
    assert numbers["clips"] == 3
    assert numbers["frames"] == 7 + 5 + 5
    assert numbers["videos"] == 7
    assert numbers["left_out"] == {
        "damaged": 2, "nobody": 1, "several people": 1, "the same as another": 1, "too shaky": 1, "too short": 1,
    }  # fmt: skip
    entries, skipped = read_entries(output)
    assert not skipped
    places = {(entry.meta["video"], entry.meta["start"], entry.meta["stop"]) for entry in entries}
    assert places == {("a/dance.mp4", 0, 7), ("a/dance.mp4", 7, 12), ("tiktok/00001/images", 0, 5)}
    report = json.loads((output / "report.json").read_text())
    assert len(report["verdicts"]) == 10
    for name in ("kept.jpg", "left-out.jpg"):
        assert read_picture(output / name).std() > 10


def test_keypoints_lie_on_the_person_in_the_crop(prepared: tuple[Path, dict[str, Any]]) -> None:
    entry = next(
        e for e in read_entries(prepared[0])[0] if e.meta["video"] == "a/dance.mp4" and not e.meta["start"]
    )
    clip = make_clip(1, 7, HEIGHT, WIDTH, blur=0.0, occlusion=False, style="rich")
    crop = around_person(clip.truth, 96 / 128)
    assert crop.height == HEIGHT  # the shapes are alike, so that nothing is cut off
    poses, truth = entry.poses(), clip.truth
    assert poses.size == (96, 128)
    shoulders = np.abs(poses.body[:, [2, 5]] - truth.body[:, [2, 5]])
    assert shoulders.mean() < 0.03
    picture = read_picture(entry.pictures([5])[0])
    expected = cv2.resize(clip.frames[5], (96, 128), interpolation=cv2.INTER_AREA)
    assert np.abs(picture.astype(int) - expected).mean() < 6


def test_the_shards_are_webdataset(prepared: tuple[Path, dict[str, Any]]) -> None:
    webdataset = pytest.importorskip("webdataset")
    output, numbers = prepared
    urls = [str(output / name) for name in numbers["shards"]]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert len(samples) == numbers["clips"]
    entry = next(e for e in read_entries(output)[0] if e.key == samples[0]["__key__"])
    assert samples[0]["json"] == dict(entry.meta)
    assert samples[0]["0000.jpg"].shape == (128, 96, 3)
    assert np.array_equal(samples[0]["npz"]["body"], entry.poses().body)


def test_a_second_run_adds_nothing_and_poses_nothing(
    footage: Path, prepared: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mimicmotion_trt.pose.mediapipe import MediapipeEstimator

    output, numbers = prepared
    before = {path: path.read_bytes() for path in output.glob("shard-*")}
    monkeypatch.delattr(MediapipeEstimator, "estimate")
    assert run(footage, output) == numbers
    assert {path: path.read_bytes() for path in output.glob("shard-*")} == before


def test_clips_that_would_be_enlarged_much_are_left_out(
    footage: Path, prepared: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    shutil.copytree(prepared[0] / "cache", tmp_path / "cache")
    numbers = run(footage, tmp_path, "--size", "384x512", "--max-enlarge", "2.5")  # of 144x192
    assert numbers["clips"] == 0
    assert numbers["left_out"]["too small"] == 3


def test_what_is_too_large_here_is_not_called_damaged(tmp_path: Path) -> None:
    folder = tmp_path / "videos" / "large"
    folder.mkdir(parents=True)
    Image.new("1", (16384, 8192)).save(folder / "1.png", compress_level=1)  # of one bit a pixel
    Image.new("1", (16, 16)).save(folder / "2.png")
    numbers = run(tmp_path / "videos", tmp_path / "shards")
    assert numbers["left_out"] == {"too large": 1}
    assert list((tmp_path / "shards" / "cache").iterdir()) == []  # another machine may have other limits


def test_a_single_video_may_be_given(footage: Path, tmp_path: Path) -> None:
    (video,) = find_videos(footage / "two.mp4", tmp_path)
    assert (video.path, video.name, video.is_folder) == (footage / "two.mp4", "two.mp4", False)


def test_a_cover_beside_numbered_frames_is_none_of_them(footage: Path, tmp_path: Path) -> None:
    frames = shutil.copytree(footage / "tiktok/00001/images", tmp_path / "one/frames")
    (before,) = find_videos(tmp_path / "one", tmp_path / "out")
    digest = before.digest()
    write_picture(frames / "cover.jpg", np.zeros((32, 32, 3), np.uint8))
    (video,) = find_videos(tmp_path / "one", tmp_path / "out")
    assert video.digest() == digest
    with open_frames(video, 30, 30) as (_, pictures):
        assert len(list(pictures)) == 5
    write_picture(frames / "0010.png", np.zeros((32, 32, 3), np.uint8))
    with (
        open_frames(video, 30, 30) as (_, pictures),
        pytest.raises(MotionError, match=r"0010\.png has another size"),
    ):
        list(pictures)


def test_a_folder_from_before_a_flag_was_known_is_continued(
    footage: Path, prepared: tuple[Path, dict[str, Any]]
) -> None:
    settings = prepared[0] / "settings.json"
    told = json.loads(settings.read_text())
    assert told.pop("max_enlarge") == 2.0
    settings.write_text(json.dumps(told))
    result = CliRunner().invoke(app, [str(footage), "--output", str(prepared[0]), *FLAGS])  # for a person
    assert result.exit_code == 0, result.output
    assert "3 clips, 17 frames" in result.stdout
    assert "1 too shaky" in result.stdout


KILLED = """
import os, signal, sys
from mimicmotion_trt.training.data.shards import ShardWriter
from mimicmotion_trt.training.prepare import app
add = ShardWriter.add
def dying(self, key, meta, poses, pictures):
    def stop():
        yield from pictures[:3]
        os.kill(os.getpid(), signal.SIGKILL)
    add(self, key, meta, poses, stop() if len(self.done) == 1 else pictures)
ShardWriter.add = dying
app(sys.argv[1:])
"""


def test_a_killed_run_goes_on_and_gives_the_same_shards(
    footage: Path, prepared: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for output in (whole, killed):
        shutil.copytree(prepared[0] / "cache", output / "cache")
    run(footage, whole)
    command = [sys.executable, "-c", KILLED, str(footage), "--output", str(killed), "--json", *FLAGS]
    died = subprocess.run(command, capture_output=True, timeout=120)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert (killed / ".shard-part.tar").exists()
    assert len(list(killed.glob("shard-*.tar"))) == 1
    numbers = run(footage, killed)
    assert numbers["unreadable"] == {}
    assert not list(killed.glob(".shard-*"))
    for path in whole.glob("shard-*"):
        assert (killed / path.name).read_bytes() == path.read_bytes()
    keys = Counter(entry.key for entry in read_entries(killed)[0])
    assert set(keys.values()) == {1}
    assert len(keys) == 3


def test_other_settings_for_the_same_shards_are_refused(
    footage: Path, prepared: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    for flags, said in ((["--fps", "10"], "other settings"), (["--size", "12"], "WIDTHxHEIGHT")):
        arguments = [str(footage), "--output", str(prepared[0]), *FLAGS, *flags]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 1
        assert said in result.stderr
    with lock_folder(prepared[0]):
        result = CliRunner().invoke(app, [str(footage), "--output", str(prepared[0]), *FLAGS])
        assert result.exit_code == 1
        assert "another run" in result.stderr
    result = CliRunner().invoke(app, [str(tmp_path), "--output", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "neither videos nor folders" in result.stderr


def test_layouts_are_found(tmp_path: Path) -> None:
    white = np.full((8, 8, 3), 255, np.uint8)
    for name in (
        "x/1.png",
        "x/2.png",
        "masks/1.png",
        "masks/2.png",
        "one/1.png",
        "words/a.png",
        "words/b.png",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_picture(tmp_path / name, white)
    for name in ("b.MP4", "x/a.webm", ".hidden.mp4", "out/c.mp4", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert [video.name for video in find_videos(tmp_path, tmp_path / "out")] == ["b.MP4", "x", "x/a.webm"]
    with pytest.raises(InputError):
        find_videos(tmp_path / "nowhere", tmp_path)


@pytest.mark.parametrize(
    ("rate", "wanted", "taken", "given"),
    [(30, 15, [0, 2, 4, 6, 8], 15), (25, 15, [0, 2, 3, 5, 7, 8], 15), (10, 15, list(range(10)), 10)],
)
def test_frames_are_thinned_out_evenly(
    tmp_path: Path, rate: float, wanted: float, taken: list[int], given: float
) -> None:
    for index in range(10):
        write_picture(tmp_path / f"{index}.png", np.full((8, 8, 3), 20 * index, np.uint8))
    (video,) = find_videos(tmp_path, tmp_path / "out")
    with open_frames(video, wanted, rate) as (fps, frames):
        assert [int(frame[0, 0, 0]) // 20 for frame in frames] == taken
    assert fps == pytest.approx(given)


def survey(poses: PoseSequence, **arrays: np.ndarray) -> Survey:
    defaults = {
        "change": np.zeros(len(poses), np.float32),
        "people": np.full(len(poses), NOT_COUNTED, np.uint8),
    }
    return Survey(poses, **(defaults | arrays))


def dance(frames: int, spoil: Callable[[dict[str, np.ndarray]], None] | None = None) -> PoseSequence:
    truth = make_clip(7, frames, 64, 64, blur=0.0, occlusion=False, style="rich").truth
    arrays = {
        name: getattr(truth, name).copy()
        for name in PoseSequence.__annotations__
        if name not in ("fps", "size")
    }
    if spoil is not None:
        spoil(arrays)
    return PoseSequence(**arrays, fps=truth.fps, size=truth.size)  # type: ignore[arg-type]


def test_shots_are_cut_at_changes_and_where_the_person_goes() -> None:
    def leave(arrays: dict[str, np.ndarray]) -> None:
        arrays["body_score"][[5, 6]] = 0  # a short gap is let pass
        arrays["body_score"][40:50] = 0

    change = np.zeros(90, np.float32)
    change[[20, 60]] = 1.5
    spans = cut(survey(dance(90, leave), change=change), Rules(min_frames=16, max_frames=32))
    assert [(span.start, span.stop, span.reason) for span in spans] == [
        (0, 20, ""), (20, 40, ""), (40, 50, NOBODY), (50, 60, SHORT), (60, 90, ""),
    ]  # fmt: skip
    pieces = cut(survey(dance(90)), Rules(min_frames=16, max_frames=32))
    assert [len(span) for span in pieces] == [30, 30, 30]


def test_several_people_and_trembling_are_seen() -> None:
    people = np.full(40, NOT_COUNTED, np.uint8)
    people[::8] = [1, 2, 2, 1, 1]
    assert [span.reason for span in cut(survey(dance(40), people=people), Rules())] == [SEVERAL]
    people[::8] = [1, 2, 1, 1, 1]  # once may be a mistake
    assert [span.reason for span in cut(survey(dance(40), people=people), Rules())] == [""]

    def tremble(arrays: dict[str, np.ndarray]) -> None:
        arrays["body"] += np.random.default_rng(0).normal(0, 0.05, arrays["body"].shape)

    calm, shaken = dance(40), dance(40, tremble)
    assert jitter(calm) < 0.01
    tall = float(np.median(np.ptp(calm.body[..., 1], axis=1)))
    assert jitter(shaken) == pytest.approx(0.05 / tall, rel=0.15)  # the size of the noise
    assert [span.reason for span in cut(survey(shaken), Rules())] == [SHAKY]


def test_cuts_differ_from_motion() -> None:
    for seed in range(3):
        meter = ChangeMeter()
        first, second = (dancer(seed + 20 * k, 6) for k in range(2))
        changes = [meter(frame) for frame in [*first, *second]]
        assert changes[0] == 0
        assert changes[6] >= 1
        assert max(changes[1:6] + changes[7:]) < 1


def test_a_crop_follows_the_person_and_stays_inside() -> None:
    def move(arrays: dict[str, np.ndarray]) -> None:
        arrays["body"][..., 0] = arrays["body"][..., 0] * 0.2 + 0.8

    poses = dance(20, move)
    crop = around_person(poses, 0.5)
    assert (crop.width, crop.height, crop.left) == (32, 64, 32)
    assert crop.move(poses, (100, 200)).size == (100, 200)
    assert share_inside(crop.move(poses, (100, 200))) == pytest.approx(share_inside(poses))


def test_options_are_checked() -> None:
    for bad in ({"fps": 0.0}, {"size": (8, 8)}, {"rules": Rules(min_frames=20, max_frames=30)}):
        with pytest.raises(SettingsError):
            Options(**bad)  # type: ignore[arg-type]
