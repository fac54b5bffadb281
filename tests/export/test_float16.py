"""Networks in float16: statistics in float32, a VAE whose stream may leave float16's range, and the strict judge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from mimicmotion_trt import EngineError, ExportError
from mimicmotion_trt.engines import EngineSpec, TensorSpec, network_specs
from mimicmotion_trt.engines.onnxruntime_backend import OnnxRuntimeEngine
from mimicmotion_trt.engines.tensorrt_library import open_library
from mimicmotion_trt.export import networks, verify
from mimicmotion_trt.export.float16 import Narrow, StableGroupNorm, tensor_core_engine, to_float16
from mimicmotion_trt.export.network_build import BOUNDS, model_defaults
from mimicmotion_trt.export.options import Options
from mimicmotion_trt.export.stats import graph_stats
from mimicmotion_trt.export.tracing import ONNXRUNTIME, STANDARD, halve_weights, plain_attention, trace_onnx
from mimicmotion_trt.export.verify import record_trajectory
from mimicmotion_trt.training.checkpoints import Model, image_statistics, load_model

SHAPE = (2, 2, 8, 16)


@pytest.fixture
def model(tiny) -> Model:
    return load_model(tiny.base, tiny.checkpoint)


@pytest.fixture(scope="module")
def specs() -> dict[str, EngineSpec]:
    return network_specs(pose_channels=32, token_width=32, image_size=224, dtype="float16")


def export(module: torch.nn.Module, name: str, spec: EngineSpec, path: Path) -> Path:
    """The float16 graph of an engine's module in the standard's operators."""
    inputs = verify.cast_inputs(verify.example_inputs(name, spec, SHAPE, seed=0), spec)
    (file,) = trace_onnx(to_float16(module, name), inputs, spec, path / f"{name}.onnx", STANDARD)
    return file


@pytest.fixture(scope="module")
def unet(tiny, specs, tmp_path_factory) -> tuple[list[verify.Case], Path]:
    """What the U-Net answers along a denoising, and its float16 graph."""
    model = load_model(tiny.base, tiny.checkpoint)
    image = image_statistics(model.feature_extractor, model.image_encoder)
    cases = record_trajectory(model, image, model_defaults(model, Options(segment=16)), (64, 128), 8)
    folder = tmp_path_factory.mktemp("unet")
    return cases, export(networks.UNetEngine(model.unet), "unet", specs["unet"], folder)


@pytest.mark.slow
def test_the_unet_keeps_the_bound_on_a_real_trajectory(unet, specs):
    cases, file = unet
    assert len(cases) == 10  # both branches of five steps
    engine = OnnxRuntimeEngine(file, specs["unet"], 1)
    accuracy = verify.compare_engine("unet", engine, cases, BOUNDS["fp16"])
    assert 1e-5 < accuracy.rel_l2 < 5e-3
    counted = graph_stats(onnx.load(str(file)))
    assert counted.attention == 20  # all of them, spatial and temporal, one operator each
    assert counted.softmax == 0
    assert counted.wide == 0


def test_float16_is_raised_to_the_opset_that_keeps_statistics_wide(unet):
    _, file = unet
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


def plain(
    node: str, inputs: dict[str, tuple[int | str, ...]], shape: tuple[int | str, ...], **more: Any
) -> Any:
    """A float16 graph of one operator, and its spec."""
    spec = EngineSpec(
        tuple(TensorSpec(name, "float16", dims) for name, dims in inputs.items()),
        (TensorSpec("y", "float16", shape),),
    )
    tensors = [
        onnx.helper.make_tensor_value_info(t.name, onnx.TensorProto.FLOAT16, t.shape)
        for t in (*spec.inputs, *spec.outputs)
    ]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(node, list(inputs), ["y"], **more)], node, tensors[:-1], tensors[-1:]
    )
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 23)], ir_version=10
    ), spec


ATTENTION: dict[str, tuple[int | str, ...]] = dict.fromkeys("qkv", ("rows", "length", 64))


@pytest.mark.parametrize(("size", "bound"), [(1.0, 1e-3), (30.0, 2e-2)])
def test_attention_with_large_scores(size, bound, tmp_path):
    """Up to several thousand, where exp in float16 would be infinite; what is lost is the scores' last bits."""
    model, spec = plain("Attention", ATTENTION, ATTENTION["q"], q_num_heads=2, kv_num_heads=2, scale=32**-0.5)
    onnx.save(model, tmp_path / "attention.onnx")
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, 256, 64)).astype(np.float16) for _ in range(3))
    q, k = (x * np.float16(size) for x in (q, k))
    wide = [torch.from_numpy(x.astype(np.float64)) for x in (q, k, v)]
    expected = plain_attention(*wide, heads=2, scale=32**-0.5).numpy()
    y = np.empty_like(q)
    OnnxRuntimeEngine(tmp_path / "attention.onnx", spec, 1).bind({"q": q, "k": k, "v": v}, {"y": y})()
    assert np.linalg.norm(y - expected) < bound * np.linalg.norm(expected)
    if size > 1:
        assert np.abs(np.einsum("blc,bmc->blm", q.astype(np.float64), k)).max() * 32**-0.5 > 1000


