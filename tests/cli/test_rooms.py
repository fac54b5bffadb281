"""Commands of other rooms: they are loaded when they are run, and what they lack is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mimicmotion_trt.cli import ROOMS

ROOT = Path(__file__).parents[2]
WITHOUT = """
import importlib.abc, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
from mimicmotion_trt.cli import main
sys.argv = ["mimicmotion-trt", *{words!r}]
main()
"""


def without(missing: tuple[str, ...], *words: object) -> subprocess.CompletedProcess[str]:
    """Run a command where some libraries are not installed."""
    code = WITHOUT.format(missing=missing, words=tuple(map(str, words)))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("words", "missing", "extra"),
    [
        (("build", "--base", "a", "--checkpoint", "b", "-o", "c"), "onnx", "export"),
        (("train", "--config", "lora.yaml"), "yaml", "train"),
        (("evaluate",), "torch", "train"),
    ],
)
def test_a_library_that_is_missing_is_named_with_what_installs_it(
    tmp_path: Path, words: tuple[str, ...], missing: str, extra: str
) -> None:
    done = without((missing,), *words)
    told = f"error: {missing} is not installed. Run: pip install 'mimicmotion-trt[{extra}]'\n"
    assert (done.returncode, done.stderr) == (1, told)


def test_the_commands_of_this_room_need_none_of_the_extras() -> None:
    done = without(("torch", "onnx", "yaml", "matplotlib", "diffusers"), "inspect", "tiny")
    assert (done.returncode, "agrees with PyTorch" in done.stdout) == (0, True), done.stderr
    help_text = without(("torch", "onnx", "yaml"), "--help").stdout
    assert all(f"\n  {name} " in help_text for name in ROOMS)


def test_a_config_to_begin_with_is_printed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mimicmotion_trt", "train", "--example", "lora"],
        capture_output=True,
        text=True,
    )
    assert done.stdout == (ROOT / "training" / "configs" / "lora.yaml").read_text()
    wrong = subprocess.run(
        [sys.executable, "-m", "mimicmotion_trt", "train", "--example", "none"],
        capture_output=True,
        text=True,
    )
    assert (wrong.returncode, "lora" in wrong.stderr) == (2, True)
