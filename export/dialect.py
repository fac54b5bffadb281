"""The operators that a traced graph leaves open, in the words of the one who will run it.

The exporter writes attention and group norms as operators of a domain of their own, `mimicmotion`. Here
they become what the target has one kernel for: ONNX Runtime's own MultiHeadAttention, or the standard's
Attention (opset 23), which TensorRT fuses.

By the standard a softmax is computed in its inputs' type unless `softmax_precision` says otherwise. It is not
said here: TensorRT-RTX 1.7 refuses a graph that does ("Setting softmax precision is not supported"), its network
has no other word for it, and ONNX Runtime computes in float32 in any case. Scores of float16 leave its range at
65504, hundreds of times what trained attention reaches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

DOMAIN = "mimicmotion"
STANDARD_OPSET = 23


@dataclass(frozen=True)
class Dialect:
    """Whose words a graph is in."""

    name: str
    opset: int | None
    """The standard's version that the graph is raised to; None leaves the exporter's."""


ONNXRUNTIME = Dialect("onnxruntime", None)
STANDARD = Dialect("standard", STANDARD_OPSET)


def translate(model: Any, dialect: Dialect) -> Any:
    """Name the open operators of an `onnx.ModelProto`, in place; returns it."""
    import onnx

    for node in model.graph.node:
        if node.domain == DOMAIN:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            _translate(node, attributes, dialect)
    opsets = {entry.domain: entry.version for entry in model.opset_import if entry.domain != DOMAIN}
    opsets[""] = dialect.opset or opsets[""]  # operators used here only gained dtypes between 20 and 23
    if any(node.domain == "com.microsoft" for node in model.graph.node):
        opsets["com.microsoft"] = 1
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(*entry) for entry in opsets.items())
    return model


def _translate(node: Any, attributes: dict[str, Any], dialect: Dialect) -> None:
    import onnx

    if node.op_type == "Attention" and dialect is ONNXRUNTIME:
        node.domain, node.op_type = "com.microsoft", "MultiHeadAttention"
        attributes = {"num_heads": attributes["heads"], "scale": attributes["scale"]}
    elif node.op_type == "Attention":
        node.domain, heads = "", attributes["heads"]
        attributes = {"q_num_heads": heads, "kv_num_heads": heads, "scale": attributes["scale"]}
    else:
        node.domain = ""
    del node.attribute[:]
    node.attribute.extend(onnx.helper.make_attribute(*entry) for entry in sorted(attributes.items()))


def halve_weights(model: Any, *, at_least: int = 256) -> int:
    """Store float32 weights that float16 holds exactly as float16 behind a Cast; the bytes saved.

    ONNX Runtime casts them once, when the session is made, so that nothing but the file's size changes.
    """
    import onnx

    saved, casts = 0, []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or tensor.external_data:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            narrow = values.astype(np.float16)
        if values.size < at_least or not np.array_equal(narrow.astype(np.float32), values):
            continue
        stored = f"{tensor.name}.float16"
        casts.append(onnx.helper.make_node("Cast", [stored], [tensor.name], to=onnx.TensorProto.FLOAT))
        tensor.CopyFrom(onnx.numpy_helper.from_array(narrow, stored))
        saved += narrow.nbytes
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return saved
