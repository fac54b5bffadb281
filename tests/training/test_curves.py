"""What a run's files tell: where its time went, and its curves."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from mimicmotion_trt.errors import SettingsError
from mimicmotion_trt.media.picture import read_picture
from mimicmotion_trt.training.curves import draw_curves, read_curve, smooth, summarize, table_of

SCRIPT = Path(__file__).parents[2] / "training" / "curves.py"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    steps = [
        {"step": k, "loss": None if k == 5 else 100.0 / k, "data_seconds": 0.1, "step_seconds": 2.0}
        for k in range(1, 101)
    ]
    text = "".join(json.dumps(line) + "\n" for line in steps)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 101, "lo')  # it is being written
    validations = [{"step": k, "psnr": 10.0 + k, "psnr_repeat_reference": 12.0} for k in (50, 100)]
    (tmp_path / "validation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in validations))
    return tmp_path


def test_what_was_prepared_and_what_could_not_be_measured(run):
    assert summarize(run).prepare_seconds is None  # as of runs from before it was kept
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
    for index, seconds in ((0, 40.0), (60, 2.5)):  # begun, and resumed
        lines[index]["prepare_seconds"] = seconds
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with (run / "validation.jsonl").open("a") as file:
        file.write('{"step": 100, "psnr": 20.0, "hand_psnr": null}\n')
    one = summarize(run)
    assert one.prepare_seconds == 42.5
    assert one.validation == {"psnr": 20.0}


def test_the_numbers_of_a_run(run):
    one = summarize(run)
    assert one.steps == 100
    assert one.hours == pytest.approx(200 / 3600)
    assert one.step_seconds == 2.0
    assert one.waiting == pytest.approx(0.05)
    assert (one.loss_begin, one.loss_end) == (pytest.approx(75.0), pytest.approx((100 / 99 + 1) / 2))
    assert one.validation == {"psnr": 110.0, "psnr_repeat_reference": 12.0}


def test_smoothing_leaves_out_what_is_not_finite():
    values = np.full(100, 3.0)
    values[40] = np.nan
    assert smooth(values) == pytest.approx(np.full(99, 3.0))
    assert smooth(np.array([1.0, 2.0])) == pytest.approx([1.0, 2.0])


def test_a_curve_is_thinned(run):
    curve = read_curve(run, most=30)
    assert curve.steps == list(range(2, 101, 4))
    assert curve.losses[0] == pytest.approx(75.0)
    assert [line["step"] for line in curve.validations] == [50, 100]


def test_the_command_and_its_picture(run, tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, run, "--output", tmp_path / "curve.png", "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    told = json.loads(done.stdout.splitlines()[-1])
    assert told[str(run)]["steps"] == 100
    assert 5_000 < (tmp_path / "curve.png").stat().st_size < 100_000


def test_no_run_and_no_validation(run, tmp_path):
    with pytest.raises(SettingsError, match="holds no run"):
        summarize(tmp_path / "nowhere")
    (run / "validation.jsonl").unlink()
    assert summarize(run).validation == {}
    draw_curves([[read_curve(run)]], tmp_path / "curve.png")


def test_several_runs_are_compared_in_80_columns(run, tmp_path):
    place = tmp_path.with_name(f"{tmp_path.name}-others")
    others = [Path(shutil.copytree(run, place / name)) for name in ("a-run-of-a-long-name", "b")]
    (others[1] / "validation.jsonl").write_text('{"step": 9, "found": 0.5}\n')
    summaries = {str(folder): summarize(folder) for folder in (run, *others)}
    console = Console(width=80, file=StringIO())
    console.print(table_of(summaries))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    cells = {
        line.split("│")[1].strip(): [cell.strip() for cell in line.split("│")[2:5]]
        for line in lines
        if "│" in line
    }
    assert cells["steps"] == ["100"] * 3
    assert cells["psnr"] == ["110", "110", "–"]
    assert cells["found"] == ["–", "–", "0.5"]
    draw_curves([[read_curve(folder) for folder in (run, *others)]], tmp_path / "curves.png")
    assert read_picture(tmp_path / "curves.png").shape[1] == 935
