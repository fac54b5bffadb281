"""What the networks are shown while they learn: conditions kept or dropped, and noise on the reference picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mimicmotion_trt.training.config import Config, DataConfig, ObjectiveConfig, ValidationConfig
from mimicmotion_trt.training.stages.motion import MotionNetworks, MotionStage


@pytest.fixture
def config(golden: Path, tmp_path: Path) -> Config:
    data = DataConfig(clips=2, characters=2, frames=3, height=64, width=64, canvas=64, workers=0)
    objective = ObjectiveConfig(noise_aug_mean=-1.0)
    return Config(
        output=str(tmp_path), base=str(golden / "tiny" / "svd"), data=data, objective=objective,
        checkpoint=str(golden / "tiny" / "mimicmotion.pth"), validation=ValidationConfig(every=0),
    )  # fmt: skip


def begin(config: Config) -> MotionStage:
    stage = MotionStage(config, torch.device("cpu"), Path(config.output))
    stage.network.eval()
    return stage


@torch.no_grad()
def test_a_clip_without_conditions_is_shown_none(config):
    """As in inference's unconditional branch: no features at all, which black pictures would not give."""
    stage = begin(config)
    batch = {**stage.batch([0, 1]), "keep": torch.tensor([True, False])}
    noisy = batch["latents"] * stage.scale + batch["noise"]
    latents, timestep, embedding, ids, poses, keep = stage.inputs(batch, noisy, torch.ones(2))
    assert embedding[0].any()
    assert not embedding[1].any()
    assert latents[0, :, 4:].any()
    assert not latents[1, :, 4:].any()

    class Shown(torch.nn.Module):
        def forward(self, *inputs):
            return inputs[-1:]  # the pose features

    pose_net = stage.motion.pose_net
    features = MotionNetworks(Shown(), pose_net)(latents, timestep, embedding, ids, poses, keep)
    torch.testing.assert_close(features[0], pose_net(poses[0].permute(0, 3, 1, 2) / 127.5 - 1))
    assert features[0].any()
    assert not features[1].any()
    assert pose_net(-torch.ones(1, 3, 64, 64)).any()


@torch.no_grad()
def test_noise_is_added_to_the_reference_before_the_vae(config):
    """And the network is told how much: the third of SVD's micro-conditions."""
    quiet = replace(config.objective, noise_aug=False)
    for objective in (config.objective, quiet):
        stage = begin(replace(config, objective=objective))
        batch = {**stage.batch([0]), "keep": torch.tensor([True])}
        latents, _, _, ids, _, _ = stage.inputs(batch, batch["latents"], torch.ones(1))
        strength = batch["noise_aug"][:, None, None, None] if objective.noise_aug else 0.0
        assert not objective.noise_aug or 0.1 < float(strength) < 2
        picture = batch["reference"] + strength * batch["picture_noise"]
        expected = stage.encoders.mode(picture)[:, None].expand(-1, latents.shape[1], -1, -1, -1)
        torch.testing.assert_close(latents[:, :, 4:], expected, rtol=1e-3, atol=2e-2)
        assert float(ids[0, 2]) == pytest.approx(float(batch["noise_aug"][0]))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_faces_of_so_many_drivers_are_not_drawn(config, share):
    """Faces are drawn in white, which nothing else of a pose picture is; the reference keeps its own."""
    stage = begin(replace(config, objective=replace(config.objective, drop_face=share)))
    stage.prepare(range(2), lambda *_: None)
    drawn = [stage.clip(position)["poses"] for position in range(40)]
    white = np.array([(pictures == 255).all(axis=-1).any(axis=(1, 2)) for pictures in drawn])
    assert white[:, 0].all()
    assert white[:, 1:].any(axis=1).mean() == pytest.approx(1 - share, abs=0.3)
    assert share not in (0.0, 1.0) or white[:, 1:].any(axis=1).mean() == 1 - share
