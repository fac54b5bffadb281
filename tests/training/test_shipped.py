"""The shipped bundle `tiny`: small enough, built from the shipped checkpoint, and it animates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mimicmotion_trt import Animator
from mimicmotion_trt.bundles import load_bundle
from mimicmotion_trt.console import Bars
from mimicmotion_trt.training.checkpoints import load_model
from mimicmotion_trt.training.evaluate import DrawnClips, evaluation_settings, score_clips
from mimicmotion_trt.training.metrics import means

MODEL = Path(__file__).parents[2] / "training" / "models" / "tiny"


@pytest.fixture(scope="module")
def animator():
    with Animator.load("tiny", threads=2) as loaded:
        yield loaded


def test_bundle_and_checkpoint_are_under_40_megabytes():
    files = [*load_bundle("tiny").folder.rglob("*"), MODEL / "mimicmotion.safetensors"]
    assert sum(file.stat().st_size for file in files if file.is_file()) < 40e6


def test_the_bundle_is_the_checkpoints():
    """Biases stand in the U-Net's graph as they are; what is multiplied with is reshaped by the export."""
    graph = onnx.load(str(load_bundle("tiny").engine_path("unet"))).graph
    stored = [numpy_helper.to_array(tensor).astype(np.float32) for tensor in graph.initializer]
    state = load_model(MODEL / "base", MODEL / "mimicmotion.safetensors").unet.state_dict()
    for name in (
        "conv_in.bias",
        "conv_out.bias",
        "time_embedding.linear_1.bias",
        "mid_block.resnets.1.spatial_res_block.conv2.bias",
    ):
        assert any(np.array_equal(values.ravel(), state[name]) for values in stored), name


@pytest.mark.slow
def test_it_animates_people_that_it_has_never_seen(animator):
    """A clip of eight frames; `training/evaluate.py` and the model's card tell of more."""
    settings = evaluation_settings(animator, {})
    scored = score_clips(animator, DrawnClips(1, 8, 7, settings.size), settings, Bars())
    scores = means([clip.scores for clip in scored])
    assert scores["psnr"] > scores["psnr_repeat_reference"] + 2
    assert scores["ssim"] > scores["ssim_repeat_reference"]
    assert scores["psnr_vae"] > 26
    assert scores["psnr_vae"] > scores["psnr"]
