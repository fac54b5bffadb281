"""What an exported graph is made of is counted from the graph alone."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mimicmotion_trt.engines import GraphStats
from mimicmotion_trt.export.graph_audit import audit_graph


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
    assert audit_graph(graph(dtype, kind)) == GraphStats(
        operators=9, products=1, wide=wide, attention=1, softmax=1, norms=1, transposes=1, casts=1, shapes=2
    )


def test_weights_behind_a_cast_multiply_in_what_they_are_cast_to():
    """Stored in two bytes, used in four."""
    model = graph(np.float16, TensorProto.FLOAT16)
    model.graph.initializer[0].name = "w.float16"
    model.graph.node.insert(0, helper.make_node("Cast", ["w.float16"], ["w"], to=TensorProto.FLOAT))
    audit = audit_graph(model)
    assert (audit.wide, audit.casts) == (1, 1)


def test_no_count_is_negative():
    with pytest.raises(ValueError, match="casts"):
        GraphStats(1, 1, 0, 0, 0, 0, 0, -1, 0)
