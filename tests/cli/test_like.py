"""`animate --like`: a finished video made again, or its settings taken for another one."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import mimicmotion_trt as mm
from mimicmotion_trt.service import Client
from mimicmotion_trt.service.config import load_animator

from ..service.hosting import hosted
from .conftest import Command

ROOT = Path(__file__).parents[2]
PERSON, MOTION = ROOT / "demo" / "person.jpg", ROOT / "demo" / "balance.npz"
SHORT = ("--steps", 2, "--frames", 2, "--size", "64x64", "--guidance", 1, 1)
ODD = (*SHORT, "--seed", 9)


@pytest.fixture(scope="module")
def made(bundle: Path, command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video with settings of its own."""
    output = tmp_path_factory.mktemp("made") / "first.mp4"
    command("animate", "--image", PERSON, "--motion", MOTION, "--output", output, "--bundle", bundle, *ODD)
    return output


def test_a_video_is_made_again_to_the_byte(bundle, command, tmp_path, made, monkeypatch):
    monkeypatch.setenv("MIMICMOTION_BUNDLES", str(bundle.parent))
    again, other = tmp_path / "again.mp4", tmp_path / "other.mkv"
    words = ("animate", "--like", made, "--image", PERSON, "--motion", MOTION)
    done = command(*words, "--output", again, "--json")
    assert again.read_bytes() == made.read_bytes()
    said = json.loads(done.stdout.splitlines()[-1])
    assert (said["seed"], said["bundle"], said["build"]) == (9, bundle.name, mm.read_facts(made).build)
    assert set(said["seconds"]) == {"pose", "encode", "denoise", "decode"}
    command(*words, "--output", other, "--seed", 3)
    assert mm.read_facts(other).settings.seed == 3, "a flag goes above"
    assert mm.read_facts(other).settings.steps == 2
    before = made.read_bytes()
    assert "is an input too" in command(*words, "--output", made, code=1).stderr
    assert made.read_bytes() == before


def test_without_a_motion_it_is_the_videos_own(bundle, command, tmp_path, made):
    done = command(
        "animate",
        "--like",
        made,
        "--image",
        PERSON,
        "--output",
        tmp_path / "a.mp4",
        "--bundle",
        bundle,
        code=1,
    )
    assert "nobody was found in 2 frames of the motion" in done.stderr  # noise, of networks of random weights
    done = command("animate", "--image", PERSON, "--output", tmp_path / "a.mp4", code=1)
    assert "there is no motion" in done.stderr


def test_another_bundle_is_said(bundle, command, tmp_path, made):
    other = shutil.copytree(bundle, tmp_path / "other")
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"build": "0" * 64}))
    words = ("animate", "--like", made, "--image", PERSON, "--motion", MOTION, "--output", tmp_path / "b.mp4")
    assert "000000000000 now" in command(*words, "--bundle", other).stderr
    assert f"there is no bundle '{bundle.name}'" in command(*words, code=1).stderr


def test_a_server_writes_the_same_file(bundle, command, tmp_path, made):
    facts = mm.read_facts(made)
    with hosted(load=load_animator, bundle=bundle, threads=1) as host:
        with Client(host.address) as client:
            sent = client.animate(PERSON, MOTION, facts.settings, output=tmp_path / "sent.mp4").result()
        assert sent.done.facts == facts == mm.read_facts(tmp_path / "sent.mp4")
        words = ("animate", "--server", host.address, "--like", made, "--image", PERSON, "--motion", MOTION)
        command(*words, "--output", tmp_path / "again.mp4")
        command(*words, "--output", tmp_path / "again.webm")
    assert (tmp_path / "again.mp4").read_bytes() == (tmp_path / "sent.mp4").read_bytes()
    assert mm.read_facts(tmp_path / "again.webm") == facts


def test_several_videos_are_counted(bundle, command, tmp_path, made):
    words = ("animate", PERSON, MOTION, "--bundle", bundle, *SHORT)
    done = command(*words, "-o", tmp_path / "out.mkv", "--seed", 9, "--count", 2, "--json")
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out-1.mkv", "out-2.mkv"]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["output"] == str(tmp_path / "out-1.mkv")
    assert said["others"] == [{"output": str(tmp_path / "out-2.mkv"), "seed": 10}]
    assert mm.read_facts(tmp_path / "out-2.mkv").settings == replace(mm.read_facts(made).settings, seed=10)
    command(*words, "-o", tmp_path / "f_%d.mp4", "--seeds", "9,3")
    assert (tmp_path / "f_1.mp4").read_bytes() == made.read_bytes()
    assert "2 videos cannot be written" in command(*words, "-o", "-", "--count", 2, code=1).stderr
    for other in (("--count", 2), ("--seed", 3)):
        done = command(*words, "-o", tmp_path / "a.mp4", "--seeds", "1,2", *other, code=1)
        assert f"{other[0]} means nothing with --seeds" in done.stderr
    assert "count is 0" in command(*words, "-o", tmp_path / "a.mp4", "--count", 0, code=1).stderr
