"""Float8: which products are quantized, with which scales, and what it costs in accuracy."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from mimicmotion_trt import ExportError, SettingsError
from mimicmotion_trt.engines import EngineSpec, Profile, TensorSpec
from mimicmotion_trt.engines.onnxruntime_backend import OnnxRuntimeEngine
from mimicmotion_trt.export import quantize
from mimicmotion_trt.export.options import Options, PlanOptions
from mimicmotion_trt.export.stats import graph_stats
from mimicmotion_trt.export.tracing import STANDARD, trace_onnx

DIMS = ("rows", 4, "high", "wide")
SPEC = EngineSpec((TensorSpec("x", "float16", DIMS),), (TensorSpec("y", "float16", DIMS),))
NARROW = onnx.TensorProto.FLOAT8E4M3FN


class Small(nn.Module):
    """One of each kind of product; the layers are named as the U-Net's are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv_in = nn.Conv2d(4, 32, 3, padding=1)
        self.conv1 = nn.Conv2d(32, 32, 3, padding=1)
        self.along_time = nn.Conv2d(32, 32, (3, 1), padding=(1, 0))
        self.time_emb_proj = nn.Linear(32, 32)
        self.to_q, self.to_k = (nn.Linear(32, 64, bias=False) for _ in range(2))
        self.to_out = nn.Linear(64, 32)
        self.conv_out = nn.Conv2d(32, 4, 3, padding=1)

    def forward(self, x):
        x = self.conv_in(x)
        x = x + self.along_time(self.conv1(x)) + self.time_emb_proj(x.mean((2, 3)))[:, :, None, None]
        rows, channels, high, wide = x.shape
        tokens = x.permute(0, 2, 3, 1).reshape(-1, channels)
        tokens = self.to_out(torch.sigmoid(self.to_q(tokens)) * self.to_k(tokens))
        return self.conv_out(x + tokens.reshape(rows, high, wide, channels).permute(0, 3, 1, 2))


def example(seed: int) -> torch.Tensor:
    return torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(seed)).half()


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The float16 graph."""
    path = tmp_path_factory.mktemp("half") / "small.onnx"
    trace_onnx(Small().half(), {"x": example(0)}, SPEC, path, STANDARD)
    return path


@pytest.fixture(scope="module")
def narrow(half: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in float8, calibrated on other inputs than it is judged on."""
    path = tmp_path_factory.mktemp("narrow") / "small.onnx"
    path.write_bytes(half.read_bytes())
    quantize.quantize([path], [{"x": example(seed).numpy()} for seed in (1, 2)])
    assert [file.name for file in path.parent.iterdir()] == ["small.onnx"]
    return path


def error(path: Path) -> float:
    """Relative L2 error against float32 PyTorch."""
    with torch.inference_mode():
        expected = Small()(example(0).float()).numpy()
    answer = np.empty(expected.shape, np.float16)
    OnnxRuntimeEngine(path, SPEC, 1).bind({"x": example(0).numpy()}, {"y": answer})()
    return float(np.linalg.norm(answer - expected) / np.linalg.norm(expected))


def test_which_products_are_quantized(half):
    layers = {node.name.split("/")[1] for node in quantize.products(onnx.load(str(half)))}
    assert layers == {"conv1", "to_q", "to_k", "to_out"}


def test_what_is_around_them(narrow):
    model = onnx.load(str(narrow))
    onnx.checker.check_model(model)
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["QuantizeLinear"] == 3  # to_q and to_k read the same tensor
    assert kinds["DequantizeLinear"] == 3 + 4
    made_by = {name: node.op_type for node in model.graph.node for name in node.output}
    stored = {tensor.name for tensor in model.graph.initializer if tensor.data_type == NARROW}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            inputs = [made_by.get(name) for name in node.input[:2]]
            wide = {"conv_in", "conv_out", "along_time", "time_emb_proj"} & set(node.name.split("/"))
            assert ("DequantizeLinear" in inputs) == (not wide), node.name
            assert inputs.count("DequantizeLinear") in (0, 2)
    assert len(stored) == 4
    audit = graph_stats(model)
    assert (audit.products, audit.wide) == (8, 0)


def test_scales_of_weights(narrow):
    """One an output channel: the largest magnitude becomes 448."""
    model = onnx.load(str(narrow))
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    weight = Small().half().conv1.weight.detach().numpy().astype(np.float32)
    expected = np.abs(weight).max(axis=(1, 2, 3)) / 448
    scale = onnx.numpy_helper.to_array(tensors["conv1.weight.scale"])
    assert scale.dtype == np.float16
    np.testing.assert_allclose(scale, expected, rtol=1e-3)
    stored = onnx.numpy_helper.to_array(tensors["conv1.weight.float8"]).astype(np.float32)
    assert np.abs(stored).max() == 448
    wide = stored * scale.astype(np.float32)[:, None, None, None]
    assert np.abs(wide - weight).max() <= np.abs(weight).max() * 2**-4  # 3 bits of mantissa