def test_tensorrt_rtx_takes_no_precision_of_a_softmax(tmp_path):
    """Why the graphs do not ask for it; where this fails, they can."""
    pytest.importorskip("tensorrt_rtx")
    library = open_library("tensorrt-rtx")
    builder = library.api.Builder(library.logger)
    network = builder.create_network(1 << int(library.api.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = library.api.OnnxParser(network, library.logger)
    asked = {"q_num_heads": 2, "kv_num_heads": 2, "softmax_precision": onnx.TensorProto.FLOAT}
    model, _ = plain("Attention", ATTENTION, ATTENTION["q"], **asked)
    assert not parser.parse(model.SerializeToString())
    assert "softmax precision" in parser.get_error(0).desc()
    library.messages.clear()


def test_layer_norms_of_large_values_are_computed_in_float32(tmp_path):
    """Squares of 3e4 are beyond float16."""
    norm = torch.nn.LayerNorm(64)
    spec = EngineSpec(
        (TensorSpec("x", "float16", ("rows", 64)),), (TensorSpec("y", "float16", ("rows", 64)),)
    )
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)) * 8e3 + 2e4
    x, expected = x.half(), norm(x.half().float()).detach().numpy()
    (file,) = trace_onnx(norm.half(), {"x": x}, spec, tmp_path / "norm.onnx", STANDARD)
    (node,) = (n for n in onnx.load(str(file)).graph.node if n.op_type == "LayerNormalization")
    stash = [a.i for a in node.attribute if a.name == "stash_type"]
    assert stash in ([], [onnx.TensorProto.FLOAT])  # the standard's own, if not said
    y = np.empty((3, 64), np.float16)
    OnnxRuntimeEngine(file, spec, 1).bind({"x": x.numpy()}, {"y": y})()
    np.testing.assert_allclose(y, expected, atol=4e-3)


@pytest.mark.parametrize("magnitude", [1.0, 1e5, 2e6])
def test_narrow_layers_take_what_float16_cannot_hold(magnitude):
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(4, 4, 1)
    x = torch.randn(1, 4, 8, 8) * magnitude
    expected = layer(x)
    answer = Narrow(layer, wide=True)(x)
    assert torch.linalg.norm(answer - expected) < 2e-3 * torch.linalg.norm(expected)


@pytest.mark.parametrize("name", ["vae_encoder", "vae_decoder"])
def test_the_vae_survives_a_stream_beyond_float16(model, specs, name, tmp_path):
    """One convolution is blown up until the stream is 10 times what float16 holds."""
    vae = model.vae
    blocks = vae.encoder.down_blocks if name == "vae_encoder" else vae.decoder.up_blocks
    block = blocks[0].resnets[0] if name == "vae_encoder" else blocks[0].resnets[0].spatial_res_block
    largest: list[float] = []
    block.register_forward_hook(lambda *call: largest.append(call[2].abs().max().item()))
    original = verify.originals(model)[name]
    inputs = verify.example_inputs(name, specs[name], verify.SHAPES[0], seed=0)
    verify.record_case(original, inputs)
    with torch.no_grad():
        for values in block.conv2.parameters():
            values *= 1e6 / min(largest)
    largest.clear()
    case = [verify.record_case(original, inputs)]
    assert min(largest) > 65504
    form = networks.EncoderEngine(vae) if name == "vae_encoder" else networks.DecoderEngine(vae)
    file = export(form, name, specs[name], tmp_path)
    assert (
        verify.compare_engine(name, OnnxRuntimeEngine(file, specs[name], 1), case, BOUNDS["fp16"]).rel_l2
        < 5e-3
    )
    rounded = tensor_core_engine(form, specs[name])  # ONNX Runtime would not see what float16 cannot hold
    assert verify.compare_engine(name, rounded, case, BOUNDS["fp16"], "float16").rel_l2 < 5e-3


