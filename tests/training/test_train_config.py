"""Configs: what is taken, what is refused and by which name, and the files that are shipped."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest

from mimicmotion_trt.errors import SettingsError
from mimicmotion_trt.training.config import OptimizerConfig, load_config
from mimicmotion_trt.training.loop import learning_rate, make_optimizer

CONFIGS = Path(__file__).parents[2] / "training" / "configs"


def load(folder: Path, text: str):
    path = folder / "run.yaml"
    path.write_text("output: out\nbase: somewhere\n" + text)
    return load_config(path)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_are_sound(path):
    config = load_config(path)
    if config.recipe is not None:
        assert Path(config.recipe).is_file()


def test_stages_of_the_small_model_follow_one_another():
    names = ("-landmarks", "-vae", "-colours", "", "-together", "-longer", "-finish")
    configs = [load_config(CONFIGS / f"tiny{name}.yaml") for name in names]
    landmarks, vae, colours, motion, together, longer, finish = configs
    assert vae.base is None
    assert vae.vae.landmarks == f"{landmarks.output}/final/landmarks.safetensors" == together.vae.landmarks
    assert colours.base == f"{vae.output}/final/base"
    assert motion.base == together.base == f"{colours.output}/final/base"
    assert motion.checkpoint is None
    assert together.checkpoint == f"{motion.output}/final/mimicmotion.safetensors"
    assert longer.base == finish.base == f"{together.output}/final/base"
    assert longer.checkpoint == f"{together.output}/final/mimicmotion.safetensors"
    assert finish.checkpoint == f"{longer.output}/final/mimicmotion.safetensors"
    assert len({config.output for config in configs}) == len(configs)
    assert {config.data.style for config in configs} == {"doll"}


def test_a_file_that_extends_another(tmp_path):
    (tmp_path / "below.yaml").write_text("output: a\nbase: b\noptimizer: {lr: 1e-3, warmup: 5}\n")
    (tmp_path / "above.yaml").write_text("extends: below.yaml\noutput: c\noptimizer: {warmup: 7}\n")
    config = load_config(tmp_path / "above.yaml")
    assert (config.output, config.base) == ("c", "b")
    assert (config.optimizer.lr, config.optimizer.warmup) == (1e-3, 7)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("stepz: 1", "stepz"),
        ("optimizer: {learning: 1}", "optimizer.learning"),
        ("steps: 1.5", "steps"),
        ("steps: true", "steps"),
        ("steps: 0", "steps"),
        ("stage: unet", "stage"),
        ("precision: fp8", "precision"),
        ("data: {height: 100}", "data.height"),
        ("objective: {drop_condition: 2}", "objective.drop_condition"),
        ("objective: {hand_threshold: high}", "objective.hand_threshold"),
        ("optimizer: {betas: [0.9]}", "optimizer.betas"),
        ("optimizer: 3", "optimizer"),
        ("validation: {settings: {stepz: 3}}", "settings.stepz"),
        ("stage: vae\nlora: {rank: 4}", "lora"),
        ("validation: {settings: {overlap: 20}}\ndata: {frames: 3}", "settings.overlap"),
        ("data: {frames: 5}", "settings.overlap"),  # the default is 6
        ("lora: {targets: '('}", "lora.targets"),
        ("stage: decoder\nvae: {crop: 192}", "vae.crop"),
        ("data: {clips: 1000001}", "data.clips"),
        ("extends: run.yaml", "extends"),
        ("- a", "config"),
    ],
)
def test_what_is_refused(tmp_path, text, field):
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, text)
    assert caught.value.field == field


def test_sampling_settings_matter_only_where_clips_are_sampled(tmp_path):
    for text in ("validation: {every: 0}", "stage: vae"):
        load(tmp_path, f"{text}\ndata: {{frames: 3}}")


def test_devices_are_configured_as_accelerate_reads_it():
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.utils import DeepSpeedPlugin

    from mimicmotion_trt.training.loop import configure_deepspeed

    ddp, fsdp, deepspeed = (
        load_config_from_file(str(CONFIGS / "accelerate" / f"{name}.yaml"))
        for name in ("ddp", "fsdp", "deepspeed")
    )
    assert [c.distributed_type.value for c in (ddp, fsdp, deepspeed)] == ["MULTI_GPU", "FSDP", "DEEPSPEED"]
    assert fsdp.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"
    plugin = DeepSpeedPlugin(zero_stage=deepspeed.deepspeed_config["zero_stage"])
    assert plugin.is_auto("train_micro_batch_size_per_gpu")  # what accelerate refuses without a data loader
    config = replace(load_config(CONFIGS / "finetune-svd.yaml"), batch=2)
    configure_deepspeed(plugin, config)
    assert plugin.get_value("train_micro_batch_size_per_gpu") == 2
    assert plugin.get_value("gradient_accumulation_steps") == config.accumulation
    assert plugin.get_value("gradient_clipping") == config.optimizer.clip_norm


def test_eight_bit_adam_is_given_the_configs_values(monkeypatch):
    given = {}

    def adam(parameters, **values):
        given.update(values, parameters=list(parameters))
        return "an optimizer"

    monkeypatch.setitem(sys.modules, "bitsandbytes", types.ModuleType("bitsandbytes"))
    optim = types.ModuleType("bitsandbytes.optim")
    monkeypatch.setattr(optim, "AdamW8bit", adam, raising=False)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", optim)
    config = OptimizerConfig(name="adamw8bit", lr=3e-4, betas=(0.8, 0.9), eps=1e-7, weight_decay=0.2)
    assert make_optimizer(config, iter(["weights"])) == "an optimizer"
    assert given == {
        "parameters": ["weights"], "lr": 3e-4, "betas": (0.8, 0.9), "eps": 1e-7, "weight_decay": 0.2
    }  # fmt: skip


def test_learning_rates(tmp_path):
    text = "optimizer: {lr: 1.0, warmup: 3, schedule: cosine, final_lr: 0.5}"
    rates = [learning_rate(load(tmp_path, text).optimizer, step, 11) for step in range(12)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[7] == pytest.approx(0.75)
    assert rates[11] == pytest.approx(0.5)
    constant = load(tmp_path, "optimizer: {lr: 2.0}").optimizer
    assert learning_rate(constant, 99, 11) == 2.0
