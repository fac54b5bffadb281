"""Every command of the documents is one that its program understands, and runs as it stands."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from filelock import FileLock

from mimicmotion_trt import Animator, Settings
from mimicmotion_trt.bundles import find_bundle
from mimicmotion_trt.media.picture import read_picture

from ..conftest import write_lora
from .pages import PAGES, ROOT, Fence, fences, words

SHELL = [fence for page in PAGES for fence in fences(page, "sh")]
OWN = {
    "person.jpg": "demo/person.jpg",
    "other.jpg": "demo/dancer.png",
    "dance.mp4": "tests/data/inputs/zero_size.mp4",
}
"""Files that pages say a reader has, and what stands for them here."""
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
    "hf download": "the same",
    "sha256sum weights": "of what was downloaded",
    "grpc_health_probe": "a program of its own",
    "make ": "sets up, makes the demo and runs these tests: what a new machine does first (.ci/run)",
    "python -m pytest": "tests",
    "python benchmarks/": "minutes each; tests/benchmarks runs each small",
    "python -m tests.service.fuzz": "minutes; tests/service/test_fuzz.py runs it small",
}
"""Beginnings of commands that do not run here on any page, and why."""
ON_VIDEOS = "the guide of training runs it, on videos that it draws"
WEIGHTS = "MimicMotion's weights, which are not shipped"
TRAINING = (
    "hours of training, and what comes of it; the guide of training runs the same on videos that it draws"
)
LEFT_OUT_OF = {
    "README.md": {
        "mimicmotion-trt build --base SVD_XT_FOLDER": WEIGHTS,
        "mimicmotion-trt serve --bundle bundles/mm11": WEIGHTS,
        "mimicmotion-trt animate person.jpg dance.mp4": "of that server",
        "mimicmotion-trt prepare": ON_VIDEOS,
        "mimicmotion-trt train": ON_VIDEOS,
        "mimicmotion-trt build --base training": ON_VIDEOS,
        "mimicmotion-trt evaluate": ON_VIDEOS,
    },
    "docs/models/tiny.md": {"": TRAINING},
    "docs/reference/training.md": {"": TRAINING},
    "docs/reference/weights.md": {
        "mimicmotion-trt build": WEIGHTS,
        "mimicmotion-trt inspect": WEIGHTS,
        "mimicmotion-trt animate": WEIGHTS,
    },
}
"""The same of one page; an empty beginning is that of all."""


def left_out(fence: Fence, command: str) -> bool:
    own = LEFT_OUT_OF.get(str(fence.page.relative_to(ROOT)), {})
    return command.startswith((*LEFT_OUT, *own))


def test_what_is_left_out_is_there():
    """A reason goes with its command."""
    typed = {page: [] for page in LEFT_OUT_OF}
    for fence in SHELL:
        typed.setdefault(str(fence.page.relative_to(ROOT)), []).extend(fence.commands())
    everywhere = [command for commands in typed.values() for command in commands]
    assert {start for start in LEFT_OUT if not any(each.startswith(start) for each in everywhere)} == set()
    for page, own in LEFT_OUT_OF.items():
        assert {start for start in own if not any(each.startswith(start) for each in typed[page])} == set()


class Reader:
    """Somebody who types what a page says, in a folder that looks like the repository, with files of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server: subprocess.Popen[bytes] | None = None
        for entry in ROOT.iterdir():
            if entry.name not in (".git", "build", "runs", "jobs", "demo", "bundles", "shards", "videos"):
                (folder / entry.name).symlink_to(entry)
        shutil.copytree(ROOT / "demo", folder / "demo")  # a page makes a picture of it anew
        for name, like in OWN.items():
            shutil.copy(ROOT / like, folder / name)
        for seed, name in enumerate(("style", "other")):
            write_lora(folder / f"{name}.safetensors", find_bundle("tiny"), seed)
        (folder / ".kept").touch()
        self.port = FileLock(ROOT / "build" / "documents.lock")
        self.environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def type(self, command: str) -> None:
        """Run a command to its end; a server runs on until the next one, or the end of the guide."""
        if "mimicmotion-trt serve" in command and "--check" not in command:
            self.stop()
            self.port.acquire()  # pages name the same ports
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
            self.port.release()

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
@pytest.mark.parametrize(
    "page", sorted({fence.page for fence in SHELL}), ids=lambda page: str(page.relative_to(ROOT))
)
def test_a_page_runs_as_it_stands(page: Path, tmp_path: Path):
    """Shell fences in their order; Python fences that begin with an import; files whose name stands in a comment."""
    reader = Reader(tmp_path)
    try:
        for fence in in_order(page):
            first = fence.text.splitlines()[0]
            if fence.language == "sh":
                for command in fence.commands():
                    if not left_out(fence, command):
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


def test_every_variable_is_in_the_documents():
    """Of our own ones, the page of the command line has the whole list."""
    named = re.compile(r"MIMICMOTION_[A-Z]+(?:_[A-Z]+)*")
    code = [
        path for room in ("runtime", "engines", "training", "export") for path in (ROOT / room).rglob("*.py")
    ]
    used = {name for path in code for name in named.findall(path.read_text())}
    page = (ROOT / "docs" / "guide" / "command-line.md").read_text()
    ours = {name for name in used if not name.startswith("MIMICMOTION_SERVE")}
    assert ours == {name for name in named.findall(page) if name != "MIMICMOTION_SERVE"}


def test_every_setting_is_in_the_documents():
    """In a heading or a table, or in the text of the page about speed."""
    pages = "".join((ROOT / "docs" / page).read_text() for page in ("controls.md", "reference/options.md"))
    told = [line for line in pages.splitlines() if line.startswith(("## ", "| `", "- **`", "`"))]
    missing = [
        field.name
        for field in fields(Settings)
        if not any(re.search(rf"\b{field.name}\b", line) for line in told)
    ]
    assert missing == []


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
