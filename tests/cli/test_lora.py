"""`animate --lora`: files in this process, names on a server."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import mimicmotion_trt as mm
from mimicmotion_trt.media.picture import read_picture
from mimicmotion_trt.media.reader import VideoReader
from mimicmotion_trt.service.config import load_animator

from ..service.hosting import hosted

DEMO = Path(__file__).parents[2] / "demo"
WORDS = (
    "animate",
    DEMO / "person.jpg",
    DEMO / "balance.npz",
    "--steps",
    1,
    "--frames",
    2,
    "--size",
    "64x64",
    "--json",
)


def frames_of(video: Path) -> bytes:
    return b"".join(frame.tobytes() for _, frame in VideoReader(video).frames())


def test_a_file_at_a_strength_makes_another_video_and_is_told_with_it(bundle, command, make_lora, tmp_path):
    style = make_lora("style")
    said = {}
    for name, more in (("plain", ()), ("half", ("--lora", f"{style}:0.5"))):
        done = command(*WORDS, "-o", tmp_path / f"{name}.mp4", "--bundle", bundle, *more)
        said[name] = json.loads(done.stdout.splitlines()[-1])["settings"]["lora"]
    assert said == {"plain": None, "half": ["style:0.5"]}
    assert len({frames_of(tmp_path / f"{name}.mp4") for name in said}) == 2
    facts = mm.read_facts(tmp_path / "half.mp4")
    assert facts.settings.lora == ("style:0.5",)
    assert " style:0.5=" in facts.build
    again = ("animate", DEMO / "person.jpg", "--like", tmp_path / "half.mp4", "-o", tmp_path / "again.mp4")
    assert "made with LoRAs: style:0.5" in command(*again, "--bundle", bundle, code=1).stderr


def test_a_file_that_is_not_there_is_told(bundle, command, tmp_path):
    done = command(
        *WORDS, "-o", tmp_path / "a.mp4", "--bundle", bundle, "--lora", tmp_path / "gone.x:0.5", code=1
    )
    assert "gone.x cannot be read" in done.stdout + done.stderr


def test_a_server_offers_its_loras_by_name(bundle, command, make_lora, tmp_path):
    output = tmp_path / "out.mp4"
    lora = (f"mine={make_lora('style')}",)
    with hosted(load=load_animator, bundle=bundle, threads=1, lora=lora) as host:
        command(*WORDS, "-o", output, "--server", host.address, "--lora", "mine:0.5")
        done = command(*WORDS, "-o", output, "--server", host.address, "--lora", "style", code=1)
    assert mm.read_facts(output).settings.lora == ("mine:0.5",)
    assert "Choose from: mine." in done.stdout + done.stderr


def test_the_example_shows_a_lora_at_several_strengths(bundle, make_lora, tmp_path):
    example = runpy.run_path(str(DEMO.parent / "docs" / "examples" / "lora.py"))
    names = (make_lora("style"), DEMO / "person.jpg", DEMO / "balance.npz", tmp_path / "sheet.png")
    example["main"](*map(str, names), "0", "1", bundle=str(bundle))
    assert read_picture(tmp_path / "sheet.png").shape[0] > 300
