"""The card of a model, from a real bundle and the files of three short runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mimicmotion_trt.errors import OutputError, SettingsError
from mimicmotion_trt.training.card import extremes, read_history, read_runs, write_history
from mimicmotion_trt.training.evaluate import Scored

SCRIPT = Path(__file__).parents[2] / "training" / "card.py"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name in ("motion", "vae"):
        folder = tmp_path / "runs" / name
        snapshot = folder / "checkpoints" / "step-0000020"
        snapshot.mkdir(parents=True)
        config = {"stage": name, "seed": 7, "batch": 3, "data": {"clips": 4000, "characters": 4000}}
        (snapshot / "run.json").write_text(json.dumps({"step": 20, "config": config}))
        lines = [{"step": k, "loss": 1 / k, "data_seconds": 0.01, "step_seconds": 1.5} for k in range(1, 21)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "runs" / "motion" / "validation.jsonl").write_text('{"step": 20, "psnr": 17.25}\n')
    return tmp_path / "runs"


def test_stages_come_in_the_order_of_training(runs, tmp_path):
    assert [run.name for run in read_runs(runs)] == ["vae", "motion"]
    with pytest.raises(SettingsError, match="holds none of the runs"):
        read_runs(tmp_path / "nowhere")


def test_what_is_kept_tells_of_runs_that_are_gone(runs, tmp_path):
    kept, now = tmp_path / "history.json", read_runs(runs)
    write_history(kept, now)
    assert read_history(kept) == now
    (runs / "vae").rename(tmp_path / "gone")
    assert read_runs(runs, kept) == now
    assert read_runs(tmp_path / "nowhere", kept) == now
    with pytest.raises(OutputError, match=r"nowhere.*cannot be written"):
        write_history(tmp_path / "nowhere" / "history.json", now)
    kept.write_text("[{}]")
    with pytest.raises(SettingsError, match=r"history.json cannot be read"):
        read_runs(runs, kept)


def test_a_run_goes_before_what_is_kept(runs, tmp_path):
    kept = tmp_path / "history.json"
    write_history(kept, read_runs(runs))
    with (runs / "vae" / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 21, "loss": 0.5, "data_seconds": 0.01, "step_seconds": 1.5}\n')
    assert [run.profile.steps for run in read_runs(runs, kept)] == [21, 20]


@pytest.mark.slow
def test_the_card_tells_what_was_measured(runs, bundle, tmp_path):
    command = [sys.executable, SCRIPT, "--bundle", bundle, "--runs", runs, "--output", tmp_path / "docs"]
    command += ["--clips", "1", "--frames", "3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = Path(done.stdout.strip()).read_text()
    assert "| motion | 20 | 3 | 4,000 | 7 | 1.50 | 0.7% |" in text
    assert "psnr 17.2" in text
    assert "--base runs/tiny/vae/final/base" in text
    assert "--checkpoint runs/tiny/motion/final/mimicmotion.safetensors" in text
    assert "1 clips of 3 frames" in text
    assert "--size 64x128" in text
    images = sorted((tmp_path / "docs" / "images").iterdir())
    assert [path.name for path in images] == [f"{bundle.name}-clips.jpg", f"{bundle.name}-curves.png"]
    assert sum(path.stat().st_size for path in images) < 600_000
    for path in images:
        assert f"../images/{path.name}" in text


def test_the_sheet_shows_the_best_the_median_and_the_worst():
    picture = np.zeros((2, 2, 3), np.uint8)
    scored = [Scored({"ssim": value}, picture, picture, picture) for value in (0.5, 0.9, 0.7, 0.8, 0.6)]
    assert {name: one.scores["ssim"] for name, one in extremes(scored).items()} == {
        "best": 0.9, "median": 0.7, "worst": 0.5
    }  # fmt: skip
    assert list(extremes(scored[:1])) == ["best"]