def test_scales_of_activations(half):
    model = onnx.load(str(half))
    inputs = [{"x": example(seed).numpy()} for seed in (1, 2)]
    node = next(node for node in quantize.products(model) if "conv1" in node.name)
    found = quantize.measure(half, model, [node.input[0]], inputs)[node.input[0]]
    with torch.inference_mode():
        expected = max(Small().conv_in(example(seed).float()).abs().max().item() for seed in (1, 2))
    assert found == pytest.approx(expected, rel=2e-3)
    assert quantize.scale_of(np.array(448.0)) == 1
    assert quantize.scale_of(np.array(0.0)) > 0  # a channel of zeros


@pytest.mark.parametrize(
    ("value", "expected"),
    [(448.0, 448), (1e4, 448), (-1e4, -448), (17.0, 16), (19.0, 20), (2.0**-9, 2.0**-9), (2.0**-11, 0)],
)
def test_float8_by_hand(value, expected):
    """Between 16 and 32 its numbers are 2 apart; ties go to the even one; the smallest is 2**-9."""
    assert float(quantize.to_float8(np.array(value), np.array(1.0))) == expected


def test_the_error_is_measured_where_the_graph_runs(half, narrow):
    assert error(half) < 1e-3
    assert 1e-3 < error(narrow) < 0.05
    assert narrow.stat().st_size < half.stat().st_size


def test_a_graph_without_products(tmp_path):
    path = tmp_path / "small.onnx"
    trace_onnx(nn.Conv2d(4, 4, (3, 1), padding=(1, 0)).half(), {"x": example(0)}, SPEC, path, STANDARD)
    with pytest.raises(ExportError, match="no product"):
        quantize.quantize([path], [])


def test_values_that_leave_float16(half):
    model = onnx.load(str(half))
    names = [quantize.products(model)[0].input[0]]
    largest = np.full((1, 4, 8, 8), 65504, np.float16)
    with pytest.raises(ExportError, match="not finite"):
        quantize.measure(half, model, names, [{"x": largest}])


@pytest.mark.skipif(not importlib.util.find_spec("tensorrt_rtx"), reason="TensorRT-RTX is not installed")
@pytest.mark.parametrize("capability", ["SM89", "SM120"])
def test_tensorrt_rtx_compiles_it(narrow, capability, tmp_path):
    from mimicmotion_trt.engines.tensorrt_library import open_library
    from mimicmotion_trt.export.tensorrt_build import compile_plan

    library = open_library("tensorrt-rtx")
    profile = Profile({"rows": (2, 2, 2), "high": (16, 16, 16), "wide": (16, 16, 16)})
    options = PlanOptions(level=0, capabilities=(capability,))
    plan = compile_plan(library, narrow, SPEC, (profile,), options, tmp_path / "small.plan")
    assert plan.target == capability
    assert (tmp_path / "small.plan").stat().st_size > 1000


def test_off_unless_asked_for():
    for backend in ("onnxruntime", "tensorrt", "tensorrt-rtx"):
        assert Options(backend=backend).precision != "fp8"


def test_plans_are_for_gpus_that_have_it():
    assert Options(backend="tensorrt-rtx", precision="fp8").plan.capabilities == ("SM89", "SM120")
    chosen = Options(backend="tensorrt-rtx", precision="fp8", plan=PlanOptions(capabilities=("SM120",)))
    assert chosen.plan.capabilities == ("SM120",)
    with pytest.raises(SettingsError, match="SM86 cannot multiply in float8"):
        Options(backend="tensorrt-rtx", precision="fp8", plan=PlanOptions(capabilities=("SM86", "SM89")))


@pytest.mark.parametrize(
    "values",
    [
        {"precision": "fp16", "margin": 2.0},
        {"precision": "fp8", "margin": 0.0},
        {"precision": "fp8", "margin": float("nan")},
    ],
)
def test_margins_that_make_no_sense(values):
    with pytest.raises(SettingsError) as caught:
        Options(**values)
    assert caught.value.field == "margin"


def test_pytorch_bundles_have_no_float8():
    with pytest.raises(SettingsError, match="fp8"):
        Options(backend="torch", precision="fp8")


@pytest.mark.slow
def test_a_bundle_whose_unet_multiplies_in_float8(micro, tmp_path, monkeypatch):
    from mimicmotion_trt.export import build, network_build, verify

    monkeypatch.setattr(verify, "SHAPES", verify.SHAPES[:1])
    monkeypatch.setattr(verify, "CALIBRATION", ((1, 2),))
    options = Options(precision="fp8", sizes=((64, 64),), segment=4)
    manifest, _ = build.build_bundle(micro.base, micro.checkpoint, tmp_path / "bundle", options)
    assert manifest.precision == "fp8"
    for name, network in manifest.networks.items():
        narrow = name == "unet"
        assert network.accuracy.bound == network_build.BOUNDS["fp8" if narrow else "fp16"]
        assert (network.accuracy.rel_l2 > 0.01) == narrow
        assert network.spec.outputs[0].dtype == "float16"
