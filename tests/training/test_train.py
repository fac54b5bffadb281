"""The training loop, in short runs on the golden data's small networks."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from mimicmotion_trt.engines.weight_table import LayerWeight
from mimicmotion_trt.errors import MotionError
from mimicmotion_trt.lora import LoraFile
from mimicmotion_trt.training.checkpoints import load_model, read_state
from mimicmotion_trt.training.progress import Display

ROOT = Path(__file__).parents[2]
TRAIN = ROOT / "training" / "train.py"


def test_lines_tell_what_is_promised(two_steps):
    line, second = two_steps.lines()
    assert set(line) == {
        "step", "loss", "x0_error", "sigma", "grad_norm", "lr", "data_seconds", "step_seconds", "prepare_seconds"
    }  # fmt: skip
    assert set(line) - set(second) == {"prepare_seconds"}
    assert 0 <= line["data_seconds"] < line["step_seconds"]
    assert line["lr"] == pytest.approx(1e-3 / 3)


def test_every_step_shows_how_the_run_goes(two_steps):
    assert [(done, total) for done, total, _ in two_steps.shown] == [(1, 2), (2, 2)]
    loss, rate, clips, left = two_steps.shown[1][2].split("  ")
    assert loss == f"loss {two_steps.lines()[1]['loss']:.4g}"
    assert rate == "rate 0.00067"
    assert clips.endswith(" clips/s")
    assert left == "0:00:00 left"


def test_without_a_terminal_there_is_a_line_every_so_many_steps(capsys):
    with Display("step", 2) as display:
        display.say("begun")
        for step in range(1, 6):
            display.show(step, 5, f"loss {step}")
    assert capsys.readouterr().err.splitlines() == [
        "begun", "step 2/5  loss 2", "step 4/5  loss 4", "step 5/5  loss 5"
    ]  # fmt: skip


def test_the_loss_falls_on_clips_seen_again_and_again(runs, tmp_path):
    fixed = {"log_sigma_mean": 3.0, "log_sigma_std": 0.0, "noise_aug": False, "drop_condition": 0.0}
    constant = {"lr": 5e-3, "schedule": "constant", "warmup": 0}
    run = runs.train(tmp_path, 12, objective=fixed, optimizer=constant, save_every=12)
    losses = [line["loss"] for line in run.lines()]
    assert np.mean(losses[-4:]) < 0.7 * np.mean(losses[:4])


def test_final_weights_are_a_checkpoint(two_steps, golden):
    for name in ("mimicmotion.pth", "mimicmotion.safetensors"):
        model = load_model(golden / "tiny" / "svd", two_steps.folder / "final" / name)
        assert model.pose_net.final_proj.weight.abs().max() > 0  # it has learned something


def test_what_is_kept_beside_the_final_weights_is_what_their_bundle_needs(two_steps):
    from mimicmotion_trt.export.options import trained_for

    assert trained_for(two_steps.folder / "final" / "mimicmotion.safetensors") == {
        "sizes": ((64, 64),),
        "segment": 3,
        "defaults": {
            "canvas": 64, "steps": 3, "guidance": [1.5, 1.5], "overlap": 1, "sigma_min": 0.002, "sigma_max": 50.0
        },
    }  # fmt: skip


@pytest.mark.slow
def test_the_command_at_the_end_of_a_run_builds_a_bundle_of_what_was_trained(
    two_steps, tmp_path, monkeypatch
):
    from mimicmotion_trt import Animator
    from mimicmotion_trt.export.build_engines import app

    monkeypatch.chdir(tmp_path)
    program, command, *words = shlex.split(two_steps.said[-1].partition("Next: ")[2])
    assert (program, command) == ("mimicmotion-trt", "build")
    done = CliRunner().invoke(app, [*words, "--backend", "torch"])
    assert done.exit_code == 0, done.output
    with Animator.load(Path("bundles", two_steps.folder.name), threads=1) as animator:
        assert animator.manifest.sizes == ((64, 64),)
        usual = animator.settings(frames=4)
        assert (usual.segment, usual.canvas, usual.steps, usual.guidance) == (3, 64, 3, (1.5, 1.5))
        result = animator.animate(ROOT / "demo" / "dancer.png", ROOT / "demo" / "balance.npz", usual).result()
        assert result.frames().shape == (4, 64, 64, 3)


def test_validation_samples_through_the_runtimes_loop(runs, tmp_path, monkeypatch):
    from mimicmotion_trt import Animator

    asked, sample = [], Animator.sample

    def keep(self: Animator, image: Any, poses: Any, settings: Any) -> Any:
        asked.append(settings)
        return sample(self, image, poses, settings)

    monkeypatch.setattr(Animator, "sample", keep)
    settings = {"steps": 2, "guidance": [1.5, 1.5], "overlap": 1, "sigma_max": 50.0}
    runs.trainer(tmp_path, validation={"clips": 2, "frames": 2, "settings": settings}).stage.validate()
    assert [(one.steps, one.sigma_max, one.guidance) for one in asked] == [(2, 50.0, (1.5, 1.5))] * 2


def test_what_a_validation_measures(two_steps):
    (line,) = two_steps.lines("validation")
    assert set(line) == {
        "step", "psnr", "ssim", "psnr_repeat_reference", "ssim_repeat_reference", "hand_psnr", "head_psnr",
        "sharpness", "sharpness_heads", "sharpness_eyes", "sharpness_hands", "flicker", "border_jump",
    }  # fmt: skip
    assert isinstance(line["border_jump"], float)  # of two segments


def test_adapters_train_alone_and_can_be_folded_in(runs, golden, tmp_path):
    checkpoint = golden / "tiny" / "mimicmotion.pth"
    before, kept = read_state(checkpoint), {}
    for name, merged in (("folded", True), ("apart", False)):
        lora = {"rank": 2, "alpha": 4, "merge": merged}
        run = runs.train(tmp_path / name, 2, lora=lora, checkpoint=str(checkpoint), ema=None)
        kept[name] = run.weights("mimicmotion.pth")
    adapters = read_state(tmp_path / "folded" / "final" / "lora.safetensors")
    load_model(golden / "tiny" / "svd", tmp_path / "folded" / "final" / "mimicmotion.pth")
    after = kept["folded"]
    changed = {key for key in before if key.startswith("unet.") and not torch.equal(before[key], after[key])}
    assert changed == {key.replace(".lora_A.weight", ".weight") for key in adapters if "lora_A" in key}
    key = min(changed)
    down, up = (adapters[key.replace(".weight", f".lora_{side}.weight")] for side in "AB")
    torch.testing.assert_close(after[key], before[key] + 4 / 2 * up @ down)
    assert all(torch.equal(before[key], kept["apart"][key]) for key in changed)
    table = {
        key.removeprefix("unet.").removesuffix(".weight"): LayerWeight(tuple(value.shape))
        for key, value in before.items()
        if key.startswith("unet.") and value.ndim > 1
    }
    read = LoraFile.read(tmp_path / "folded" / "final" / "lora.safetensors", table)
    delta = read.layers[key.removeprefix("unet.").removesuffix(".weight")].delta(1.0)
    torch.testing.assert_close(after[key], before[key] + torch.from_numpy(delta).float())


def test_adapters_learn_from_recordings(runs, golden, recordings, tmp_path):
    """What docs/guide/training.md does with the shipped model, as small as can be."""
    from mimicmotion_trt.export.options import trained_for

    source = "mimicmotion_trt.training.footage:open_clips"
    run = runs.train(
        tmp_path / "run", 1, ema=None, lora={"rank": 2, "alpha": 2},
        checkpoint=str(golden / "tiny" / "mimicmotion.pth"),
        data={"source": source, "path": str(recordings), "cache": str(tmp_path / "cache")},
        validation={"every": 1, "clips": 1, "frames": 3, "settings": {"steps": 1, "overlap": 1}},
    )  # fmt: skip
    assert run.lines("validation")[0]["psnr"] > 0
    assert "lora.safetensors" in {path.name for path in (run.folder / "final").iterdir()}
    assert trained_for(run.folder / "final" / "mimicmotion.pth")["defaults"]["steps"] == 1


def test_the_moving_average_is_what_is_kept(runs, one_step, two_steps, tmp_path):
    """After two steps: diffusers' decay is 0 in the first and 2/11 in the second, 0.9 much later."""
    one, average = one_step.weights(), two_steps.weights()
    two = runs.train(tmp_path, 2, ema=None).weights()
    for key, value in average.items():
        torch.testing.assert_close(value, one[key] * 2 / 11 + two[key] * 9 / 11, rtol=1e-5, atol=1e-7)
    assert not torch.equal(average["unet.conv_in.weight"], two["unet.conv_in.weight"])


