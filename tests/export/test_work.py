"""Operations are counted exactly, at any size of network, without computing anything."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mimicmotion_trt import ExportError
from mimicmotion_trt.doctor.prediction import MIMICMOTION
from mimicmotion_trt.engines import EngineSpec, FlopModel, TensorSpec, network_specs
from mimicmotion_trt.export import networks
from mimicmotion_trt.export.work import count_flops, measure_work
from mimicmotion_trt.training.checkpoints import empty_pose_net, empty_unet, read_config

CELLS = 72 * 128
"""Of a frame of 576x1024."""


@pytest.fixture(scope="module")
def real(golden: Path) -> dict[str, nn.Module]:
    """The full-size networks as engines see them, by the published configs, without memory."""
    from diffusers import AutoencoderKLTemporalDecoder

    folder = golden / "real-size"
    config = {k: v for k, v in read_config(folder / "vae" / "config.json").items() if not k.startswith("_")}
    unet = empty_unet(folder).eval()
    pose_net = empty_pose_net(unet).eval()
    with torch.device("meta"):
        vae: Any = AutoencoderKLTemporalDecoder(**config).eval()
    return {
        "unet": networks.UNetEngine(unet),
        "pose_net": networks.PoseNetEngine(pose_net),
        "vae_encoder": networks.EncoderEngine(vae),
        "vae_decoder": networks.DecoderEngine(vae),
    }


@pytest.fixture(scope="module")
def specs() -> dict[str, EngineSpec]:
    return network_specs(pose_channels=320, token_width=1024, image_size=224)


@pytest.mark.parametrize(
    ("network", "frames"), [("unet", 16), ("pose_net", 2), ("vae_encoder", 1), ("vae_decoder", 2)]
)
def test_a_full_size_call_costs_what_predictions_say(real, specs, network, frames):
    module, work = real[network], MIMICMOTION.works[network]
    meta = {name: value.to("meta") for name, value in (*module.named_parameters(), *module.named_buffers())}
    counted = count_flops(module, meta, specs[network], (1, frames, 72, 128))
    assert counted == work.flops(frames=frames, cells=CELLS)


def test_coefficients_are_found_exactly(real, specs):
    assert measure_work("pose_net", real["pose_net"], specs["pose_net"]) == MIMICMOTION.works["pose_net"]


def test_the_numbers_that_everything_is_compared_with():
    """51.2 TFLOP for 16 frames before 3.8 % of it are folded away; 6.9 a frame decoded."""
    assert MIMICMOTION.works["unet"].flops(frames=16, cells=CELLS) == pytest.approx(
        51.2e12 * 0.962, rel=0.002
    )
    assert MIMICMOTION.works["unet"].flops(frames=72, cells=CELLS) == pytest.approx(222e12, rel=0.002)
    assert MIMICMOTION.works["vae_decoder"].flops(cells=CELLS) == pytest.approx(6.9e12, rel=0.01)


def test_a_network_that_grows_otherwise_is_refused():
    """Attention from each cell of all frames to all of them: not a network that the formula describes."""

    class Everything(nn.Module):
        def forward(self, pose: torch.Tensor) -> torch.Tensor:
            tokens = pose[:, :1, ::8, ::8].reshape(-1, 1)
            return tokens @ tokens.T

    tensor = TensorSpec("pose", "float32", ("frames", 3, "height", "width"))
    with pytest.raises(ExportError, match="pose_net"):
        measure_work("pose_net", Everything(), EngineSpec((tensor,), (replace(tensor, name="features"),)))


def test_a_picture_costs_the_same_at_any_size_of_video():
    class Picture(nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels @ pixels.transpose(-1, -2)

    tensor = TensorSpec("pixels", "float32", ("batch", 4, 4))
    work = measure_work("image_encoder", Picture(), EngineSpec((tensor,), (tensor,)))
    assert work == FlopModel(0, 2 * 4**3, 0, 0, 0)
