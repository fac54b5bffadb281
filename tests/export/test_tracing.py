"""ONNX files: every free size stays free, and weights over 2 GB lie in one file beside the graph."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from transformers import modeling_utils

from mimicmotion_trt.engines import EngineSpec, TensorSpec, network_specs
from mimicmotion_trt.engines.onnxruntime_backend import OnnxRuntimeEngine
from mimicmotion_trt.export.networks import ImageEncoderEngine
from mimicmotion_trt.export.tracing import ONNXRUNTIME, finish, trace_onnx, trace_torchscript
from mimicmotion_trt.training.checkpoints import load_image_encoder

SPEC = EngineSpec(
    (TensorSpec("x", "float32", ("rows", 4)),), (TensorSpec("y", "float32", ("rows", 3)),)
)  # fmt: skip


def run(path, rows: int) -> np.ndarray:
    x, y = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4), np.empty((rows, 3), np.float32)
    OnnxRuntimeEngine(path, SPEC, 1).bind({"x": x}, {"y": y})()
    return y


def test_free_sizes_stay_free(tmp_path):
    layer = nn.Linear(4, 3)
    files = trace_onnx(layer, {"x": torch.zeros(2, 4)}, SPEC, tmp_path / "layer.onnx")
    assert files == [tmp_path / "layer.onnx"]
    for rows in (1, 2, 7):
        expected = layer(torch.arange(rows * 4.0).reshape(rows, 4)).detach().numpy()
        np.testing.assert_allclose(run(files[0], rows), expected, rtol=1e-5, atol=1e-6)


def test_scattered_weights_are_brought_together(tmp_path):
    """The exporter writes a file for every tensor of a large model; a small one stands for it here."""
    network = nn.Sequential(nn.Linear(4, 300), nn.Linear(300, 3))
    (path,) = trace_onnx(network, {"x": torch.zeros(2, 4)}, SPEC, tmp_path / "net.onnx")
    expected = run(path, 5)
    onnx.save(
        onnx.load(str(path)),
        str(path),
        save_as_external_data=True,
        all_tensors_to_one_file=False,
        size_threshold=0,
    )
    assert len(list(tmp_path.iterdir())) == 5
    files = finish(path, ONNXRUNTIME)
    assert files == [path, tmp_path / "net.weights"]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    np.testing.assert_array_equal(run(path, 5), expected)


@pytest.mark.parametrize(("write", "name"), [(trace_onnx, "clip.onnx"), (trace_torchscript, "clip.ts")])
def test_nothing_is_warned_of_when_the_image_encoder_is_traced(tiny, tmp_path, monkeypatch, write, name):
    """Its loss is what the tracer of PyTorch asks for, and it has none."""
    said: list[str] = []
    monkeypatch.setattr(modeling_utils.logger, "warning_once", said.append)
    encoder = load_image_encoder(tiny.base)
    size = encoder.config.image_size
    specs = network_specs(pose_channels=32, token_width=32, image_size=size, dtype="float32")
    inputs = {"pixels": torch.zeros(1, 3, size, size)}
    write(ImageEncoderEngine(encoder), inputs, specs["image_encoder"], tmp_path / name)
    assert (tmp_path / name).is_file()
    assert said == []
