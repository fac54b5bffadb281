"""Configs: what is taken, what is refused and by which name, and the files that are shipped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mimicmotion_trt.errors import SettingsError
from mimicmotion_trt.training.config import load_config
from mimicmotion_trt.training.optimizer import learning_rate

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
    vae, colours, motion = (load_config(CONFIGS / f"tiny{s}.yaml") for s in ("-vae", "-colours", ""))
    assert vae.base is None
    assert colours.base == f"{vae.output}/final/base"
    assert motion.base == f"{colours.output}/final/base"
    pictures = {replace(config.data, clips=1) for config in (vae, colours, motion)}
    assert len(pictures) == 1  # of the same kind, as many as each stage needs


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
        ("- a", "config"),
    ],
)
def test_what_is_refused(tmp_path, text, field):
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, text)
    assert caught.value.field == field


def test_learning_rates(tmp_path):
    text = "optimizer: {lr: 1.0, warmup: 3, schedule: cosine, final_lr: 0.5}"
    rates = [learning_rate(load(tmp_path, text).optimizer, step, 11) for step in range(12)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[7] == pytest.approx(0.75)
    assert rates[11] == pytest.approx(0.5)
    constant = load(tmp_path, "optimizer: {lr: 2.0}").optimizer
    assert learning_rate(constant, 99, 11) == 2.0
