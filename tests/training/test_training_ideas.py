"""The experiment's arithmetic and its configs; the training itself is `test_train`'s."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from mimicmotion_trt.errors import OutputError
from mimicmotion_trt.training.config import load_config
from mimicmotion_trt.training.synthetic import make_clip

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "training_ideas.py"
specification = importlib.util.spec_from_file_location("training_ideas", SCRIPT)
ideas = importlib.util.module_from_spec(specification)
sys.modules["training_ideas"] = ideas  # its dataclasses look for their module
specification.loader.exec_module(ideas)

PLAN = ideas.Plan("base", 10, (64, 128), 4, 2, 8, 2, 1, 1)


def test_arms_differ_in_their_switch_only(tmp_path):
    configs = {}
    for arm in ideas.ARMS:
        (tmp_path / "arm.yaml").write_text(json.dumps(ideas.reduced(PLAN, arm, 5, tmp_path)))
        configs[arm] = load_config(tmp_path / "arm.yaml")
    full = configs["full"]
    assert full.seed == 5
    assert full.data.confidence_aware
    assert full.objective.hand_weight == 10
    assert configs["no confidence"] == replace(full, data=replace(full.data, confidence_aware=False))
    assert configs["no hand loss"] == replace(full, objective=replace(full.objective, hand_weight=1.0))


def test_worse_keypoints_say_that_they_are_unsure():
    clip = make_clip(3, 4, 128, 64)
    noisy = ideas.worsened(clip.observed, clip.truth, np.random.default_rng(0))
    moved = np.abs(noisy.hands - clip.observed.hands).max(axis=-1) > 1e-6
    assert 0.15 < moved.mean() < 0.45
    assert (noisy.hands_score[moved] <= 0.6).all()
    np.testing.assert_array_equal(noisy.hands_score[~moved], clip.observed.hands_score[~moved])
    assert (moved == moved[0]).all()  # in a whole clip


def test_differences_are_taken_seed_by_seed():
    def scores(value):
        return {**dict.fromkeys(ideas.MEASURES, value), "hand_psnr": None}

    arms = {"full": [scores(3.0), scores(5.0)], "no hand loss": [scores(1.0), scores(4.0)]}
    told = ideas.differences(arms)["no hand loss"]
    assert told["psnr"] == [2.0, 1.0]
    assert told["hand_psnr"] == [None, None]
    assert ideas.spread(told["psnr"]) == "1.500 ± 0.707"
    assert ideas.spread(told["hand_psnr"]) == "–"


def test_an_arm_that_is_done_is_kept(tmp_path):
    folder = tmp_path / "no-hand-loss-2"
    folder.mkdir()
    (folder / "scores.json").write_text(json.dumps({"plan": asdict(PLAN), "scores": {"psnr": 1.5}}))
    assert ideas.run_arm(PLAN, "no hand loss", 2, tmp_path) == {"psnr": 1.5}
    with pytest.raises(OutputError, match="another plan"):
        ideas.run_arm(replace(PLAN, steps=11), "no hand loss", 2, tmp_path)
