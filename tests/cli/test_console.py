"""Progress where there is no terminal, and in one."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import time

import pytest

from mimicmotion_trt import console
from mimicmotion_trt.console import Bars, waiting


def test_without_a_terminal_a_line_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "LINE_SECONDS", 0.05)
    with Bars() as bars:
        for done in range(5):
            bars.show("denoise", done, 25)
            time.sleep(0.04)
    said = capsys.readouterr().err
    assert "denoise 1/25, 0 s" in said
    with waiting("reading") as tell:
        time.sleep(0.2)
        assert "reading, 0 s" in capsys.readouterr().err
        tell(1, 4)
        time.sleep(0.2)
    assert "reading 1/4, 0 s" in capsys.readouterr().err


def test_a_stage_that_is_finished_does_not_say_that_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The next stage says nothing before its first part is done."""
    monkeypatch.setattr(console, "LINE_SECONDS", 0.05)
    with Bars() as bars:
        for done in (0, 1, 2):
            bars.show("denoise", done, 2)
        time.sleep(0.2)
    said = capsys.readouterr().err
    assert "denoise 2/2, 0 s\n" in said
    assert "left" not in said


def test_short_work_and_quiet_work_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Bars() as bars:
        bars.show("denoise", 1, 25)
    with waiting("reading", quiet=True):
        pass
    assert capsys.readouterr() == ("", "")


def test_names_with_brackets_are_shown_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closing tag without an opening one would be an error."""
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with Bars() as bars:
        bars.show("load", 0, 1, "loading odd[/b]")
        time.sleep(0.2)
    assert "loading odd[/b]" in terminal.getvalue()


def test_a_signal_ends_the_command_even_where_python_drops_what_is_raised():
    script = """
import os, signal, time
from mimicmotion_trt.console import explained
class Deaf:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
with explained():
    deaf = Deaf()
    del deaf
    print("dropped", flush=True)
    time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50)
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stdout == "dropped\n"