def test_weights_that_float16_holds_are_stored_in_two_bytes(tmp_path):
    layer = torch.nn.Linear(64, 64)
    with torch.no_grad():
        layer.weight.copy_(layer.weight.half().float())
    spec = EngineSpec(
        (TensorSpec("x", "float32", ("rows", 64)),), (TensorSpec("y", "float32", ("rows", 64)),)
    )
    (file,) = trace_onnx(layer, {"x": torch.zeros(2, 64)}, spec, tmp_path / "layer.onnx", ONNXRUNTIME)
    stored = {t.name: t.data_type for t in onnx.load(str(file)).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in stored.values()
    x, y = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32), np.empty((3, 64), np.float32)
    OnnxRuntimeEngine(file, spec, 1).bind({"x": x}, {"y": y})()
    np.testing.assert_allclose(y, layer(torch.from_numpy(x)).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_weights_that_float16_would_round_stay():
    values = np.full(300, 0.1, np.float32)
    graph = onnx.helper.make_graph([], "g", [], [], [onnx.numpy_helper.from_array(values, "w")])
    model = onnx.helper.make_model(graph)
    halve_weights(model)
    assert model.graph.initializer[0].data_type == onnx.TensorProto.FLOAT


SPEC = EngineSpec((TensorSpec("x", "float16", ("rows", 64)),), (TensorSpec("y", "float16", ("rows", 64)),))


def answer(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y = np.empty((len(x), 64), np.float16)
    tensor_core_engine(module, SPEC).bind({"x": x.numpy()}, {"y": y})()
    return torch.from_numpy(y)


class Attention(nn.Module):
    """Scores and values, with nothing learned."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x @ x.T, -1) @ x


class Pixels(nn.Module):
    """A convolution over rows of 8x8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.reshape(-1, 1, 8, 8)).reshape(-1, 64)


@pytest.mark.parametrize("make", [lambda: nn.Linear(64, 64), Pixels])
def test_a_product_is_the_float32_product_rounded(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    module, x = make().half(), torch.randn(5, 64).half()
    with torch.no_grad():
        found, expected = answer(module, x), module.float()(x.float())
    assert torch.equal(found, expected.half())


def test_every_product_is_rounded_not_the_last_alone() -> None:
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).half()
    wide = x.float()
    scores = (wide @ wide.T).half()
    expected = (torch.softmax(scores, -1).float() @ wide).half()
    assert torch.equal(answer(Attention(), x), expected)


def test_what_float16_cannot_hold_is_seen() -> None:
    """A stream of 1e5 that is scaled back at once: in float32 nothing but a small number comes out."""
    module = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False))
    with torch.no_grad():
        module[0].weight.copy_(torch.eye(64) * 2e4)
        module[1].weight.copy_(torch.eye(64) / 2e4)
    cases = [verify.record_case(lambda x: module(x), {"x": torch.full((2, 64), 5.0)})]
    assert cases[0].outputs[0].max() == pytest.approx(5)
    with pytest.raises(ExportError, match=r"unet does not agree.*overflow"):
        verify.compare_engine("unet", tensor_core_engine(module.half(), SPEC), cases, 5e-3, "float16")


def test_arrays_that_are_not_the_specs_are_refused() -> None:
    with pytest.raises(EngineError, match="float16"):
        tensor_core_engine(nn.Linear(64, 64), SPEC).bind(
            {"x": np.zeros((1, 64), np.float32)}, {"y": np.zeros((1, 64), np.float16)}
        )
