"""The U-Net's matrix products in float8: QuantizeLinear and DequantizeLinear around what they multiply.

A product y = W x becomes y = DQ(Q(W)) DQ(Q(x)) with Q(v) = e4m3(v / s) and DQ(q) = s q, as TensorRT's strongly
typed networks want it: the compiler multiplies in float8 where both sides come out of a DequantizeLinear. One
scale s a tensor for what is read, s = margin * max|x| / 448 over real denoising steps; one scale an output
channel for weights, s = max|w| / 448, which are stored in float8.

Quantized: linear layers of tokens, and convolutions over space. Left in float16: convolutions along time (the
original's Conv3d), the first and the last convolution, all that reads embeddings (of time, ids, token: a few
vectors, on which everything depends), and attention's own products.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
from onnx.helper import make_node, make_tensor, make_tensor_value_info
from onnx.numpy_helper import from_array, to_array

from ..engines import Array
from ..errors import ExportError

FLOAT8 = onnx.TensorProto.FLOAT8E4M3FN
LARGEST = 448.0
"""The largest number of float8 e4m3 (OCP 8-bit Floating Point Specification, table 1)."""
SMALLEST_SCALE = 2.0**-20
"""Scales are float16, whose numbers are too coarse below this."""
LEFT = frozenset(
    ("conv_in", "conv_out", "time_embedding", "add_embedding", "time_pos_embed", "time_emb_proj", "attn2")
)
"""Layers that stay float16, by a part of their path."""
WIDE = ".dequantized"
"""What is read instead of a tensor is named as it is, and this."""


def quantize(files: list[Path], calibration: Iterable[Mapping[str, Array]], margin: float = 1.0) -> None:
    """Quantize the float16 graph `files[0]` in place, calibrated on inputs of real calls.

    Raises `ExportError` if there is nothing to quantize, or a tensor is not finite on the way.
    """
    graph = onnx.load(str(files[0]), load_external_data=False)
    largest = measure(files[0], graph, sorted({node.input[0] for node in products(graph)}), calibration)
    model = onnx.load(str(files[0]))
    insert(model, {name: margin * value for name, value in largest.items()})
    for path in files:  # onnx would append to the weights
        path.unlink()
    onnx.save(model, str(files[0]), save_as_external_data=len(files) > 1, location=files[-1].name)


def products(model: Any) -> list[Any]:
    """The nodes of an `onnx.ModelProto` that are to be quantized."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    return [node for node in model.graph.node if _is_quantized(node, shapes)]


def _is_quantized(node: Any, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    shape = shapes.get(node.input[1]) if len(node.input) > 1 else None
    if shape is None or not LEFT.isdisjoint(node.name.split("/")):
        return False
    if node.op_type == "Conv":
        return len(shape) == 4 and shape[2] == shape[3]  # along time they are (3,1)
    return node.op_type in ("Gemm", "MatMul") and len(shape) == 2


def measure(
    path: Path, graph: Any, names: list[str], calibration: Iterable[Mapping[str, Array]]
) -> dict[str, float]:
    """The largest magnitude of each tensor over all inputs, found by the graph itself run by ONNX Runtime.

    `graph` is the model of the file `path`; it gains outputs. Weights outside it are read where they lie.
    """
    if not names:
        raise ExportError("the graph has no product to quantize.", field="precision")
    outputs = [f"largest_{index}" for index in range(len(names))]
    for name, output in zip(names, outputs, strict=True):
        graph.graph.node.append(make_node("Abs", [name], [f"abs_{output}"]))
        graph.graph.node.append(make_node("ReduceMax", [f"abs_{output}"], [output], keepdims=0))
        graph.graph.output.append(make_tensor_value_info(output, onnx.TensorProto.FLOAT16, []))
    beside = path.with_suffix(".calibration.onnx")
    try:
        onnx.save(graph, str(beside))
        options = ort.SessionOptions()
        options.log_severity_level = 4
        session: Any = ort.InferenceSession(str(beside), options, providers=["CPUExecutionProvider"])
        found = [np.array(session.run(outputs, dict(inputs)), np.float32) for inputs in calibration]
    finally:
        beside.unlink(missing_ok=True)
    largest = np.max(found, axis=0)
    if not np.isfinite(largest).all():
        wrong = names[int(np.argmin(np.isfinite(largest)))]
        raise ExportError(f"{wrong} is not finite in float16.", remedy="Check the checkpoint.")
    return dict(zip(names, map(float, largest), strict=True))


def insert(model: Any, largest: Mapping[str, float]) -> None:
    """Add the nodes, in place."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    shapes = {name: tuple(tensor.dims) for name, tensor in weights.items()}
    nodes: list[Any] = []
    done: set[str] = set()
    for node in model.graph.node:
        if _is_quantized(node, shapes):
            x, weight, axis = node.input[0], node.input[1], _output_axis(node)
            if x not in done:  # what several products read is rounded once
                nodes += _round(model, x, scale_of(np.array(largest[x], np.float32)))
            if weight not in done:
                nodes.append(_store(model, weight, to_array(weights[weight]), axis))
            done |= {x, weight}
            node.input[0], node.input[1] = x + WIDE, weight + WIDE
        nodes.append(node)
    used = {name for node in nodes for name in node.input}
    tensors = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(tensors)


def scale_of(largest: Array) -> Array:
    """float16 scales that bring `largest` to the end of float8's range."""
    scale: Array = np.maximum(largest.astype(np.float32) / LARGEST, SMALLEST_SCALE).astype(np.float16)
    return scale


def to_float8(values: Array, scale: Array) -> Array:
    """values / scale in float8 e4m3, rounded to nearest even; what is beyond the range takes its end."""
    scaled = values.astype(np.float32) / scale.astype(np.float32)
    return np.clip(scaled, -LARGEST, LARGEST).astype(ml_dtypes.float8_e4m3fn)


def _output_axis(node: Any) -> int:
    """The axis of output channels: Conv [out,in,h,w], Gemm [in,out] or [out,in], MatMul [in,out]."""
    if node.op_type == "Conv":
        return 0
    return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1


def _round(model: Any, name: str, scale: Array) -> list[Any]:
    """Nodes that bring an activation to float8 and back; its scale becomes a constant of the graph."""
    stored, constant = f"{name}.float8", f"{name}.scale"
    model.graph.initializer.append(from_array(scale, constant))
    return [
        make_node("QuantizeLinear", [name, constant], [stored], f"{name}/quantize", output_dtype=FLOAT8),
        make_node("DequantizeLinear", [stored, constant], [name + WIDE], f"{name}/dequantize"),
    ]


def _store(model: Any, name: str, values: Array, axis: int) -> Any:
    """Store weights in float8 with one scale an output channel; the node that they come out of."""
    others = tuple(i for i in range(values.ndim) if i != axis)
    scale = scale_of(np.abs(values).max(axis=others))
    narrow = to_float8(values, scale.reshape([-1 if i == axis else 1 for i in range(values.ndim)]))
    stored, constant = f"{name}.float8", f"{name}.scale"
    tensor = make_tensor(stored, FLOAT8, values.shape, narrow.tobytes(), raw=True)
    model.graph.initializer.append(tensor)
    model.graph.initializer.append(from_array(scale, constant))
    return make_node("DequantizeLinear", [stored, constant], [name + WIDE], f"{name}/dequantize", axis=axis)
