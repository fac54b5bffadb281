"""Where inputs come from and results go: pipes, links, folders, odd names, signals, proxies."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import mimicmotion_trt as mm
from mimicmotion_trt.media.animated import open_video
from mimicmotion_trt.media.picture import read_picture
from mimicmotion_trt.media.reader import VideoReader
from mimicmotion_trt.pose import draw_poses
from mimicmotion_trt.pose.motion import open_motion
from mimicmotion_trt.service import Client, local_server

from .conftest import Command

ROOT = Path(__file__).parents[2]
PERSON, MOTION = ROOT / "demo" / "person.jpg", ROOT / "demo" / "balance.npz"
QUICK = ("--steps", 1, "--frames", 2, "--size", "64x64")


@pytest.fixture
def words(bundle: Path) -> tuple[object, ...]:
    return ("animate", "--image", PERSON, "--bundle", bundle, *QUICK)


def test_a_new_folder_takes_pictures(command: Command, words: tuple[object, ...], tmp_path: Path) -> None:
    command(*words, "--motion", MOTION, "--output", f"{tmp_path}/frames/")
    assert sorted(path.name for path in (tmp_path / "frames").iterdir()) == ["00001.png", "00002.png"]


def test_an_output_that_is_an_input_is_refused(
    command: Command, words: tuple[object, ...], tmp_path: Path
) -> None:
    motion = shutil.copy(MOTION, tmp_path / "motion.mp4")
    (tmp_path / "link.mp4").symlink_to(motion)
    for output in (motion, tmp_path / "link.mp4", tmp_path / "." / "motion.mp4"):
        assert "is an input" in command(*words, "--motion", motion, "--output", output, code=1).stderr
    assert Path(motion).read_bytes() == MOTION.read_bytes()


def test_nothing_that_is_written_may_be_an_input(
    command: Command, words: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures by their numbers, previews, sheets, and names with a percent sign."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f").mkdir()
    for name in ("f/00002.png", "out.preview.jpg", "person.jpg"):
        shutil.copy(PERSON, name)
    shutil.copy(MOTION, "100%.mp4")
    rest = words[3:]  # without the picture
    cases = (
        ("animate", "f/00002.png", MOTION, *rest, "-o", "f/"),
        ("animate", "f/00002.png", MOTION, *rest, "-o", "f/%05d.png"),
        ("animate", "out.preview.jpg", MOTION, *rest, "-o", "out.mp4", "--preview", 1),
        ("animate", PERSON, "100%.mp4", *rest, "-o", "100%.mp4"),
        ("pose", MOTION, "--image", "person.jpg", "--sheet", "person.jpg"),
        ("pose", "person.jpg", "--picture", "./person.jpg"),
        ("pose", "f/00002.png", "-o", "f/"),
    )
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    for case in cases:
        assert "is an input too" in command(*case, code=1).stderr, case
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


def test_a_link_is_followed_and_a_long_name_is_a_name(
    command: Command, words: tuple[object, ...], tmp_path: Path
) -> None:
    place = tmp_path / "elsewhere"
    place.mkdir()
    (tmp_path / "link.mp4").symlink_to(place / "real.mp4")
    command(*words, "--motion", MOTION, "--output", tmp_path / "link.mp4")
    assert (tmp_path / "link.mp4").is_symlink()
    assert len(list(VideoReader(place / "real.mp4").frames())) == 2
    longest = "ü" * 125 + "x.mp4"
    assert len(longest.encode()) == 255
    command(*words, "--motion", MOTION, "--output", place / longest)
    assert sorted(path.name for path in place.iterdir()) == sorted(["real.mp4", longest])


def test_a_name_that_no_file_can_have_is_refused_before_the_work(command: Command, tmp_path: Path) -> None:
    long, plain = "n" * 252 + ".mp4", tmp_path / "plain"
    plain.touch()
    animate = ("animate", PERSON, MOTION, "--bundle", "none-there")
    for output in (long, f"{long}/", f"{long}/x.mp4", "n" * 249 + "%04d.png", plain / "x.mp4", f"{plain}/"):
        told = command(*animate, "-o", output, code=1).stderr
        assert "cannot be written" in told
        assert "Traceback" not in told
    assert "File name too long" in command(*animate, "-o", long[1:], "--count", 2, code=1).stderr
    for words in ((long, MOTION), (PERSON, long), (PERSON, MOTION, "--like", long)):
        told = command("animate", *words, "-o", tmp_path / "x.mp4", code=1).stderr
        assert "cannot be read: File name too long" in told
    assert "cannot be read" in command("pose", long, "-o", tmp_path / "x.npz", code=1).stderr
    assert os.listdir(tmp_path) == ["plain"]


def test_a_preview_of_a_long_name_has_a_shorter_one(
    command: Command, words: tuple[object, ...], tmp_path: Path
) -> None:
    command(*words, "--motion", MOTION, "-o", tmp_path / ("ü" * 125 + "x.mp4"), "--preview", 1)
    assert sorted(len(os.fsencode(name)) for name in os.listdir(tmp_path)) == [254, 255]


def test_pipes_in_and_out(command: Command, words: tuple[object, ...], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "in")
    os.mkfifo(tmp_path / "out.mp4")
    got: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: (tmp_path / "in").write_bytes(MOTION.read_bytes())),
        threading.Thread(target=lambda: got.append((tmp_path / "out.mp4").read_bytes())),
    ]
    for thread in threads:
        thread.start()
    command(*words, "--motion", tmp_path / "in", "--output", tmp_path / "out.mp4")
    for thread in threads:
        thread.join()
    assert len(list(VideoReader(got[0]).frames())) == 2


def run(*command: object, **options: object) -> subprocess.Popen[bytes]:
    line = [sys.executable, "-m", "mimicmotion_trt", *map(str, command)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(line, **{**pipes, **options})  # type: ignore[call-overload, no-any-return]


def test_the_standard_streams_and_a_terminal_that_shows_ascii_only(
    words: tuple[object, ...], tmp_path: Path
) -> None:
    plain = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    process = run(*words, "--motion", "-", "--output", "-", env=plain)
    video, said = process.communicate(MOTION.read_bytes())
    assert process.returncode == 0, said
    assert len(list(VideoReader(video).frames())) == 2
    assert b"-: 2 frames" in said
    process = run(*words, "--motion", MOTION, "--output", tmp_path / "tänzer.mp4", env=plain)
    said, _ = process.communicate()
    assert process.returncode == 0
    assert b"nzer.mp4: 2 frames" in said


def test_poses_of_the_standard_input_and_to_the_standard_output() -> None:
    """What is said goes to the standard error then, also for a name that leads to the standard output."""
    recording = (ROOT / "tests" / "data" / "inputs" / "zero_size.mp4").read_bytes()
    for output in ("-", "/dev/stdout"):
        video, said = run("pose", "-", "--stride", 16, "-o", output).communicate(recording)
        assert len(list(VideoReader(video).frames())) == 3
        assert b"mfro" in video[-16:]  # the end of an MP4
        assert b"3 frames" in said


def test_the_standard_input_is_read_once(command: Command, tmp_path: Path) -> None:
    for words in (
        ("animate", "-", "-", "-o", tmp_path / "x.mp4"),
        ("pose", "-", "-i", "-", "--sheet", tmp_path / "x.png"),
    ):
        assert "the standard input is named twice" in command(*words, code=1).stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_ended_leaves_nothing(bundle: Path, tmp_path: Path, number: signal.Signals) -> None:
    output, scratch = tmp_path / "output", tmp_path / "scratch"
    output.mkdir()
    scratch.mkdir()
    long = ("--steps", 200, "--frames", 60, "--size", "64x128", "--json")
    process = run(
        "animate", "--image", PERSON, "--motion", "-", "--output", output / "out.mp4", "--bundle", bundle, *long,
        env={**os.environ, "TMPDIR": str(scratch)},
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(MOTION.read_bytes())
    process.stdin.close()
    process.stdout.readline()
    time.sleep(0.2)
    process.send_signal(number)
    process.stdout.read()
    assert process.wait(30) == 128 + number
    assert list(output.iterdir()) == []
    assert [path for path in scratch.iterdir() if path.name.startswith(("mimicmotion", "tmp"))] == []


def test_a_proxy_is_not_asked_for_this_machine(
    bundle: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    with local_server(bundle, threads=1) as client:
        done = client.animate(PERSON, MOTION, {"steps": 1, "frames": 2, "size": (64, 64)}).result()
    assert done.done.frames == 2


def test_a_proxy_is_named_where_a_connection_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with Client("server.invalid:50051") as client, pytest.raises(mm.ServiceError) as caught:
        client.list()
    assert "http_proxy" in caught.value.remedy


def test_poses_are_written_in_every_form(command: Command, tmp_path: Path) -> None:
    command("pose", MOTION, "--output", tmp_path / "p.json", "--format", "openpose", "--stride", 30)
    command("pose", tmp_path / "p.json", "--output", tmp_path / "w.json", "--format", "coco-wholebody")
    command("pose", tmp_path / "w.json", "--output", f"{tmp_path}/drawn/")
    command("pose", tmp_path / "p.json", "--output", tmp_path / "drawn.mp4")
    count = len(mm.PoseSequence.load(tmp_path / "p.json"))
    assert len(mm.PoseSequence.load(tmp_path / "w.json")) == count
    pictures = sorted((tmp_path / "drawn").iterdir())
    assert len(pictures) == count == len(list(VideoReader(tmp_path / "drawn.mp4").frames()))
    assert np.median(read_picture(pictures[0])) == 0
    for name, level in (("drawn.webp", 0), ("drawn.apng", 0), ("drawn.avi", 8)):
        command("pose", MOTION, "--output", tmp_path / name, "--stride", 5)
        video = open_video(tmp_path / name)
        assert (video.fps, video.frame_count) == (pytest.approx(6, abs=0.02), 10)
        again = [frame for _, frame in open_video(tmp_path / name).frames()]
        exact = draw_poses(mm.PoseSequence.load(MOTION)[::5], 854, 480, 480)
        assert np.abs(np.stack(again).astype(int) - exact).mean() <= level / 8
        assert open_motion(tmp_path / name, mm.Settings(), mm.Limits()).pictures is not None


def test_missing_inputs_and_outputs_that_cannot_be_written_are_refused_before_a_bundle_is_loaded(
    command: Command, tmp_path: Path
) -> None:
    cases = (
        (tmp_path / "no.png", MOTION, tmp_path / "out.mp4", "no.png does not exist"),
        (PERSON, tmp_path / "no.mp4", tmp_path / "out.mp4", "no.mp4 does not exist"),
        (PERSON, MOTION, tmp_path / "out.avi", "out.avi cannot be written"),
        (PERSON, MOTION, tmp_path / "nowhere" / "out.mp4", "out.mp4 cannot be written"),
    )
    for image, motion, output, message in cases:
        done = command("animate", image, motion, "-o", output, "--bundle", tmp_path / "no-bundle", code=1)
        assert message in done.stderr
    done = command("animate", PERSON, MOTION, "-o", tmp_path / "out.mp4", "--bundle", "no-bundle", code=1)
    assert "no-bundle" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_server_without_a_port_is_refused(command: Command) -> None:
    """gRPC would ask port 443, and say that nobody listens there."""
    assert "localhost:50051" in command("jobs", "list", "--server", "localhost", code=1).stderr
