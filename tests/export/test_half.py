"""Networks in float16: statistics in float32, a VAE whose stream may leave float16's range, the bound kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from mimicmotion_trt.engines import EngineSpec, TensorSpec, network_specs
from mimicmotion_trt.engines.onnxruntime_backend import OnnxRuntimeEngine
from mimicmotion_trt.export import networks, proof
from mimicmotion_trt.export.build import BOUNDS
from mimicmotion_trt.export.dialect import ONNXRUNTIME, STANDARD, halve_weights
from mimicmotion_trt.export.graph_audit import audit_graph
from mimicmotion_trt.export.half import Narrow, StableGroupNorm, to_half
from mimicmotion_trt.export.tracing import trace
from mimicmotion_trt.training.checkpoints import Model, load_model

SHAPE = (2, 2, 8, 16)


@pytest.fixture
def model(tiny) -> Model:
    return load_model(tiny.base, tiny.checkpoint)


@pytest.fixture
def specs(model) -> dict[str, EngineSpec]:
    return network_specs(
        pose_channels=model.unet.config["block_out_channels"][0],
        token_width=model.unet.config["cross_attention_dim"],
        image_size=model.image_encoder.config.image_size,
        dtype="float16",
    )


def export(module: torch.nn.Module, name: str, spec: EngineSpec, path: Path) -> Path:
    """The float16 graph of an engine's module in the standard's operators."""
    inputs = proof.cast_inputs(proof.example_inputs(name, spec, SHAPE, seed=0), spec)
    (file,) = trace(to_half(module, name), inputs, spec, path / f"{name}.onnx", STANDARD)
    return file


def test_the_unet_keeps_the_bound_on_a_real_trajectory(model, specs, tmp_path):
    cases = proof.record_trajectory(model, specs["unet"], proof.originals(model))
    sigmas = [case.inputs["latents"][0, 0, :4].std().item() for case in cases]
    assert len(cases) == 5
    assert all(np.isfinite(sigmas))
    file = export(networks.UNetEngine(model.unet), "unet", specs["unet"], tmp_path)
    agreement = proof.compare("unet", file, specs["unet"], cases, BOUNDS["fp16"])
    assert 1e-5 < agreement.rel_l2 < 5e-3
    audit = audit_graph(onnx.load(str(file)))
    assert audit.attention == 20  # all of them, spatial and temporal, one operator each
    assert audit.softmax == 0
    assert audit.wide == 0


def test_float16_is_raised_to_the_opset_that_keeps_statistics_wide(model, specs, tmp_path):
    file = export(networks.UNetEngine(model.unet), "unet", specs["unet"], tmp_path)
    graph = onnx.load(str(file))
    onnx.checker.check_model(graph)
    assert {entry.domain: entry.version for entry in graph.opset_import} == {"": 23}
    norms = [node for node in graph.graph.node if node.op_type == "GroupNormalization"]
    assert len(norms) == 67
    assert all(
        onnx.helper.get_node_attr_value(node, "stash_type") == onnx.TensorProto.FLOAT for node in norms
    )
    assert not [node for node in graph.graph.node if node.op_type == "InstanceNormalization"]


def test_statistics_of_large_values_are_float32():
    """Squares of 3e4 are beyond float16; the norm of them is not."""
    norm = torch.nn.GroupNorm(2, 4)
    x = torch.randn(1, 4, 8, 8) * 3e3 + 2e4
    expected = norm(x.half().float())
    answer = StableGroupNorm(2, norm).half()(x.half()).float()
    torch.testing.assert_close(answer, expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("magnitude", [1.0, 1e5, 2e6])
def test_narrow_layers_take_what_float16_cannot_hold(magnitude):
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(4, 4, 1)
    x = torch.randn(1, 4, 8, 8) * magnitude
    expected = layer(x)
    answer = Narrow(layer, wide=True, scale=256.0)(x)
    assert torch.linalg.norm(answer - expected) < 2e-3 * torch.linalg.norm(expected)


@pytest.mark.parametrize("name", ["vae_encoder", "vae_decoder"])
def test_the_vae_survives_a_stream_beyond_float16(model, specs, name, tmp_path):
    """One convolution is blown up until the stream is 10 times what float16 holds."""
    vae = model.vae
    blocks = vae.encoder.down_blocks if name == "vae_encoder" else vae.decoder.up_blocks
    block = blocks[0].resnets[0] if name == "vae_encoder" else blocks[0].resnets[0].spatial_res_block
    largest: list[float] = []
    block.register_forward_hook(lambda *call: largest.append(call[2].abs().max().item()))
    record = proof.originals(model)[name]
    proof.record_cases(name, specs[name], record)
    with torch.no_grad():
        for values in block.conv2.parameters():
            values *= 1e6 / min(largest)
    largest.clear()
    case = proof.record_cases(name, specs[name], record)[:1]
    assert min(largest) > 65504
    form = networks.EncoderEngine(vae) if name == "vae_encoder" else networks.DecoderEngine(vae)
    file = export(form, name, specs[name], tmp_path)
    agreement = proof.compare(name, file, specs[name], case, BOUNDS["fp16"])
    assert agreement.rel_l2 < 5e-3


def test_weights_that_float16_holds_are_stored_in_two_bytes(tmp_path):
    layer = torch.nn.Linear(64, 64)
    with torch.no_grad():
        layer.weight.copy_(layer.weight.half().float())
    spec = EngineSpec(
        (TensorSpec("x", "float32", ("rows", 64)),), (TensorSpec("y", "float32", ("rows", 64)),)
    )
    (file,) = trace(layer, {"x": torch.zeros(2, 64)}, spec, tmp_path / "layer.onnx", ONNXRUNTIME)
    stored = {t.name: t.data_type for t in onnx.load(str(file)).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in stored.values()
    x, y = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32), np.empty((3, 64), np.float32)
    OnnxRuntimeEngine(file, spec, 1).bind({"x": x}, {"y": y})()
    np.testing.assert_allclose(y, layer(torch.from_numpy(x)).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_weights_that_float16_would_round_stay():
    values = np.full(300, 0.1, np.float32)
    graph = onnx.helper.make_graph([], "g", [], [], [onnx.numpy_helper.from_array(values, "w")])
    model = onnx.helper.make_model(graph)
    assert halve_weights(model) == 0
    assert model.graph.initializer[0].data_type == onnx.TensorProto.FLOAT