def test_the_files_for_comfyui_load_as_its_nodes_load_them(one_step, golden):
    """kijai/ComfyUI-MimicMotionWrapper, nodes.py: the U-Net key by key, PoseNet with what fits of its file."""
    from accelerate import init_empty_weights
    from accelerate.utils import set_module_tensor_to_device
    from diffusers import UNetSpatioTemporalConditionModel
    from safetensors.torch import load_file

    from mimicmotion_trt.training.networks import PoseNet

    folder = one_step.folder / "final" / "comfyui"
    config = UNetSpatioTemporalConditionModel.load_config(golden / "tiny" / "svd" / "unet")
    with init_empty_weights():
        unet = UNetSpatioTemporalConditionModel.from_config(config)
    state = load_file(folder / "MimicMotionMergedUnet_1-1-fp16.safetensors")
    for key in state:
        set_module_tensor_to_device(unet, key, dtype=torch.float16, device="cpu", value=state[key])
    pose_net = PoseNet(unet.config.block_out_channels[0])
    found = pose_net.load_state_dict(load_file(folder / "mimic_motion_pose_net.safetensors"), strict=False)
    assert not found.missing_keys
    assert not found.unexpected_keys
    whole = one_step.weights()
    for prefix, network in (("unet.", unet), ("pose_net.", pose_net.half())):
        for key, value in network.state_dict().items():
            assert not value.is_meta
            assert torch.equal(value, whole[prefix + key].half()), key


