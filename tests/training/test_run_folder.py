"""A run that is stopped goes on exactly; what is damaged, in the way or changed is named."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from mimicmotion_trt.errors import CheckpointError, OutputError, SettingsError
from mimicmotion_trt.training.run_folder import check_same, list_snapshots, load_snapshot

TRAIN = Path(__file__).parents[2] / "training" / "train.py"


@pytest.fixture
def stopped(two_steps, tmp_path) -> Path:
    """The folder of a run that was stopped after two steps."""
    return Path(shutil.copytree(two_steps.folder, tmp_path / "run"))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(runs, six_steps, tmp_path):
    output = tmp_path / "run"
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps({**runs.values, "output": str(output)}))  # JSON is YAML
    process = subprocess.Popen(
        [sys.executable, TRAIN, "--config", config],
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # as many as in this process
    )

    def lines_so_far() -> int:
        path = output / "metrics.jsonl"
        return path.read_text().count("\n") if path.exists() else 0

    try:
        deadline = time.monotonic() + 120
        while lines_so_far() < 3:
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stderr.close()
    assert process.returncode == -signal.SIGKILL
    killed_at = lines_so_far()
    assert 3 <= killed_at < 40
    with (output / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "lo')  # what a kill while writing leaves
    resumed = runs.train(output, max(6, killed_at + 1), resume=True)
    steps = resumed.results()
    assert [line["step"] for line in steps] == list(range(1, len(steps) + 1))
    assert steps[:6] == six_steps.results()
    if len(steps) == 6:
        for name in ("mimicmotion.safetensors", "mimicmotion.pth"):
            assert same(resumed.weights(name), six_steps.weights())


def test_resumed_weights_are_those_of_an_unbroken_run(runs, two_steps, six_steps, stopped: Path):
    resumed = runs.train(stopped, 6, resume=True)
    assert resumed.results() == six_steps.results()
    assert resumed.lines()[:2] == two_steps.lines()
    assert "prepare_seconds" in resumed.lines()[2]  # of the run that was resumed
    assert same(resumed.weights(), six_steps.weights())
    assert [folder.name for folder in list_snapshots(stopped)] == ["step-0000004", "step-0000006"]


def test_what_a_resumed_run_may_change(runs):
    before = asdict(runs.config())
    elsewhere = {"cache": "elsewhere", "workers": 3}
    check_same(before, runs.config(data=elsewhere, steps=99, keep=1, validation={"clips": 5}))
    del before["data"]["confidence_aware"]  # a key that did not exist when the run began
    check_same(before, runs.config())
    for changes, told in (({"frames": 4}, "data"), ({"confidence_aware": False}, "data")):
        with pytest.raises(CheckpointError, match=f"another {told}"):
            check_same(before, runs.config(data=changes))
    with pytest.raises(CheckpointError, match="another batch, ema"):
        check_same(before, runs.config(batch=1, ema=None))


def test_what_a_run_refuses(runs, stopped, tmp_path):
    with pytest.raises(OutputError, match="holds a run already"):
        runs.train(stopped, 2)
    with pytest.raises(CheckpointError, match="another batch"):
        runs.train(stopped, 2, resume=True, batch=1)
    with pytest.raises(SettingsError, match="fp16 needs a GPU"):
        runs.train(tmp_path / "half", 1, precision="fp16")
    with pytest.raises(SettingsError, match="bitsandbytes"):
        runs.train(tmp_path / "8bit", 1, optimizer={"name": "adamw8bit"})


def test_one_run_at_a_time_writes_to_a_folder(runs, tmp_path):
    from mimicmotion_trt.files import lock_folder

    with lock_folder(tmp_path / "run"), pytest.raises(OutputError, match="another run is at work"):
        runs.train(tmp_path / "run", 1)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_damaged_snapshot_is_named(runs, stopped):
    trainer = runs.trainer(stopped, resume=True)
    for file, kept in (
        ("model.safetensors", 0.5), ("optimizer.bin", 0.0), ("custom_checkpoint_0.pkl", 0.1), ("run.json", 0.1)
    ):  # fmt: skip
        path = stopped / "checkpoints" / "step-0000002" / file
        whole = path.read_bytes()
        path.write_bytes(whole[: int(kept * len(whole))])
        with pytest.raises(CheckpointError, match="step-0000002 cannot be loaded") as caught:
            load_snapshot(trainer.accelerator, stopped, trainer.config)
        assert "Delete it" in caught.value.remedy
        path.write_bytes(whole)
    assert load_snapshot(trainer.accelerator, stopped, trainer.config) == 2


def test_what_cannot_be_written_is_named(runs, tmp_path, monkeypatch):
    import accelerate

    (tmp_path / "run" / "metrics.jsonl").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"metrics\.jsonl cannot be written"):
        runs.train(tmp_path / "run", 1, resume=True)

    def full(self: object, folder: str) -> None:
        (Path(folder) / "model.safetensors").write_text("half of it")
        raise RuntimeError("[enforce fail at inline_container.cc:820] . No space left on device")

    monkeypatch.setattr(accelerate.Accelerator, "save_state", full)
    with pytest.raises(OutputError, match=r"checkpoint .* cannot be written: .*No space left"):
        runs.train(tmp_path / "full", 1)
    assert list((tmp_path / "full" / "checkpoints").iterdir()) == []


def test_files_of_a_run(two_steps):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (line,) = two_steps.lines("validation")
    assert line["step"] == 2
    assert (two_steps.folder / "validation" / "step-0000002.png").stat().st_size > 1000
    assert json.loads((two_steps.folder / "skipped.json").read_text()) == {}
    board = EventAccumulator(str(two_steps.folder / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("train/loss")] == [1, 2]
    (event,) = board.Scalars("validation/psnr")
    assert (event.step, event.value) == (2, pytest.approx(line["psnr"]))
    assert len(board.Images("validation/sheet")) == 1
