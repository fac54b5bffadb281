"""The plain PyTorch loop beside the bundle, under settings that the golden runs do not have."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from torch_model import TorchLoop

from mimicmotion_trt.denoise.noise import spread
from mimicmotion_trt.media.picture import read_picture
from mimicmotion_trt.training.checkpoints import load_model


@pytest.fixture(scope="module")
def plain(golden, animator) -> TorchLoop:
    """The loop on the golden weights: its cross-attention is diffusers' own, nothing is folded."""
    weights = golden / "tiny"
    return TorchLoop(load_model(weights / "svd", weights / "mimicmotion.pth"), animator.manifest.image)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"pose_strength": 1.7, "image_strength": 0.4},
        {"pose_strength": 0, "image_strength": 0},
        {"pose_end": 0.5, "guidance": (1.0, 1.0)},
        {"pose_start": 0.4, "pose_end": 0.8, "pose_strength": 2.5, "image_strength": 3.0},
    ],
    ids=lambda settings: "-".join(settings) or "plain",
)
def test_strengths_are_those_of_the_plain_loop(plain, animator, golden_run, settings: dict[str, Any]):
    """Attention to one token is folded into the engines, where a bias is added after the token was scaled."""
    run = golden_run("single")
    chosen = replace(animator.resolve(run.settings), steps=4, **settings)
    noise = np.ascontiguousarray(run.initial_latents[0])
    found = animator.sample(run.picture, run.poses, chosen, initial_latents=noise)
    expected = plain.sample(read_picture(run.picture), run.poses, chosen, spread(noise, len(run.poses)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4 * np.abs(expected).max())
