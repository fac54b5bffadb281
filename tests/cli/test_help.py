"""Help fits on the screen, shows what the bundle does, and names every setting in its section."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import mimicmotion_trt as mm
from mimicmotion_trt.commands.options import PANELS, SettingsCommand
from mimicmotion_trt.validation import field_docs

from .conftest import Command

COMMANDS = (
    "animate",
    "pose",
    "serve",
    "build",
    "prepare",
    "train",
    "evaluate",
    "jobs list",
    "jobs watch",
    "jobs cancel",
    "new-token",
    "inspect",
    "doctor",
)
SCREEN = 50
"""Lines of a screen of 100 columns."""


def in_a_terminal(columns: int, *words: str) -> list[str]:
    """The lines of a help text in a process of its own: the runner of the other tests has its own width."""
    line = [sys.executable, "-m", "mimicmotion_trt", *words, "--help"]
    wide = {**os.environ, "COLUMNS": str(columns)}
    return subprocess.run(line, capture_output=True, text=True, check=True, env=wide).stdout.splitlines()


def sections(text: str) -> dict[str, str]:
    """The lines of each section of a help text."""
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if line.endswith(":") and not line.startswith(" "):
            name = line[:-1]
        else:
            found[name] = found.get(name, "") + line + "\n"
    return found


def test_every_setting_has_a_section() -> None:
    named = [name for names in PANELS.values() for name in names]
    assert {field.name for field in fields(mm.Settings)} == set(named)
    assert len(named) == len(set(named))
    assert set(PANELS) <= set(SettingsCommand.panels)


@pytest.mark.parametrize(("words", "screens"), [("", 1), ("animate", 2), ("serve", 2), ("build", 1)])
def test_it_fits_on_the_screen(words: str, screens: int) -> None:
    lines = in_a_terminal(100, *words.split())
    assert len(lines) <= screens * SCREEN
    assert 80 < max(map(len, lines)) <= 100


def test_a_narrow_terminal_is_respected() -> None:
    help_of = sections("\n".join(in_a_terminal(70, "animate")))
    assert (
        max(len(line) for name in help_of if name != "Examples" for line in help_of[name].splitlines()) <= 70
    )


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_has_two_examples_that_it_would_take(command: Command, words: str) -> None:
    """Each flag of an example is a flag of the command."""
    text = command(*words.split(), "-h").stdout
    examples = sections(text)["Examples"].split("\n")
    lines = [line.strip() for line in examples if line.strip()]
    assert len(lines) == 2
    for line in lines:
        assert line.startswith(f"mimicmotion-trt {words} ") or line == f"mimicmotion-trt {words}"
        for word in line.split():
            assert not word.startswith("-") or f"{word} " in text


def test_flags_stand_in_their_sections(command: Command) -> None:
    help_of = sections(command("animate", "--help").stdout)
    assert list(help_of)[1:] == [*SettingsCommand.panels, "Options", "Examples"]
    for flag, panel in (
        ("--steps", "Quality"),
        ("--person", "Motion"),
        ("--token-file", "Server"),
        ("-o", "Input/Output"),
    ):
        assert f"  {flag}" in help_of[panel]


@pytest.mark.parametrize("words", COMMANDS)
def test_flags_name_what_they_take(command: Command, words: str) -> None:
    """A folder, a size or a name is called so; TEXT is only what may be any text."""
    text = command(*words.split(), "-h").stdout
    takes = {line.split()[0] for line in text.splitlines() if "TEXT" in line.split()}
    assert takes <= {"--note", "--background"}
    assert ".0]" not in text


def test_kinds_of_values_are_plain_words_and_choices(command: Command) -> None:
    text = command("animate", "--help").stdout + command("serve", "--help").stdout
    assert "--framing person|centre|pad" in text
    assert not any(word in text for word in ("<str>", "<int>", "<float>", "list[", "None"))


def test_defaults_are_those_of_the_bundle_that_is_named(command: Command, bundle: Path) -> None:
    own = {"tiny": "--steps NUMBER Denoising steps, 1 to 1000 [default: 2]"}
    own[str(bundle)] = own["tiny"].replace("2]", "3]")
    for name, line in own.items():
        for words in (["--bundle", name, "--help"], ["--help", f"--bundle={name}"]):
            assert line in " ".join(command("animate", *words).stdout.split())
    assert "no bundle 'nothing'" in command("animate", "--bundle", "nothing", "--help", code=1).stderr


def test_all_about_a_setting_is_said(command: Command) -> None:
    said = command("animate", "--explain", "reuse-interval").stdout
    assert said == f"reuse_interval: {field_docs(mm.Settings)['reuse_interval']}\n"
    assert "framing" in command("animate", "--explain", "nothing", code=2).stderr


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("an", ["animate"]),
        ("animate --framing ", ["person", "centre", "pad"]),
        ("build --ba", ["--base", "--backend", "--batch"]),
    ],
)
def test_a_shell_completes_commands_flags_and_choices(typed: str, offered: list[str]) -> None:
    words = f"mimicmotion-trt {typed}"
    asked = {
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
        "_MIMICMOTION_TRT_COMPLETE": "complete_bash",
    }
    program = Path(sys.executable).with_name("mimicmotion-trt")
    done = subprocess.run([program], capture_output=True, text=True, env={**os.environ, **asked})
    assert done.stdout.split() == offered
