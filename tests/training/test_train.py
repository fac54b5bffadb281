"""Short runs of the real loop on the golden data's small networks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mimicmotion_trt.errors import CheckpointError, MotionError, OutputError, SettingsError
from mimicmotion_trt.training.checkpoints import load_model, read_state
from mimicmotion_trt.training.config import Config, LoraConfig, build

ROOT = Path(__file__).parents[2]
TRAIN = ROOT / "training" / "train.py"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small are faster on one thread, above all beside other processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def values(golden: Path, tmp_path: Path) -> dict[str, Any]:
    """A run of few small steps; every clip of it is at hand in a folder that the session's tests share."""
    return {
        "output": str(tmp_path / "run"),
        "base": str(golden / "tiny" / "svd"),
        "recipe": str(ROOT / "training" / "configs" / "tiny-networks.json"),  # allows a random U-Net
        "steps": 6,
        "batch": 2,
        "ema": 0.9,
        "save_every": 2,
        "tensorboard": False,
        "data": {
            "clips": 4,
            "characters": 4,
            "frames": 3,
            "height": 64,
            "width": 64,
            "canvas": 64,
            "cache": str(ROOT / "build" / "test-clips"),
            "workers": 0,
        },
        "objective": {"skeleton_weight": 2.0},
        "optimizer": {"lr": 1e-3, "schedule": "cosine", "warmup": 2},
        "validation": {"every": 0},
    }


