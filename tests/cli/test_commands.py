"""The commands as a user types them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

import mimicmotion_trt as mm
from mimicmotion_trt import console
from mimicmotion_trt.media.picture import fit_picture, read_picture
from mimicmotion_trt.media.reader import VideoReader
from mimicmotion_trt.media.writer import VideoWriter
from mimicmotion_trt.pose import draw_poses
from mimicmotion_trt.pose.sequence import SHAPES
from mimicmotion_trt.pose.smooth import smooth_poses
from mimicmotion_trt.validation import field_docs

from .conftest import Command

DEMO = Path(__file__).parents[2] / "demo"
PERSON, MOTION = DEMO / "person.jpg", DEMO / "balance.npz"


def test_every_field_of_settings_is_a_flag_with_its_own_words(command: Command) -> None:
    text = " ".join(command("animate", "--help").stdout.split())
    docs = field_docs(mm.Settings)
    for field in fields(mm.Settings):
        flag = field.name.replace("_", "-")
        assert f"--{flag} " in text or f"--[no-]{flag} " in text
        assert docs[field.name].split()[0] in text


def test_animate_writes_the_video_that_was_asked_for(command: Command, bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    done = command(
        "animate", "--image", PERSON, "--motion", MOTION, "--output", output, "--bundle", bundle, "--json",
        "--steps", 2, "--guidance", 1, 1.5, "--size", "128x64", "--frames", 5, "--stride", 2,
    )  # fmt: skip
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert next(e["stage"] for e in events if e["event"] == "progress") == "pose"
    last = events[-1]
    assert (last["event"], last["frames"], last["fps"], last["size"]) == ("done", 5, 15.0, [128, 64])
    assert last["settings"]["guidance"] == [1.0, 1.5]
    video = VideoReader(output)
    assert len(list(video.frames())) == 5
    assert (video.size, video.fps) == ((128, 64), 15.0)


def test_the_picture_and_the_motion_are_named_by_their_places_or_by_flags(
    command: Command, bundle: Path, tmp_path: Path
) -> None:
    """A preview is written after each step, and a line of JSON says where."""
    words = ("--bundle", bundle, "--steps", 2, "--frames", 2, "--size", "64x64", "--preview", 1, "--json")
    made = []
    for number, files in enumerate(((PERSON, MOTION), ("-i", PERSON, MOTION), (PERSON, "-m", MOTION))):
        output = tmp_path / f"{number}.mp4"
        events = [
            json.loads(line) for line in command("animate", *files, "-o", output, *words).stdout.splitlines()
        ]
        previews = [event for event in events if event["event"] == "preview"]
        assert [event["step"] for event in previews] == [1, 2]
        assert {event["path"] for event in previews} == {str(tmp_path / f"{number}.preview.jpg")}
        assert read_picture(previews[0]["path"]).shape == (64, 64, 3)
        made.append(output.read_bytes())
    assert made[0] == made[1] == made[2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "there is no picture"),
        ((PERSON,), "there is no motion"),
        ((PERSON, "-i", PERSON, "-m", MOTION), "named already"),
        (
            (PERSON, MOTION, "--server", "localhost:1", "--bundle", "tiny"),
            "--bundle means nothing with --server",
        ),
        (
            (PERSON, MOTION, "--server", "localhost:1", "--graphs", "off"),
            "--graphs means nothing with --server",
        ),
        ((PERSON, MOTION, "--deadline", 3), "--deadline means nothing without --server"),
        ((PERSON, MOTION, "--preview", 1, "-o", "-"), "the output is a stream"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    command: Command, tmp_path: Path, words: tuple[object, ...], said: str
) -> None:
    assert said in command("animate", "-o", tmp_path / "out.mp4", *words, code=1).stderr
    assert list(tmp_path.iterdir()) == []


def test_the_same_seed_gives_the_same_file(command: Command, bundle: Path, tmp_path: Path) -> None:
    made = []
    for seed, name in ((3, "a.mp4"), (3, "b.mp4"), (4, "c.mp4")):
        words = ("--bundle", bundle, "--steps", 1, "--frames", 2, "--size", "64x64", "--seed", seed)
        command("animate", "--image", PERSON, "--motion", MOTION, "--output", tmp_path / name, *words)
        made.append((tmp_path / name).read_bytes())
    assert made[0] == made[1] != made[2]


def test_strengths_are_flags(command: Command, bundle: Path, tmp_path: Path) -> None:
    weak = tmp_path / "weak.mp4"
    words = ("--bundle", bundle, "--steps", 2, "--frames", 2, "--size", "64x64", "--json")
    files = ("animate", "--image", PERSON, "--motion", MOTION, *words)
    chosen = ("--pose-strength", 0.5, "--pose-start", 0, "--pose-end", 0.5, "--image-strength", 2)
    done = command(*files, *chosen, "--output", weak).stdout.splitlines()[-1]
    settings = json.loads(done)["settings"]
    names = ("pose_strength", "pose_start", "pose_end", "image_strength")
    assert [settings[name] for name in names] == [0.5, 0, 0.5, 2]
    error = command(*files, "--pose-start", 0.5, "--pose-end", 0.5, "--output", weak, code=1).stderr
    assert "pose_start 0.5 is not smaller than pose_end 0.5" in error


def test_what_would_be_animated_is_shown_without_running(
    command: Command, bundle: Path, tmp_path: Path
) -> None:
    """A person at the left of a wide picture."""
    left = Path(__file__).parents[1] / "data" / "framing" / "person_left.jpg"
    sheet = tmp_path / "sheet.png"
    words = ("pose", "--image", left, "--sheet", sheet, "--size", "64x128", "--json", "--bundle", bundle)
    alone = json.loads(command(*words).stdout)
    assert alone["crop"][0] < 40 < 190 < alone["crop"][2] <= 230
    small = read_picture(sheet).size
    with_motion = json.loads(command(*words, MOTION).stdout)
    assert with_motion["frames"] == 50
    assert read_picture(sheet).size > 1.5 * small
    centred = json.loads(command(*words, "--framing", "centre").stdout)
    assert centred["crop"] == [288, 0, 480, 384]
    for wrong in (
        ("pose",),
        ("pose", "--image", left),
        ("pose", "--sheet", sheet),
        ("pose", "--output", sheet),
    ):
        assert "nothing to do" in command(*wrong, code=1).output


def test_a_part_of_the_poses_is_written_smooth_and_drawn_in_parts(command: Command, tmp_path: Path) -> None:
    whole, part, drawn = mm.PoseSequence.load(MOTION), tmp_path / "part.npz", tmp_path / "drawn"
    said = command(
        "pose", MOTION, "-o", part, "--start", 0.5, "--end", 1, "--stride", 3, "--smooth", 0.5, "--json"
    )
    assert json.loads(said.stdout)["frames"] == 5
    assert mm.PoseSequence.load(part) == smooth_poses(replace(whole[15:30:3], fps=10.0), 0.5)
    drawn.mkdir()
    command("pose", MOTION, "-o", f"{drawn}/", "--end", 0.1, "--draw", "hands")
    shown = [read_picture(path) for path in sorted(drawn.iterdir())]
    assert len(shown) == 3
    assert max(picture.mean() for picture in shown) < draw_poses(whole[:3], 854, 480, 480).mean() / 2
    assert "1.67 s long" in command("pose", MOTION, "-o", part, "--start", 2, code=1).stderr


def test_where_nobody_is_seen_a_sentence_stands_for_the_picture(command: Command, tmp_path: Path) -> None:
    nobody = mm.PoseSequence.load(MOTION)[:3]
    nobody = replace(nobody, **{name: getattr(nobody, name) * 0 for name in SHAPES if name.endswith("score")})
    nobody.save(tmp_path / "nobody.npz")
    said = command("pose", tmp_path / "nobody.npz", "--picture", tmp_path / "sheet.png").stdout
    assert "not written, for nobody is seen" in said
    assert not (tmp_path / "sheet.png").exists()


def test_pose_tells_how_many_frames_of_a_video_are_done(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "LINE_SECONDS", 0.01)
    person, video = fit_picture(read_picture(PERSON), 256, 256), tmp_path / "video.mp4"
    with VideoWriter(video, fps=15, size=(256, 256)) as writer:
        for _ in range(6):
            writer.write(person)
    said = command("pose", video, "-o", tmp_path / "poses.npz", "--stride", 1).stderr
    assert re.search(r"finding poses [0-6]/6", said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((PERSON, "-o", "p.npz", "--format", "openpose"), "--format means nothing"),
        ((PERSON, "-o", "p.npz", "--framing", "pad"), "--framing means nothing without --image"),
        (("-i", PERSON, "--sheet", "s.png", "--stride", 2), "--stride means nothing without a video"),
    ],
)
def test_flags_of_pose_that_would_do_nothing_are_refused(
    command: Command, words: tuple[object, ...], said: str
) -> None:
    assert said in command("pose", *words, code=1).stderr


def test_pose_finds_the_person_and_animate_takes_what_it_wrote(
    command: Command, bundle: Path, tmp_path: Path
) -> None:
    keypoints, sheet, frames = tmp_path / "person.json", tmp_path / "sheet.png", tmp_path / "frames"
    said = command("pose", PERSON, "--output", keypoints, "--picture", sheet).stdout
    assert "a person in 1" in said
    assert read_picture(sheet)[100:400].std() > 40  # the skeleton lies over the picture
    assert mm.PoseSequence.load(keypoints).body_score[0, 0] > 0.5
    words = (
        "--reference-pose",
        keypoints,
        "--bundle",
        bundle,
        "--steps",
        1,
        "--frames",
        3,
        "--size",
        "64x64",
    )
    command(
        "animate", "--image", PERSON, "--motion", MOTION, "--output", f"{frames}/%03d.png", *words, code=1
    )
    frames.mkdir()
    command("animate", "--image", PERSON, "--motion", MOTION, "--output", f"{frames}/%03d.png", *words)
    assert sorted(path.name for path in frames.iterdir()) == ["001.png", "002.png", "003.png"]


def test_inspect_checks_a_bundle(command: Command, bundle: Path, tmp_path: Path) -> None:
    said = command("inspect", bundle).stdout
    assert "vae_decoder" in said
    assert not any(sign in said for sign in ("[(", "{'", "casts"))
    assert all(
        word in command("inspect", bundle, "--details").stdout
        for word in ("attention", "transposes", "casts")
    )
    assert json.loads(command("inspect", bundle, "--json").stdout)["backend"] == "onnxruntime"
    assert "mimicmotion-trt build" in command("inspect", tmp_path, code=1).stderr


def test_the_doctor_knows_this_machine(command: Command, bundle: Path) -> None:
    said = command("doctor", "--bundle", bundle, "--size", "64x64", "--frames", 3)
    assert "CPU" in said.stdout
    report = json.loads(command("doctor", "--bundle", bundle, "--seconds", 1, "--json").stdout)
    cpu = next(outlook for outlook in report["outlooks"] if outlook["device"] == "CPU")
    assert cpu["frames"] == 15
    assert cpu["runs"]
    assert cpu["seconds"] > 0
    assert "no bundle" in command("doctor", "--bundle", "no-such-bundle", code=1).stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--size", "64"), "WIDTHxHEIGHT"),
        (("--limit", "frames=few"), "picture_bytes"),
        (("--bundle", "no-such-bundle"), "no-such-bundle"),
        (("--device", "cuda"), "CPU"),
        (("--server", "127.0.0.1:1"), "127.0.0.1:1"),
        (("--limit", "frames=3"), "frames of the motion"),
    ],
)
def test_mistakes_are_explained(
    command: Command, bundle: Path, tmp_path: Path, words: tuple[str, str], said: str
) -> None:
    chosen = {} if words[0] == "--server" else {"--bundle": str(bundle)}
    chosen |= {"--image": str(PERSON), "--motion": str(MOTION)}
    chosen |= {"--output": str(tmp_path / "out.mp4"), words[0]: words[1]}
    error = command("animate", *(word for pair in chosen.items() for word in pair), code=1).stderr
    assert said in error
    assert list(tmp_path.iterdir()) == []


def test_choices_of_settings_are_the_flags_choices(command: Command, tmp_path: Path) -> None:
    files = ("--image", PERSON, "--motion", MOTION, "--output", tmp_path / "out.mp4")
    error = command("animate", *files, "--layout", "sideways", code=2).stderr
    assert all(word in error for word in ("--layout", "reference", "compact", "shifted"))


@pytest.mark.parametrize("line", [["mimicmotion-trt"], ["python", "-m", "mimicmotion_trt"]])
def test_the_version_is_the_packages(line: list[str]) -> None:
    """As a process of its own, by either name."""
    first = str(Path(sys.executable).with_name(line[0]))
    done = subprocess.run([first, *line[1:], "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == mm.__version__
