"""The commands in an environment that has the wheel and none of the repository's files."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from mimicmotion_trt.cli import ROOMS

ROOT = Path(__file__).parents[2]
PERSON, MOTION = ROOT / "demo" / "person.jpg", ROOT / "demo" / "balance.npz"
GOLDEN = ROOT / "tests" / "data" / "golden" / "tiny"
CHECKPOINT = ("--base", GOLDEN / "svd", "--checkpoint", GOLDEN / "mimicmotion.pth")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(python: Path, folder: Path, *words: object, code: int = 0) -> str:
    """What a command prints, run in a folder of its own."""
    line = [python.with_name("mimicmotion-trt"), *map(str, words)]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def test_a_clip_is_made_from_a_checkpoint_with_the_wheel_alone(wheel_python: Path, tmp_path: Path) -> None:
    shape = ("--size", "64x128", "--segment", 8, "--batch", 1)
    run(wheel_python, tmp_path, "build", *CHECKPOINT, "-o", "mine", *shape)
    assert "agrees with PyTorch" in run(wheel_python, tmp_path, "inspect", "mine")
    report = json.loads(run(wheel_python, tmp_path, "doctor", "--bundle", "mine", "--json"))
    assert any(outlook["runs"] for outlook in report["outlooks"])
    run(wheel_python, tmp_path, "pose", PERSON, "-o", "pose.json")
    made = ("--bundle", "mine", "--steps", 1, "--frames", 2, "--reference-pose", "pose.json")
    assert "2 frames" in run(wheel_python, tmp_path, "animate", PERSON, MOTION, "-o", "out.mp4", *made)
    measured = run(wheel_python, tmp_path, "evaluate", "--synthetic", 1, "--frames", 2, "--json")
    assert json.loads(measured.splitlines()[-1])["clips"] == 1


def test_training_begins_with_the_wheel_alone(wheel_python: Path, tmp_path: Path) -> None:
    (tmp_path / "lora.yaml").write_text(run(wheel_python, tmp_path, "train", "--example", "lora"))
    assert "error: " in run(wheel_python, tmp_path, "train", "--config", "lora.yaml", code=1)
    assert "neither a folder nor a video" in run(
        wheel_python, tmp_path, "prepare", "v", "--output", "s", code=1
    )


def test_no_help_names_a_file_that_a_wheel_lacks(wheel_python: Path, tmp_path: Path) -> None:
    for name in ("animate", "pose", "serve", "jobs", "new-token", "inspect", "doctor", *ROOMS):
        told = run(wheel_python, tmp_path, name, "--help")
        assert not any(place in told for place in ("docs/", "training/", "export/", ".py ")), name
