"""A finished animation is not lost to a disk that fills, or a pipe that closes, while it is written."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from mimicmotion_trt.media.reader import VideoReader
from mimicmotion_trt.service.config import load_animator

from ..service.hosting import fill, hosted
from .conftest import Command

ROOT = Path(__file__).parents[2]
WORDS = (
    "animate",
    ROOT / "demo" / "person.jpg",
    ROOT / "demo" / "balance.npz",
    "--frames",
    4,
    "--size",
    "64x64",
)
QUICK = ("--steps", 1, "--guidance", 1, 1)


def kept_video(said: str) -> Path:
    """Where an error says that the video is."""
    found = re.search(r"The finished video was kept as (\S+)\.", said)
    assert found, said
    return Path(found[1])


@pytest.fixture
def full(disk: Path) -> Path:
    """A folder on a disk without room."""
    filler = fill(disk)
    yield disk
    assert list(disk.iterdir()) == [filler], "nothing half-written is left"
    filler.unlink()


@pytest.mark.parametrize("name", ["out.mp4", "out.webm", "out.gif", "frames/"])
def test_a_video_that_a_full_disk_refuses_is_kept_elsewhere(
    bundle: Path, command: Command, full: Path, name: str
) -> None:
    done = command(*WORDS, *QUICK, "--bundle", bundle, "-o", f"{full}/{name}", code=1)
    assert "No space left on device" in done.stderr
    kept = kept_video(done.stderr)
    assert len(list(VideoReader(kept).frames())) == 4
    shutil.rmtree(kept.parent)


def test_so_is_one_that_a_device_refuses(bundle: Path, command: Command, tmp_path: Path) -> None:
    kept = kept_video(command(*WORDS, *QUICK, "--bundle", bundle, "-o", "/dev/full", code=1).stderr)
    assert len(list(VideoReader(kept).frames())) == 4
    shutil.rmtree(kept.parent)


def test_where_nothing_can_be_kept_the_error_says_so(
    bundle: Path, command: Command, full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(full))
    done = command(*WORDS, *QUICK, "--bundle", bundle, "-o", "/dev/full", code=1)
    assert "Nor can it be kept elsewhere" in done.stderr


def test_a_video_from_a_server_is_kept_elsewhere(bundle: Path, command: Command, full: Path) -> None:
    with hosted(load=load_animator, bundle=bundle, threads=1) as host:
        done = command(*WORDS, *QUICK, "--server", host.address, "-o", full / "out.mp4", code=1)
    assert "No space left on device" in done.stderr
    kept = kept_video(done.stderr)
    assert len(list(VideoReader(kept).frames())) == 4
    shutil.rmtree(kept.parent)
