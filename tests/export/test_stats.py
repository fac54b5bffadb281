"""What a network costs is counted without computing anything, and what it is made of from the graph alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from mimicmotion_trt import ExportError
from mimicmotion_trt.denoise.cost import MIMICMOTION
from mimicmotion_trt.engines import EngineSpec, FlopModel, GraphStats, TensorSpec, network_specs
from mimicmotion_trt.export import networks
from mimicmotion_trt.export.stats import count_flops, fit_flops, graph_stats
from mimicmotion_trt.training.checkpoints import empty_pose_net, empty_unet, read_config

PIXELS = 72 * 128
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
    assert counted == work.total(frames=frames, pixels=PIXELS)


def test_coefficients_are_found_exactly(real, specs):
    assert fit_flops("pose_net", real["pose_net"], specs["pose_net"]) == MIMICMOTION.works["pose_net"]


def test_the_numbers_that_everything_is_compared_with():
    """51.2 TFLOP for 16 frames before 3.8 % of it are folded away; 6.9 a frame decoded."""
    assert MIMICMOTION.works["unet"].total(frames=16, pixels=PIXELS) == pytest.approx(
        51.2e12 * 0.962, rel=0.002
    )
    assert MIMICMOTION.works["unet"].total(frames=72, pixels=PIXELS) == pytest.approx(222e12, rel=0.002)
    assert MIMICMOTION.works["vae_decoder"].total(pixels=PIXELS) == pytest.approx(6.9e12, rel=0.01)


def test_a_network_that_grows_otherwise_is_refused():
    """Attention from each pixel of all frames to all of them: not a network that the formula describes."""

    class Everything(nn.Module):
        def forward(self, pose: torch.Tensor) -> torch.Tensor:
            tokens = pose[:, :1, ::8, ::8].reshape(-1, 1)
            return tokens @ tokens.T

    tensor = TensorSpec("pose", "float32", ("frames", 3, "height", "width"))
    with pytest.raises(ExportError, match="pose_net"):
        fit_flops("pose_net", Everything(), EngineSpec((tensor,), (replace(tensor, name="features"),)))


def test_a_picture_costs_the_same_at_any_size_of_video():
    class Picture(nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels @ pixels.transpose(-1, -2)

    tensor = TensorSpec("pixels", "float32", ("batch", 4, 4))
    work = fit_flops("image_encoder", Picture(), EngineSpec((tensor,), (tensor,)))
    assert work == FlopModel(0, 2 * 4**3, 0, 0, 0)


def graph(dtype: type, kind: int) -> onnx.ModelProto:
    """y = MatMul(Transpose(Attention(x, x, x)), w), reshaped by x's own size, and one cast."""
    weights = numpy_helper.from_array(np.eye(8, dtype=dtype), "w")
    nodes = [
        helper.make_node("Attention", ["x", "x", "x"], ["a"], q_num_heads=2, kv_num_heads=2),
        helper.make_node("LayerNormalization", ["a", "scale"], ["n"]),
        helper.make_node("Transpose", ["n"], ["t"], perm=[0, 1, 2]),
        helper.make_node("MatMul", ["t", "w"], ["m"]),
        helper.make_node("MatMul", ["m", "m"], ["square"]),  # no weights: not a product of the network
        helper.make_node("Shape", ["x"], ["size"]),
        helper.make_node("Gather", ["size", "zero"], ["rows"]),
        helper.make_node("Cast", ["square"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Softmax", ["wide"], ["y"]),
    ]
    tensors = [weights, numpy_helper.from_array(np.ones(8, dtype), "scale")]
    tensors.append(numpy_helper.from_array(np.array([0]), "zero"))
    x = helper.make_tensor_value_info("x", kind, [1, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 8])
    return helper.make_model(helper.make_graph(nodes, "g", [x], [y], tensors))


@pytest.mark.parametrize(("dtype", "kind", "wide"), [(np.float16, 10, 0), (np.float32, 1, 1)])
def test_every_kind_is_counted(dtype, kind, wide):
    assert graph_stats(graph(dtype, kind)) == GraphStats(
        operators=9, products=1, wide=wide, attention=1, softmax=1, norms=1, transposes=1, casts=1, shapes=2
    )


def test_weights_behind_a_cast_multiply_in_what_they_are_cast_to():
    """Stored in two bytes, used in four."""
    model = graph(np.float16, TensorProto.FLOAT16)
    model.graph.initializer[0].name = "w.float16"
    model.graph.node.insert(0, helper.make_node("Cast", ["w.float16"], ["w"], to=TensorProto.FLOAT))
    audit = graph_stats(model)
    assert (audit.wide, audit.casts) == (1, 1)
