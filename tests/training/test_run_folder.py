"""A run that is stopped goes on exactly; what is damaged, in the way or changed is named."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from mimicmotion_trt.errors import CheckpointError, OutputError, SettingsError
from mimicmotion_trt.training.config import load_config
from mimicmotion_trt.training.hub import check_hub
from mimicmotion_trt.training.run_folder import check_same, list_snapshots, load_snapshot

from .hub_stand_in import Hub, hub

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
    for key in ("confidence_aware", "max_enlarge"):  # keys that did not exist when the run began
        del before["data"][key]
    for key in ("trackers", "log_every"):
        del before[key]
    check_same({**before, "tensorboard": True}, runs.config(data={"max_enlarge": 3.0}))
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


def test_what_is_missing_is_told_before_anything_is_written(runs, tmp_path):
    for changes, told in (
        ({"checkpoint": "nothing.pth"}, "checkpoint nothing.pth does not exist"),
        ({"base": "./nowhere", "recipe": None}, "'./nowhere' is no folder"),
        ({"data": {"path": "no-shards"}}, "data.path no-shards does not exist"),
        (
            {"stage": "vae", "vae": {"perceptual_weight": 0.5, "landmarks": "no.safetensors"}},
            "vae.landmarks no.safetensors does not exist",
        ),
    ):
        with pytest.raises((CheckpointError, SettingsError), match=told):
            runs.train(tmp_path / "run", 1, **changes)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed")
def test_a_tracker_that_is_not_installed_is_told(runs, tmp_path):
    with pytest.raises(SettingsError, match="wandb is not installed"):
        runs.train(tmp_path / "run", 1, trackers=["wandb"])


def test_a_run_says_at_its_start_what_it_is(runs, two_steps, stopped):
    config = load_config(two_steps.folder / "config.yaml")
    assert config == runs.config(
        trackers=["tensorboard"],
        validation={**asdict(config.validation), "settings": config.validation.settings},
    )
    (start,) = two_steps.lines("starts")
    assert (start["step"], start["machine"], start["processes"]) == (0, "cpu", 1)
    assert start["versions"]["torch"] == version("torch")
    assert start["revision"] is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", start["revision"])
    for name in ("config.yaml", "starts.jsonl"):
        (stopped / name).unlink()  # as of a run from before they were written
    again = runs.train(stopped, 3, resume=True)
    assert [line["step"] for line in again.lines("starts")] == [2]
    assert (stopped / "final" / "config.yaml").read_text() == (stopped / "config.yaml").read_text()


def test_what_is_final_is_what_the_hub_gets_and_anybody_may_read_all_files(two_steps):
    final = two_steps.folder / "final"
    names = {path.name for path in final.iterdir()}
    assert names == {"README.md", "bundle.json", "config.yaml", "mimicmotion.pth", "mimicmotion.safetensors"}
    card = (final / "README.md").read_text()
    assert card.startswith("---\npipeline_tag: image-to-video\n")
    assert "stage `motion`" in card
    files = [path for path in two_steps.folder.rglob("*") if path.is_file() and path.name != ".lock"]
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {"0o644"}


def test_the_hub_is_asked_for_a_token_before_a_run(runs, tmp_path):
    (tmp_path / "run.yaml").write_text(json.dumps({**runs.values, "output": str(tmp_path / "run")}))
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))
    }
    done = subprocess.run(
        [sys.executable, TRAIN, "--config", tmp_path / "run.yaml", "--push-to-hub", "owner/name"],
        capture_output=True, text=True, env={**environment, "HF_HOME": str(tmp_path / "home")},
    )  # fmt: skip
    assert done.returncode == 1
    assert "no token for the Hugging Face Hub" in done.stderr
    assert not (tmp_path / "run").exists()


def test_the_hub_gets_what_is_final(runs, stopped, tmp_path):
    """By the hub's own library, from a server on this machine that answers as the hub does."""
    (tmp_path / "run.yaml").write_text(json.dumps({**runs.values, "output": str(stopped)}))
    with hub() as there:
        done = push_by_command(there, tmp_path / "run.yaml")
    assert done.returncode == 0, done.stderr
    assert f"final weights are at {there.address}/owner/name" in done.stderr
    assert (there.visibility, there.tokens) == ({"owner/name": "private"}, {"Bearer hf_mine"})
    final = {path.name: path.read_bytes() for path in (stopped / "final").iterdir()}
    assert there.files["owner/name"] == final


def push_by_command(there: Hub, config: Path) -> subprocess.CompletedProcess[str]:
    """`train` of a run that is at its end already, with an upload to this hub."""
    away = {"HF_ENDPOINT": there.address, "HF_TOKEN": "hf_mine", "HF_HUB_DISABLE_XET": "1"}
    words = ["--config", config, "--resume", "--steps", "2", "--push-to-hub", "owner/name"]
    environment = {**os.environ, **away}
    return subprocess.run([sys.executable, TRAIN, *words], capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_an_upload_that_fails_is_told_with_where_the_weights_are(runs, stopped, tmp_path):
    (tmp_path / "run.yaml").write_text(json.dumps({**runs.values, "output": str(stopped)}))
    with hub() as there:
        there.down = True
        done = push_by_command(there, tmp_path / "run.yaml")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: {stopped / 'final'} could not be uploaded")
    assert "Traceback" not in done.stderr
    assert (stopped / "final" / "mimicmotion.safetensors").exists()


@pytest.mark.parametrize("name", ["name", "owner/a/name", "owner/na me", "/name"])
def test_what_is_no_repository_is_told_before_a_run(name, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    with pytest.raises(SettingsError, match="is no repository"):
        check_hub(name)


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
