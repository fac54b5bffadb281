"""Types for users: mypy and pyright over a script outside the repository, against an editable install and a wheel."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("user_script.py")
WRONG = {number for number, line in enumerate(SCRIPT.read_text().splitlines(), 1) if line.endswith("# wrong")}
"""Lines of the script that a checker has to refuse."""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The script, away from the repository and its settings of the checkers."""
    return Path(shutil.copy(SCRIPT, tmp_path / "script.py"))


def mypy(script: Path, python: Path) -> set[int]:
    """Lines that mypy --strict refuses."""
    cache = ROOT / "build" / "test-mypy" if python == Path(sys.executable) else python.parents[2] / "mypy"
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--cache-dir", str(cache)]
    command += ["--python-executable", str(python), str(script)]
    done = subprocess.run(command, cwd=script.parent, capture_output=True, text=True)
    assert done.returncode < 2, done.stdout + done.stderr
    return {int(line) for line in re.findall(r"^script\.py:(\d+): error", done.stdout, re.MULTILINE)}


def pyright(script: Path, python: Path) -> set[int]:
    """Lines that pyright refuses."""
    (script.parent / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", str(python), str(script)]
    done = subprocess.run(command, cwd=script.parent, capture_output=True, text=True)
    found = json.loads(done.stdout)["generalDiagnostics"]
    return {fault["range"]["start"]["line"] + 1 for fault in found if fault["severity"] == "error"}


CHECKERS = pytest.mark.parametrize("check", [mypy, pyright])


@CHECKERS
def test_a_users_script_is_checked_against_what_make_setup_installs(
    check: Callable[[Path, Path], set[int]], script: Path
):
    stubs = Path(sysconfig.get_path("purelib"), "mimicmotion_trt-stubs", "__init__.pyi")
    assert stubs.exists(), "run `make setup`"
    assert check(script, Path(sys.executable)) == WRONG


@pytest.mark.slow
@CHECKERS
def test_a_users_script_is_checked_against_the_wheel(
    check: Callable[[Path, Path], set[int]], script: Path, wheel_python: Path
):
    assert check(script, wheel_python) == WRONG
