"""Weights of an ONNX file that are changed when it is loaded, wherever and however they are stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from mimicmotion_trt.engines import EngineSpec, Placement, TensorSpec  # noqa: E402
from mimicmotion_trt.engines.onnx_weights import HALVED, write_changed  # noqa: E402
from mimicmotion_trt.engines.onnxruntime_backend import open_engine  # noqa: E402
from mimicmotion_trt.engines.weight_table import WeightChanges  # noqa: E402
from mimicmotion_trt.errors import BundleError  # noqa: E402

SPEC = EngineSpec((TensorSpec("x", "float32", ("rows", 4)),), (TensorSpec("y", "float32", ("rows", 4)),))
RANDOM = np.random.default_rng(0)
WEIGHTS = {
    name: RANDOM.normal(size=(4, 4)).astype(np.float16).astype(np.float32)
    for name in ("inside", "halved", "outside")
}
DELTAS = {name: RANDOM.normal(size=16) * 1e-4 for name in WEIGHTS}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """y = x inside halved outside: one weight in the graph, one in float16 behind a Cast, one in a file beside it."""
    tensors = [numpy_helper.from_array(WEIGHTS["inside"], "inside")]
    tensors.append(numpy_helper.from_array(WEIGHTS["halved"].astype(np.float16), "halved" + HALVED))
    beside = numpy_helper.from_array(WEIGHTS["outside"], "outside")
    (tmp_path / "unet.weights").write_bytes(bytes(64) + beside.raw_data)
    beside.ClearField("raw_data")
    beside.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "unet.weights", "offset": 64, "length": 64}.items():
        beside.external_data.add(key=key, value=str(value))
    nodes = [helper.make_node("Cast", ["halved" + HALVED], ["halved"], to=TensorProto.FLOAT)]
    for given, weight, made in (("x", "inside", "a"), ("a", "halved", "b"), ("b", "outside", "y")):
        nodes.append(helper.make_node("MatMul", [given, weight], [made]))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 4]) for name in "xy"]
    graph = helper.make_graph(nodes, "three", values[:1], values[1:], [*tensors, beside])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (tmp_path / "unet.onnx").write_bytes(model.SerializeToString())
    return tmp_path / "unet.onnx"


def answer(file: Path, *changed: str) -> np.ndarray:
    changes = WeightChanges({name: lambda name=name: DELTAS[name] for name in changed})
    engine = open_engine(file, SPEC, Placement("cpu", threads=1), changes=changes if changed else None)
    x, y = np.eye(4, dtype=np.float32), np.empty((4, 4), np.float32)
    engine.bind({"x": x}, {"y": y})()
    engine.close()
    return y


@pytest.mark.parametrize("changed", [(), ("inside",), ("halved",), ("outside",), tuple(WEIGHTS)])
def test_a_session_computes_with_the_changed_weights(file, changed):
    weights = [value + DELTAS[name].reshape(4, 4) * (name in changed) for name, value in WEIGHTS.items()]
    before = file.read_bytes()
    np.testing.assert_allclose(
        answer(file, *changed), weights[0] @ weights[1] @ weights[2], atol=1e-5, rtol=0
    )
    assert file.read_bytes() == before


def test_a_changed_file_stands_on_its_own(file, tmp_path):
    folder = tmp_path / "changed"
    folder.mkdir()
    copy = write_changed(
        file, {name: lambda name=name: DELTAS[name] for name in ("halved", "inside")}, folder
    )
    np.testing.assert_array_equal(answer(copy), answer(file, "halved", "inside"))
    onnx.checker.check_model(onnx.load(str(copy)))


def test_a_weight_that_is_not_there_is_an_error(file):
    with pytest.raises(BundleError, match=r"unet\.onnx has no weight gone"):
        write_changed(file, {"gone": lambda: np.zeros(16)}, file.parent)


def test_a_weight_that_leaves_its_dtypes_range_is_an_error(file):
    with pytest.raises(BundleError, match="the weight inside leaves the range of float32"):
        write_changed(file, {"inside": lambda: np.full(16, 1e39)}, file.parent)
