"""Input that cannot be used is refused alike by the library, the command line and the server."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mimicmotion_trt as mm
from mimicmotion_trt.media.writer import VideoWriter
from mimicmotion_trt.service import Client, local_server

from .conftest import Command

DEMO = Path(__file__).parents[2] / "demo"
PERSON, MOTION = DEMO / "person.jpg", DEMO / "balance.npz"
QUICK = {"steps": 1, "frames": 2, "size": (64, 64)}
Face = Callable[[Path, Path, dict[str, Any]], str]
"""Animates; returns the name of the error's class, or "" if all went well."""


def png_header(width: int, height: int) -> bytes:
    """A PNG file that claims a size and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files that are not what they seem."""
    folder = tmp_path_factory.mktemp("bad")
    video = folder / "whole.mp4"
    with VideoWriter(video, fps=15, size=(64, 64)) as writer:
        for value in range(30):
            writer.write(np.full((64, 64, 3), value * 8, np.uint8))
    (folder / "truncated.mp4").write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    (folder / "text.mp4").write_text("this is no video\n" * 100)
    (folder / "bomb.png").write_bytes(png_header(100_000, 100_000))
    poses = dict(np.load(MOTION))
    np.savez(folder / "nan.npz", **{**poses, "body": np.full_like(poses["body"], np.nan)})
    np.savez(folder / "empty.npz", **{k: v[:0] if v.ndim > 1 else v for k, v in poses.items()})
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def client(bundle: Path) -> Iterator[Client]:
    with local_server(bundle, threads=1) as connected:
        yield connected


@pytest.fixture(params=["python", pytest.param("cli", marks=pytest.mark.slow), "grpc"])
def face(request: pytest.FixtureRequest, bundle: Path, command: Command, tmp_path: Path) -> Face:
    output = tmp_path / "out.mp4"

    def python(image: Path, motion: Path, settings: dict[str, Any]) -> str:
        animator: mm.Animator = request.getfixturevalue("animator")
        try:
            animator.animate(image, motion, animator.settings(**settings)).result().save(output)
        except mm.MimicMotionError as error:
            return type(error).__name__
        return ""

    def cli(image: Path, motion: Path, settings: dict[str, Any]) -> str:
        done = command(
            "animate", "--image", image, "--motion", motion, "--output", output, "--bundle", bundle, "--json",
            *flags(settings), code=None,
        )  # fmt: skip
        if done.exit_code == 0:
            return ""
        if done.exit_code == 2:  # no such flag
            assert "No such option" in done.stderr
            return "SettingsError"
        return str(json.loads(done.stdout.splitlines()[-1])["kind"])

    def grpc(image: Path, motion: Path, settings: dict[str, Any]) -> str:
        client: Client = request.getfixturevalue("client")
        try:
            client.animate(image, motion, settings, output=output).result()
        except mm.MimicMotionError as error:
            return type(error).__name__
        return ""

    return {"python": python, "cli": cli, "grpc": grpc}[request.param]


def flags(settings: dict[str, Any]) -> list[str]:
    """Settings as a user would type them."""
    typed = []
    for name, value in settings.items():
        text = "x".join(map(str, value)) if name == "size" else str(value)
        typed += [f"--{name.replace('_', '-')}", text]
    return typed


def test_every_bad_input_has_its_error_and_the_next_job_runs(
    face: Face, files: dict[str, Path], tmp_path: Path
) -> None:
    cases = [
        (PERSON, files["truncated.mp4"], {}, "MotionError"),
        (PERSON, files["text.mp4"], {}, "MotionError"),
        (PERSON, files["nan.npz"], {}, "MotionError"),
        (PERSON, files["empty.npz"], {}, "MotionError"),
        (PERSON, MOTION, {"frames": 0}, "SettingsError"),
        (PERSON, MOTION, {"overlap": 9, "segment": 8}, "SettingsError"),
        (files["bomb.png"], MOTION, {}, "LimitError"),
        (PERSON, MOTION, {"steps": -4}, "SettingsError"),
        (PERSON, MOTION, {"size": (100, 64)}, "SettingsError"),
        (PERSON, MOTION, {"sharpness": 3}, "SettingsError"),
        (files["text.mp4"], MOTION, {}, "PictureError"),
        (PERSON, DEMO / "nothing.mp4", {}, "MotionError"),
    ]
    for image, motion, settings, kind in cases:
        assert face(image, motion, {**QUICK, **settings}) == kind, (image.name, motion.name, settings)
        assert list(tmp_path.iterdir()) == []  # nothing half-written
    assert face(PERSON, MOTION, QUICK) == ""
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


@pytest.mark.parametrize(
    ("flag", "value", "told"),
    [
        ("steps", "two", "steps is 'two'. Give a whole number, 1 to 1000."),
        ("stride", "2.5", "stride is '2.5'. Give a whole number, 1 to 10000."),
        ("hold", "long", "hold is 'long'. Give a finite number, 0.0 to 3600.0."),
        ("threads", "all", "threads is 'all'. Give a whole number."),
    ],
)
def test_a_flag_that_is_no_number_is_told_with_its_value(
    command: Command, flag: str, value: str, told: str
) -> None:
    done = command("animate", PERSON, MOTION, "-o", "-", f"--{flag}", value, "--json", code=1)
    assert told in done.stderr
    assert json.loads(done.stdout)["message"] == f"{flag} is {value!r}."
