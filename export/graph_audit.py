"""Counts what an exported graph is made of."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ..engines import GraphStats

ATTENTION = ("Attention", "MultiHeadAttention")
NORMS = ("GroupNormalization", "LayerNormalization", "InstanceNormalization")
PRODUCTS = ("Conv", "Gemm", "MatMul")
SHAPES = ("Shape", "Gather", "Unsqueeze", "Concat", "Div", "Range", "Slice", "Squeeze")


def audit_graph(model: Any) -> GraphStats:
    """The audit of an `onnx.ModelProto`, whose weights need not be loaded."""
    import onnx

    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type not in ("Constant", "Identity")]
    sizes = size_tensors(model)
    for node in nodes:
        if node.op_type == "Cast":
            types[node.output[0]] = onnx.helper.get_node_attr_value(node, "to")
        elif node.op_type in ("Transpose", "DequantizeLinear") and node.input[0] in types:  # of weights
            types[node.output[0]] = types[node.input[0]]
    casts_of_weights = sum(node.op_type == "Cast" and node.input[0].endswith(".float16") for node in nodes)
    kinds = Counter(node.op_type for node in nodes)
    products = [node for node in nodes if node.op_type in PRODUCTS and node.input[1] in types]
    return GraphStats(
        operators=len(nodes),
        products=len(products),
        wide=sum(types[node.input[1]] == onnx.TensorProto.FLOAT for node in products),
        attention=sum(kinds[kind] for kind in ATTENTION),
        softmax=kinds["Softmax"],
        norms=sum(kinds[kind] for kind in NORMS),
        transposes=kinds["Transpose"],
        casts=kinds["Cast"] - casts_of_weights,
        shapes=sum(node.output[0] in sizes for node in nodes),
    )


def size_tensors(model: Any) -> set[str]:
    """Tensors that hold sizes: what comes of Shape operators by arithmetic on integers."""
    found: set[str] = set()
    small = set(SHAPES) | {"Mul", "Add", "Cast", "Equal", "Where", "ConstantOfShape"}
    constants = {tensor.name for tensor in model.graph.initializer} | {
        node.output[0] for node in model.graph.node if node.op_type == "Constant"
    }
    for node in model.graph.node:  # sorted: what a node reads stands before it
        known = [name for name in node.input if name and name not in constants]
        if node.op_type == "Shape" or (
            node.op_type in small and known and all(name in found for name in known)
        ):
            found.update(node.output)
    return found