@pytest.fixture
def train(values) -> Callable[..., list[dict[str, Any]]]:
    """Run it, with some of the config's fields replaced; returns the lines of metrics.jsonl."""

    def run(
        stop: int | None = None, *, resume: bool = False, output: Path | None = None, **changes: Any
    ) -> list[dict[str, Any]]:
        from accelerate.state import AcceleratorState

        from mimicmotion_trt.training.loop import Trainer

        AcceleratorState._reset_state(reset_partial_state=True)
        folder = output or Path(values["output"])
        config = replace(build(Config, values, ""), **changes)
        Trainer(config, folder, resume=resume, say=lambda _: None).run(stop)
        return lines(folder)

    return run


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def told(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Everything but times."""
    return [{k: v for k, v in line.items() if not k.endswith("seconds")} for line in metrics]


def test_a_killed_run_goes_on_bit_for_bit(values, train, tmp_path):
    (tmp_path / "run.yaml").write_text(json.dumps({**values, "steps": 40}))  # JSON is YAML
    unbroken = train(6, output=tmp_path / "unbroken", steps=40)
    output = Path(values["output"])
    process = subprocess.Popen(
        [sys.executable, TRAIN, "--config", tmp_path / "run.yaml"],
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # as many as in this process
    )
    try:
        deadline = time.monotonic() + 120
        while not (output / "metrics.jsonl").exists() or len(lines_so_far(output)) < 3:
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stderr.close()
    assert process.returncode == -signal.SIGKILL
    killed_at = len(lines_so_far(output))
    assert 3 <= killed_at < 40
    with (output / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "lo')  # what a kill while writing leaves
    resumed = train(max(6, killed_at + 1), resume=True, steps=40)
    assert [line["step"] for line in resumed] == list(range(1, len(resumed) + 1))
    assert told(resumed)[:6] == told(unbroken)
    for file in ("mimicmotion.safetensors", "mimicmotion.pth"):
        if len(resumed) == 6:
            a, b = (read_state(folder / "final" / file) for folder in (output, tmp_path / "unbroken"))
            assert all(torch.equal(a[key], b[key]) for key in b)


def lines_so_far(folder: Path) -> list[str]:
    return (folder / "metrics.jsonl").read_text().split("\n")[:-1]


def test_resumed_weights_are_those_of_an_unbroken_run(train, tmp_path):
    whole = train(5, output=tmp_path / "whole")
    train(3, output=tmp_path / "parts")
    parts = train(5, output=tmp_path / "parts", resume=True)
    assert told(parts) == told(whole)
    a, b = (read_state(tmp_path / n / "final" / "mimicmotion.safetensors") for n in ("whole", "parts"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    names = sorted(path.name for path in (tmp_path / "parts" / "checkpoints").iterdir())
    assert names == ["step-0000004", "step-0000005"]


def test_a_run_from_before_a_key_was_known_goes_on(train, tmp_path):
    from mimicmotion_trt.training.config import DataConfig

    train(2)
    state = tmp_path / "run" / "checkpoints" / "step-0000002" / "run.json"
    told = json.loads(state.read_text())
    del told["config"]["data"]["confidence_aware"]
    state.write_text(json.dumps(told))
    assert len(train(3, resume=True)) == 3
    with pytest.raises(CheckpointError, match="another data"):
        train(4, resume=True, data=DataConfig(clips=4, frames=3, confidence_aware=False))


def test_lines_tell_what_is_promised(train, tmp_path):
    (line,) = train(1)
    assert set(line) == {
        "step", "loss", "x0_error", "sigma", "grad_norm", "lr", "data_seconds", "step_seconds", "prepare_seconds"
    }  # fmt: skip
    first, second = train(2, resume=True)
    assert "prepare_seconds" in second  # of the run that was resumed
    assert first == line
    assert json.loads((tmp_path / "run" / "skipped.json").read_text()) == {}
    assert 0 <= line["data_seconds"] < line["step_seconds"]
    assert line["lr"] == pytest.approx(1e-3 / 3)


def test_the_loss_falls_on_clips_seen_again_and_again(train):
    from mimicmotion_trt.training.config import ObjectiveConfig, OptimizerConfig

    fixed = ObjectiveConfig(log_sigma_mean=3.0, log_sigma_std=0.0, noise_aug=False, drop_condition=0.0)
    metrics = train(20, steps=20, objective=fixed, optimizer=OptimizerConfig(lr=5e-3), save_every=20)
    losses = [line["loss"] for line in metrics]
    assert np.mean(losses[-4:]) < 0.7 * np.mean(losses[:4])


def test_final_weights_become_a_bundle(train, golden, tmp_path):
    from mimicmotion_trt import Animator
    from mimicmotion_trt.export.build import Options, build_bundle

    train(2, half_weights=True)
    base, final = golden / "tiny" / "svd", tmp_path / "run" / "final"
    for name in ("mimicmotion.pth", "mimicmotion.safetensors"):
        model = load_model(base, final / name)
        assert model.pose_net.final_proj.weight.abs().max() > 0  # it has learned something
    options = Options(sizes=((64, 64),), segment=3, defaults={"canvas": 64, "steps": 1, "overlap": 1})
    build_bundle(base, final / "mimicmotion.safetensors", tmp_path / "bundle", options)
    with Animator.load(tmp_path / "bundle", threads=1) as animator:
        assert animator.settings().canvas == 64


def test_validation_samples_through_the_runtimes_loop(values, train, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from mimicmotion_trt.denoise import Denoiser

    steps = []
    monkeypatch.setattr(Denoiser, "step", lambda self, step: steps.append(step.sigma))
    settings = {"steps": 3, "guidance": [1.5, 1.5], "overlap": 1, "sigma_max": 50.0}
    values["validation"] = {"every": 2, "clips": 1, "frames": 4, "settings": settings}
    train(2, tensorboard=True)
    assert len(steps) == 3
    assert steps[0] == pytest.approx(50.0)
    output = Path(values["output"])
    (line,) = [json.loads(text) for text in (output / "validation.jsonl").read_text().splitlines()]
    assert line["step"] == 2
    assert set(line) == {
        "step", "psnr", "ssim", "psnr_repeat_reference", "ssim_repeat_reference", "hand_psnr", "border_jump"
    }  # fmt: skip
    assert isinstance(line["border_jump"], float)  # of two segments
    assert (output / "validation" / "step-0000002.png").stat().st_size > 1000
    board = EventAccumulator(str(output / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("train/loss")] == [1, 2]
    (event,) = board.Scalars("validation/psnr")
    assert (event.step, event.value) == (2, pytest.approx(line["psnr"]))
    assert len(board.Images("validation/sheet")) == 1


def test_adapters_train_alone_and_can_be_folded_in(train, golden, tmp_path):
    checkpoint = str(golden / "tiny" / "mimicmotion.pth")
    train(2, lora=LoraConfig(rank=2, alpha=4), checkpoint=checkpoint, ema=None)
    before, after = read_state(Path(checkpoint)), read_state(tmp_path / "run" / "final" / "mimicmotion.pth")
    adapters = read_state(tmp_path / "run" / "final" / "lora.safetensors")
    load_model(golden / "tiny" / "svd", tmp_path / "run" / "final" / "mimicmotion.pth")
    changed = {key for key in before if key.startswith("unet.") and not torch.equal(before[key], after[key])}
    assert changed == {key.replace(".lora_A.weight", ".weight") for key in adapters if "lora_A" in key}
    key = next(iter(sorted(changed)))
    down, up = (adapters[key.replace(".weight", f".lora_{side}.weight")] for side in "AB")
    torch.testing.assert_close(after[key], before[key] + 4 / 2 * up @ down)
    apart = train(
        2, lora=LoraConfig(rank=2, alpha=4, merge=False), checkpoint=checkpoint, output=tmp_path / "a"
    )
    assert len(apart) == 2
    kept = read_state(tmp_path / "a" / "final" / "mimicmotion.pth")
    assert all(torch.equal(before[key], kept[key]) for key in changed)


def test_the_moving_average_is_what_is_kept(train, tmp_path):
    """After two steps: diffusers' decay is 0 in the first and 2/11 in the second, 0.9 much later."""
    for name, steps, ema in (("one", 1, None), ("two", 2, None), ("average", 2, 0.9)):
        train(steps, output=tmp_path / name, ema=ema)
    one, two, average = (
        read_state(tmp_path / name / "final" / "mimicmotion.safetensors")
        for name in ("one", "two", "average")
    )
    for key, value in average.items():
        torch.testing.assert_close(value, one[key] * 2 / 11 + two[key] * 9 / 11, rtol=1e-5, atol=1e-7)
    assert not torch.equal(average["unet.conv_in.weight"], two["unet.conv_in.weight"])


def test_the_files_for_comfyui_load_as_its_nodes_load_them(train, golden, tmp_path):
    """kijai/ComfyUI-MimicMotionWrapper, nodes.py: the U-Net key by key, PoseNet with what fits of its file."""
    from accelerate import init_empty_weights
    from accelerate.utils import set_module_tensor_to_device
    from diffusers import UNetSpatioTemporalConditionModel
    from safetensors.torch import load_file

    from mimicmotion_trt.training.networks import PoseNet

    train(1, comfyui=True)
    final = tmp_path / "run" / "final"
    config = UNetSpatioTemporalConditionModel.load_config(golden / "tiny" / "svd" / "unet")
    with init_empty_weights():
        unet = UNetSpatioTemporalConditionModel.from_config(config)
    state = load_file(final / "comfyui" / "MimicMotionMergedUnet_1-1-fp16.safetensors")
    for key in state:
        set_module_tensor_to_device(unet, key, dtype=torch.float16, device="cpu", value=state[key])
    pose_net = PoseNet(unet.config.block_out_channels[0])
    found = pose_net.load_state_dict(
        load_file(final / "comfyui" / "mimic_motion_pose_net.safetensors"), strict=False
    )
    assert not found.missing_keys
    assert not found.unexpected_keys
    whole = read_state(final / "mimicmotion.safetensors")
    for prefix, network in (("unet.", unet), ("pose_net.", pose_net.half())):
        for key, value in network.state_dict().items():
            assert not value.is_meta
            assert torch.equal(value, whole[prefix + key].half()), key


def test_accumulation_sees_the_clips_of_a_larger_batch(train, tmp_path):
    large = train(1, output=tmp_path / "large", batch=4)
    small = train(1, output=tmp_path / "small", batch=2, accumulation=2)
    assert small[0]["loss"] == pytest.approx(large[0]["loss"], rel=1e-5)
    assert small[0]["grad_norm"] == pytest.approx(large[0]["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("change", [{"gradient_checkpointing": True}, {"precision": "bf16"}])
def test_cheaper_memory_gives_nearly_the_same_step(train, tmp_path, change):
    (plain,) = train(1, output=tmp_path / "plain")
    (cheap,) = train(1, output=tmp_path / "cheap", **change)
    assert cheap["loss"] == pytest.approx(plain["loss"], rel=1e-5 if "precision" not in change else 0.05)
    assert cheap["grad_norm"] == pytest.approx(
        plain["grad_norm"], rel=1e-3 if "precision" not in change else 0.1
    )


def test_gradients_that_are_not_finite_change_nothing(train, tmp_path, monkeypatch):
    from mimicmotion_trt.training import objective

    train(1, output=tmp_path / "one")
    real = objective.clip_losses
    calls = []

    def once_infinite(*arguments):
        calls.append(1)
        return real(*arguments) * (float("inf") if len(calls) in (3, 4) else 1.0)  # two calls in each step

    monkeypatch.setattr(objective, "clip_losses", once_infinite)
    metrics = train(2, output=tmp_path / "two")
    assert metrics[1]["loss"] is None
    a, b = (read_state(tmp_path / n / "final" / "mimicmotion.safetensors") for n in ("one", "two"))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_what_a_run_refuses(train, values, tmp_path):
    train(1)
    with pytest.raises(OutputError, match="holds a run already"):
        train(2)
    with pytest.raises(CheckpointError, match="another batch"):
        train(2, resume=True, batch=1)
    with pytest.raises(SettingsError, match="fp16 needs a GPU"):
        train(1, output=tmp_path / "half", precision="fp16")
    from mimicmotion_trt.training.config import OptimizerConfig

    with pytest.raises(SettingsError, match="bitsandbytes"):
        train(1, output=tmp_path / "8bit", optimizer=OptimizerConfig(name="adamw8bit"))


def run_in_two_processes(values: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    (folder / "run.yaml").write_text(json.dumps(values))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, TRAIN, "--config", folder / "run.yaml"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return lines(folder / "run")


@pytest.mark.slow
def test_two_processes_train_a_vae_of_which_a_part_idles(values, tmp_path):
    """With one layer a block the middle's attention has weights that nothing runs."""
    vae = {"frames": 1, "crop": 64}
    steps = run_in_two_processes({**values, "stage": "vae", "steps": 3, "vae": vae}, tmp_path)
    assert [line["step"] for line in steps] == [1, 2, 3]


@pytest.mark.slow
def test_two_processes_see_the_clips_of_a_larger_batch(values, train, tmp_path):
    together = run_in_two_processes({**values, "steps": 3}, tmp_path)
    alone = train(3, output=tmp_path / "alone", steps=3, batch=4)
    assert [line["loss"] for line in together] == pytest.approx([line["loss"] for line in alone], rel=1e-3)
    # Later norms are rounding: at 64x64 the deepest level is one cell, whose group norm sees two numbers.
    assert together[0]["grad_norm"] == pytest.approx(alone[0]["grad_norm"], rel=1e-4)


def test_one_run_at_a_time_writes_to_a_folder(train, tmp_path):
    from mimicmotion_trt.training.files import alone

    with alone(tmp_path / "run"), pytest.raises(OutputError, match="another run is at work"):
        train(1)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert len(train(1)) == 1


def test_a_damaged_clip_that_is_held_out_does_not_end_the_run(values, train, tmp_path, monkeypatch):
    from mimicmotion_trt.training.data import samples

    real = samples.SyntheticClips.__getitem__

    def damaged(self, index):
        if self.first and index < spoiled:
            raise MotionError("a frame is damaged.")
        return real(self, index)

    monkeypatch.setattr(samples.SyntheticClips, "__getitem__", damaged)
    values["validation"] = {
        "every": 1, "clips": 1, "frames": 2, "settings": {"steps": 1, "overlap": 1}
    }  # fmt: skip
    for name, spoiled in (("one", 1), ("all", 99)):
        assert len(train(1, output=tmp_path / name)) == 1
        reasons = json.loads((tmp_path / name / "skipped.json").read_text())
        assert reasons == {"held out: a frame is damaged": min(spoiled, 4)}
        assert (tmp_path / name / "validation.jsonl").exists() == (name == "one")


def test_where_clips_are_prepared_may_change(values, train, tmp_path):
    train(1)
    values["data"]["cache"], values["data"]["workers"] = str(tmp_path / "elsewhere"), 1
    assert len(train(2, resume=True)) == 2
    values["data"]["frames"] = 4
    with pytest.raises(CheckpointError, match="another data"):
        train(3, resume=True)


def test_a_damaged_checkpoint_is_named(train, tmp_path):
    train(2)
    for file, kept in (
        ("model.safetensors", 0.5), ("optimizer.bin", 0.0), ("custom_checkpoint_0.pkl", 0.1), ("run.json", 0.1)
    ):  # fmt: skip
        path = tmp_path / "run" / "checkpoints" / "step-0000002" / file
        whole = path.read_bytes()
        path.write_bytes(whole[: int(kept * len(whole))])
        with pytest.raises(CheckpointError, match="step-0000002 cannot be loaded") as caught:
            train(3, resume=True)
        assert "Delete it" in caught.value.remedy
        path.write_bytes(whole)
    assert len(train(3, resume=True)) == 3


def test_what_cannot_be_written_is_named(train, tmp_path, monkeypatch):
    import accelerate

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").mkdir()
    with pytest.raises(OutputError, match=r"metrics\.jsonl cannot be written"):
        train(1, resume=True)

    def full(self, folder):
        (Path(folder) / "model.safetensors").write_text("half of it")
        raise RuntimeError("[enforce fail at inline_container.cc:820] . No space left on device")

    monkeypatch.setattr(accelerate.Accelerator, "save_state", full)
    with pytest.raises(OutputError, match=r"checkpoint .* cannot be written: .*No space left"):
        train(1, output=tmp_path / "full")
    assert list((tmp_path / "full" / "checkpoints").iterdir()) == []


def test_an_unknown_key_is_told_without_a_traceback(tmp_path):
    (tmp_path / "run.yaml").write_text("output: a\nbase: b\nstepz: 3\n")
    done = subprocess.run(
        [sys.executable, TRAIN, "--config", tmp_path / "run.yaml"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: unknown key stepz.")
