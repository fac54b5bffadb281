"""The GPU check on a machine without one: what needs none runs, the rest is owed, and it can be resumed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_check.py"


def check(*words: object, code: int = 0) -> Any:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout.splitlines()[-1]) if code == 0 else done.stderr


def test_what_needs_no_gpu_runs_and_the_rest_is_owed_or_done(tmp_path, bundle):
    stages = [word for name in ("cubins", "kernels", "same-bytes") for word in ("--stage", name)]
    words = ("--results", tmp_path, "--bundle", bundle, *stages, "--json")
    report = check(*words)
    assert report["stages"]["cubins"]["state"] == "done"
    assert report["stages"]["cubins"]["figures"]["sm_90_bytes"] > 1000
    assert report["stages"]["kernels"]["state"] in ("owed", "done")
    assert report["stages"]["same-bytes"]["figures"]["same"] is True
    written = json.loads(Path(report["file"]).read_text())
    assert written["stages"] == report["stages"]
    again = check(*words, "--resume")
    assert again["stages"]["cubins"] == report["stages"]["cubins"]  # its seconds would differ


def test_an_unknown_stage(tmp_path):
    assert "loop-16" in check("--results", tmp_path, "--stage", "no-such", code=2)


@pytest.mark.slow
def test_two_jobs_at_once_get_what_they_get_alone(tmp_path, bundle):
    report = check("--results", tmp_path, "--bundle", bundle, "--stage", "two-jobs", "--json")
    assert report["stages"]["two-jobs"]["figures"]["rel_l2"] < 1e-4


@pytest.mark.slow
def test_the_golden_runs_in_both_precisions(tmp_path):
    figures = check("--results", tmp_path, "--stage", "golden", "--json")["stages"]["golden"]["figures"]
    assert all(error < 1e-4 for name, error in figures.items() if name.endswith("fp32"))
    assert all(error < 0.05 for name, error in figures.items() if name.endswith("fp16"))


@pytest.mark.slow
def test_the_loops_on_small_networks(tmp_path):
    """All parts that a GPU runs at real size, but for those that compile."""
    found = check("--results", tmp_path, "--stage", "loop-small", "--json")["stages"]["loop-small"]
    assert found["state"] == "done"
    errors = {name: value for name, value in found["figures"].items() if name.endswith("_rel_l2")}
    assert len(errors) == 6
    assert all(error < 1e-4 for error in errors.values())
    videos = {name for name in found["figures"] if name.startswith("video_")}
    assert videos == {f"video_{name}_s" for name in ("plain", "ours", "overlapped", "options", "reuse")}
    assert list(tmp_path.glob("*.png"))