def test_accumulation_sees_the_clips_of_a_larger_batch(runs, tmp_path):
    (large,) = runs.train(tmp_path / "large", 1, batch=4).lines()
    (small,) = runs.train(tmp_path / "small", 1, batch=2, accumulation=2).lines()
    assert small["loss"] == pytest.approx(large["loss"], rel=1e-5)
    assert small["grad_norm"] == pytest.approx(large["grad_norm"], rel=1e-4)


@pytest.mark.parametrize(
    ("change", "loss", "norm"),
    [({"gradient_checkpointing": True}, 1e-5, 1e-3), ({"precision": "bf16"}, 0.05, 0.1)],
)
def test_cheaper_memory_gives_nearly_the_same_step(runs, one_step, tmp_path, change, loss, norm):
    (plain,), (cheap,) = one_step.lines(), runs.train(tmp_path, 1, **change).lines()
    assert cheap["loss"] == pytest.approx(plain["loss"], rel=loss)
    assert cheap["grad_norm"] == pytest.approx(plain["grad_norm"], rel=norm)


def test_gradients_that_are_not_finite_change_nothing(runs, one_step, tmp_path, monkeypatch):
    from mimicmotion_trt.training import objective

    real = objective.clip_losses
    calls = []

    def once_infinite(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        return real(*arguments) * (float("inf") if len(calls) in (3, 4) else 1.0)  # two calls in each step

    monkeypatch.setattr(objective, "clip_losses", once_infinite)
    run = runs.train(tmp_path, 2, ema=None)
    assert run.lines()[1]["loss"] is None
    kept, before = run.weights(), one_step.weights()
    assert all(torch.equal(kept[key], before[key]) for key in before)


def run_in_two_processes(values: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    (folder / "run.yaml").write_text(json.dumps({**values, "output": str(folder / "run")}))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, TRAIN, "--config", folder / "run.yaml"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_train_a_vae_of_which_a_part_idles(runs, tmp_path):
    """With one layer a block the middle's attention has weights that nothing runs."""
    vae = {"frames": 1, "crop": 64}
    steps = run_in_two_processes({**runs.values, "stage": "vae", "steps": 3, "vae": vae}, tmp_path)
    assert [line["step"] for line in steps] == [1, 2, 3]


@pytest.mark.slow
def test_two_processes_see_the_clips_of_a_larger_batch(runs, tmp_path):
    together = run_in_two_processes({**runs.values, "steps": 3}, tmp_path)
    alone = runs.train(tmp_path / "alone", 3, steps=3, batch=4).lines()
    assert [line["loss"] for line in together] == pytest.approx([line["loss"] for line in alone], rel=1e-3)
    # Later norms are rounding: at 64x64 the deepest level is one latent, whose group norm sees two numbers.
    assert together[0]["grad_norm"] == pytest.approx(alone[0]["grad_norm"], rel=1e-4)


def test_damaged_clips_that_are_held_out_do_not_end_the_run(runs, tmp_path, monkeypatch):
    from mimicmotion_trt.training.data import samples

    real = samples.SyntheticClips.__getitem__

    def damaged(self: samples.SyntheticClips, index: int) -> samples.Sample:
        if self.first:
            raise MotionError("a frame is damaged.")
        return real(self, index)

    monkeypatch.setattr(samples.SyntheticClips, "__getitem__", damaged)
    validation = {"every": 1, "clips": 1, "frames": 2, "settings": {"steps": 1, "overlap": 1}}
    assert len(runs.train(tmp_path, 1, validation=validation).lines()) == 1
    assert json.loads((tmp_path / "skipped.json").read_text()) == {"held out: a frame is damaged": 4}
    assert not (tmp_path / "validation.jsonl").exists()


def test_an_unknown_key_is_told_without_a_traceback(tmp_path):
    (tmp_path / "run.yaml").write_text("output: a\nbase: b\nstepz: 3\n")
    done = subprocess.run(
        [sys.executable, TRAIN, "--config", tmp_path / "run.yaml"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: unknown key 'stepz'.")
