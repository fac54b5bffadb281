"""An engine that answers NaN, from the command line: the network, the step, what to do; no video."""

from __future__ import annotations

import json
from pathlib import Path

from .conftest import Command

ROOT = Path(__file__).parents[2]


def test_the_network_the_step_and_the_remedy_are_named(
    overflowing_bundle, command: Command, tmp_path: Path
) -> None:
    words = (
        "animate",
        ROOT / "demo" / "person.jpg",
        ROOT / "demo" / "balance.npz",
        "-o",
        tmp_path / "out.mp4",
    )
    quick = ("--bundle", overflowing_bundle("unet"), "--steps", 2, "--frames", 2, "--guidance", 1, 1)
    done = command(*words, *quick, "--motion-bucket", 1010, "--json", code=1)
    said = json.loads(done.stdout.splitlines()[-1])
    assert (said["event"], said["kind"]) == ("error", "EngineError")
    assert "the network unet answered with NaN" in said["message"]
    assert "in step 1 of 2" in said["message"]
    assert said["remedy"]
    assert said["message"] in done.stderr
    assert list(tmp_path.iterdir()) == []
    command(*words, *quick)
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
