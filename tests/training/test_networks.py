"""PoseNet, and SVD's U-Net with pose after its first layer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mimicmotion_trt.training.checkpoints import Model, load_model
from mimicmotion_trt.training.networks import PoseNet, UNet


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """These networks are so small that threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(golden: Path) -> Model:
    return load_model(golden / "tiny" / "svd", golden / "tiny" / "mimicmotion.pth")


def unet_inputs(rows: int = 2, frames: int = 3, high: int = 8, wide: int = 16) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "sample": torch.randn(rows, frames, 8, high, wide, generator=generator),
        "timestep": torch.tensor([1.6, -0.3])[:rows],
        "encoder_hidden_states": torch.randn(rows, 1, 32, generator=generator),
        "added_time_ids": torch.tensor([[6.0, 127.0, 0.0], [6.0, 127.0, 0.02]])[:rows],
    }


@pytest.mark.parametrize(("height", "width"), [(64, 64), (128, 64), (64, 192)])
def test_pose_net_brings_pictures_to_the_size_of_latents(height, width):
    features = PoseNet(out_channels=32)(torch.zeros(2, 3, height, width))
    assert features.shape == (2, 32, height // 8, width // 8)


def test_pose_net_has_the_checkpoints_names():
    names = {f"conv_layers.{index}.{kind}" for index in range(0, 16, 2) for kind in ("weight", "bias")}
    names |= {"final_proj.weight", "final_proj.bias", "scale"}
    assert set(PoseNet().state_dict()) == names


def test_training_begins_at_plain_svd():
    net = PoseNet(out_channels=32)
    assert net.scale.item() == 2
    assert not net(torch.randn(1, 3, 64, 64)).any()
    net.final_proj.weight.data += 1
    assert net(torch.randn(1, 3, 64, 64)).any()


def test_pose_features_count_times_the_scale():
    torch.manual_seed(0)
    net = PoseNet(out_channels=32)
    net.final_proj.weight.data.normal_()
    pose = torch.randn(1, 3, 64, 64)
    once = net(pose)
    net.scale.data *= 3
    torch.testing.assert_close(net(pose), 3 * once)


def test_golden_pose_features(model, golden):
    import numpy as np

    with np.load(golden / "tiny" / "long.npz") as run:
        pose = torch.from_numpy(run["pose_frames"][:2]).float() / 127.5 - 1
        expected = torch.from_numpy(run["pose_features_first2"])
    torch.testing.assert_close(model.pose_net(pose), expected, atol=1e-5, rtol=1e-5)


def test_no_pose_is_a_pose_of_zeros(model):
    inputs = unet_inputs()
    with torch.inference_mode():
        without = model.unet(**inputs)[0]
        zeros = model.unet(**inputs, pose=torch.zeros(2, 3, 32, 8, 16))[0]
    assert torch.equal(without, zeros)


def test_without_pose_it_is_diffusers_own_unet(model, golden):
    from diffusers import UNetSpatioTemporalConditionModel

    config = json.loads((golden / "tiny" / "svd" / "unet" / "config.json").read_text())
    original = UNetSpatioTemporalConditionModel.from_config(config).eval()
    original.load_state_dict(model.unet.state_dict(), strict=True)
    inputs = unet_inputs()
    with torch.inference_mode():
        ours, theirs = model.unet(**inputs)[0], original(**inputs, return_dict=False)[0]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_pose_is_added_to_the_first_layers_output(model):
    """So features that equal what a change of `conv_in`'s bias adds have its effect."""
    inputs = unet_inputs()
    shift = torch.linspace(-1, 1, 32)
    pose = shift[None, None, :, None, None].expand(2, 3, 32, 8, 16)
    bias = model.unet.conv_in.bias
    with torch.inference_mode():
        by_pose = model.unet(**inputs, pose=pose)[0]
        bias.data += shift
        by_bias = model.unet(**inputs)[0]
        bias.data -= shift
    torch.testing.assert_close(by_pose, by_bias, atol=1e-5, rtol=1e-4)
    assert not torch.equal(by_pose, model.unet(**inputs)[0])


def test_pose_is_forgotten_after_a_failure(model):
    inputs = unet_inputs(rows=1, frames=1)
    with torch.inference_mode():
        expected = model.unet(**inputs)[0]
        with pytest.raises(RuntimeError):
            model.unet(**inputs, pose=torch.ones(1, 1, 31, 8, 16))
        assert torch.equal(model.unet(**inputs)[0], expected)


def test_its_keys_are_svds():
    from diffusers import UNetSpatioTemporalConditionModel

    small = {"block_out_channels": (32, 64), "num_attention_heads": (2, 2), "layers_per_block": 1,
             "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
             "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal")}  # fmt: skip
    with torch.device("meta"):
        ours, theirs = UNet(**small), UNetSpatioTemporalConditionModel(**small)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }
