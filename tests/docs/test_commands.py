"""Every command of the documents is one that its program understands; those of the guides run as they stand."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from mimicmotion_trt import Animator
from mimicmotion_trt.media.picture import read_picture

from .pages import PAGES, ROOT, Fence, fences, words

SHELL = [fence for page in PAGES for fence in fences(page, "sh")]
PREFIXES = {"nice": 3, "nohup": 1}
"""Programs before the program, and how many words they take."""


@cache
def command_line(script: str) -> Any:
    """What reads the flags of one of our programs."""
    if script == "mimicmotion-trt":
        from mimicmotion_trt.cli import app

        return typer.main.get_command(app)
    found: dict[str, Any] = runpy.run_path(str(ROOT / script), run_name="documents")
    app = found.get("app")
    if app is None:
        app = typer.Typer()
        app.command()(found["main"])
    return typer.main.get_command(app)


def our_command(found: list[str]) -> tuple[str, list[str]] | None:
    """(program, its arguments) of a command that runs one of ours."""
    while found and found[0] in PREFIXES:
        found = found[PREFIXES[found[0]] :]
    if found[:1] == ["mimicmotion-trt"]:
        return found[0], found[1:]
    if found[:1] == ["python"] and found[1].endswith(".py"):
        return found[1], found[2:]
    return None


def check(command: Any, name: str, arguments: list[str]) -> None:
    """Raise click's error if the command would refuse these arguments; nothing is run."""
    try:
        context = command.make_context(name, list(arguments))
    except typer.Exit:  # a flag that answers by itself, as --help does
        return
    if hasattr(command, "resolve_command"):
        inner, chosen, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        check(chosen, inner, rest)


@pytest.mark.parametrize("fence", SHELL, ids=lambda fence: fence.name)
def test_commands_are_understood(fence: Fence):
    subprocess.run(["bash", "-n", "-c", fence.text], check=True)
    for command in fence.commands():
        if (found := our_command(words(command))) is not None:
            program, arguments = found
            check(command_line(program), program, arguments)


LEFT_OUT = {
    "pip install": "the network is not asked",
    "grpc_health_probe": "a program of its own",
    "make ": "sets up, makes the demo and runs these tests: what a new machine does first (.ci/run)",
    "mimicmotion-trt build --base SVD_XT_FOLDER": "MimicMotion's weights, which are not shipped",
    "mimicmotion-trt serve --bundle bundles/mm11": "the same",
    "mimicmotion-trt animate person.jpg dance.mp4": "the same",
    "python benchmarks/": "minutes each; tests/benchmarks runs each small",
}
"""Commands of guides that do not run here, and why."""
OF_README = tuple(
    f"mimicmotion-trt {name}" for name in ("prepare", "train", "build --base training", "evaluate")
)
"""Commands of the README that are those of the guide of training, which runs them on videos that it draws."""
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs" / "guide").glob("*.md"))]


class Reader:
    """Somebody who types what a guide says, in a folder that looks like the repository."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server: subprocess.Popen[bytes] | None = None
        for entry in ROOT.iterdir():
            if entry.name not in (".git", "build", "runs", "jobs"):
                (folder / entry.name).symlink_to(entry)
        (folder / ".kept").touch()
        self.environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def type(self, command: str) -> None:
        """Run a command to its end; a server runs on until the next one, or the end of the guide."""
        if command.startswith(tuple(LEFT_OUT)):
            return
        if "mimicmotion-trt serve" in command and "--check" not in command:
            self.stop()
            with (self.folder / "server.log").open("w") as log:
                self.server = self._start(f". ./.kept; exec env {command}", stderr=log)
            self._until_warm()
            return
        kept = "set -ae; . ./.kept;"  # variables that a command sets are there for the next
        running = self._start(f"{kept} {command}\nexport -p > .kept")
        assert running.wait(900) == 0, command

    def run(self, script: str) -> None:
        """Run a Python fence."""
        (self.folder / "script.py").write_text(script)
        assert self._start("exec python script.py").wait(300) == 0, script

    def stop(self) -> None:
        if self.server is not None:
            self.server.send_signal(signal.SIGTERM)
            assert self.server.wait(30) == 0
            self.server = None

    def _start(self, command: str, stderr: Any = None) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["bash", "-c", command], cwd=self.folder, env=self.environment, stderr=stderr)

    def _until_warm(self) -> None:
        assert self.server is not None
        log = self.folder / "server.log"
        while " ready " not in log.read_text():
            assert self.server.poll() is None, log.read_text()
            time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_a_guide_runs_as_it_stands(page: Path, tmp_path: Path):
    """Shell fences in their order; Python fences that begin with an import; files whose name stands in a comment."""
    reader = Reader(tmp_path)
    try:
        for fence in in_order(page):
            first = fence.text.splitlines()[0]
            if fence.language == "sh":
                for command in fence.commands():
                    if page.name != "README.md" or not command.startswith(OF_README):
                        reader.type(command)
            elif fence.language == "python" and first.startswith(("import", "from")):
                reader.run(fence.text)
            elif fence.language in ("toml", "yaml") and first.startswith("# ") and len(first.split()) == 2:
                (tmp_path / first.split()[1]).write_text(fence.text)
    finally:
        reader.stop()


def in_order(page: Path) -> list[Fence]:
    found = [fence for language in ("sh", "python", "toml", "yaml") for fence in fences(page, language)]
    return sorted(found, key=lambda fence: fence.line)


def test_settings_are_shown_side_by_side(bundle, tmp_path):
    example = runpy.run_path(str(ROOT / "docs" / "examples" / "variants.py"))
    sheet = tmp_path / "sheet.png"
    variants = ('{"steps": 1, "frames": 2}', '{"steps": 1, "frames": 2, "seed": 3}')
    inputs = (ROOT / "demo" / "person.jpg", ROOT / "demo" / "balance.npz", sheet)
    example["main"](*map(str, inputs), *variants, bundle=str(bundle))
    assert read_picture(sheet).shape[0] > 300


def test_choices_between_people_rates_and_parts_are_shown(bundle):
    """As docs/controls.md shows them: a sheet of each, people and their skeletons first."""
    example = runpy.run_path(str(ROOT / "docs" / "examples" / "choices.py"))
    people = example["several_people"]()
    assert (people > 240).all(axis=2).sum() > 8 * 20  # a face of white points in each of the eight
    with Animator.load(bundle) as animator:
        assert example["parts"](animator).max() == 255
