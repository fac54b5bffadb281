"""A PyTorch module to one file: an ONNX graph (its weights in a second file where they exceed 2 GB) or TorchScript.

PyTorch's exporter would take attention and group norms to pieces. It writes them as operators of a domain of their
own, `mimicmotion`, and `translate` turns these into what the target has one kernel for: ONNX Runtime's
MultiHeadAttention, or Attention of the ONNX standard (opset 23), which TensorRT fuses.

No graph sets `softmax_precision`: TensorRT-RTX 1.7 refuses it, and ONNX Runtime computes in float32 in any case.
Scores of float16 overflow at 65504, hundreds of times what trained attention reaches.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..engines import EngineSpec

if TYPE_CHECKING:
    import onnx

DOMAIN = "mimicmotion"
ALIGNMENT = 4096
"""Bytes to which weights outside the graph are aligned, so that they can be mapped."""


ONNXRUNTIME, STANDARD = 20, 23
"""Whose operators a graph is written in, as the version of the ONNX standard that they are of."""


class _FusedAttention(torch.autograd.Function):
    """Plain attention in PyTorch, `mimicmotion::Attention` in a traced graph."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> Tensor:
        return plain_attention(q, k, v, heads=heads, scale=scale)

    @staticmethod
    def symbolic(g: Any, q: Any, k: Any, v: Any, heads: int, scale: float) -> Any:
        return g.op(f"{DOMAIN}::Attention", q, k, v, heads_i=heads, scale_f=scale).setType(q.type())


def attend(q: Tensor, k: Tensor, v: Tensor, *, heads: int, scale: float) -> Tensor:
    """softmax(q k^T scale) v for each head; q, k, v and the result are [B,L,heads*d]. One operator when traced."""
    if torch.onnx.is_in_onnx_export():
        fused: Tensor = _FusedAttention.apply(q, k, v, heads, scale)  # type: ignore[no-untyped-call]
        return fused
    return plain_attention(q, k, v, heads=heads, scale=scale)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, *, heads: int, scale: float) -> Tensor:
    """The same by PyTorch's own operator."""
    batch, length, width = q.shape
    q, k, v = (x.reshape(batch, length, heads, width // heads).transpose(1, 2) for x in (q, k, v))
    y = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)
    return y.transpose(1, 2).reshape(batch, length, width)


def trace_onnx(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    spec: EngineSpec,
    path: Path,
    dialect: int = ONNXRUNTIME,
) -> list[Path]:
    """Export with every free dimension of the spec dynamic; returns the files written, the graph first."""
    axes = {
        tensor.name: {axis: dim for axis, dim in enumerate(tensor.shape) if isinstance(dim, str)}
        for tensor in (*spec.inputs, *spec.outputs)
    }
    with _quiet(), torch.inference_mode():
        torch.onnx.export(
            module.eval(),
            tuple(inputs[tensor.name] for tensor in spec.inputs),
            str(path),
            input_names=[tensor.name for tensor in spec.inputs],
            output_names=[tensor.name for tensor in spec.outputs],
            dynamic_axes=axes,
            opset_version=ONNXRUNTIME,
            dynamo=False,  # the dynamo exporter fixes a size that becomes 1 at the deepest level
        )
    return finish(path, dialect)


def trace_torchscript(module: nn.Module, inputs: Mapping[str, Tensor], spec: EngineSpec, path: Path) -> Path:
    """Trace into the TorchScript file `path`; sizes are read from the tensors of each call, so all stay free."""
    with _quiet(), torch.inference_mode():
        traced: Any = torch.jit.trace(  # type: ignore[no-untyped-call]
            module.eval(), tuple(inputs[tensor.name] for tensor in spec.inputs), check_trace=False
        )
        traced.save(str(path))
    return path


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The tracer warns of every branch on a size; the comparison with PyTorch finds the wrong ones."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def finish(path: Path, dialect: int) -> list[Path]:
    """Translate the graph. Over 2 GB the exporter wrote one file for each tensor: gather them in `path`.weights."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    scattered = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    translate(model, dialect)
    if not scattered:
        if dialect == ONNXRUNTIME:
            halve_weights(model)
        onnx.save(model, str(path))
        return [path]
    weights = path.with_suffix(".weights")
    gather_weights(model, path.parent, weights)
    onnx.save(model, str(path))
    for name in scattered:
        (path.parent / name).unlink()
    return [path, weights]


def gather_weights(model: onnx.ModelProto, folder: Path, weights: Path) -> None:
    """Copy every external tensor of a model into the one file `weights`, a tensor at a time."""
    with weights.open("wb") as out:
        for tensor in model.graph.initializer:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            if "location" not in entries:
                continue
            out.write(b"\0" * (-out.tell() % ALIGNMENT))
            offset = out.tell()
            with (folder / entries["location"]).open("rb") as source:
                source.seek(int(entries.get("offset", 0)))
                shutil.copyfileobj(source, out)
            del tensor.external_data[:]
            moved = {"location": weights.name, "offset": offset, "length": out.tell() - offset}
            for key, value in moved.items():
                tensor.external_data.add(key=key, value=str(value))


def translate(model: onnx.ModelProto, dialect: int) -> None:
    """Give the operators of the domain `mimicmotion` their names in a dialect, in place."""
    import onnx

    for node in model.graph.node:
        if node.domain != DOMAIN:
            continue
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        node.domain = ""
        if node.op_type == "Attention":
            heads, scale = attributes["heads"], attributes["scale"]
            if dialect == ONNXRUNTIME:
                node.domain, node.op_type = "com.microsoft", "MultiHeadAttention"
                attributes = {"num_heads": heads, "scale": scale}
            else:
                attributes = {"q_num_heads": heads, "kv_num_heads": heads, "scale": scale}
        del node.attribute[:]
        node.attribute.extend(onnx.helper.make_attribute(*entry) for entry in sorted(attributes.items()))
    opsets = {entry.domain: entry.version for entry in model.opset_import if entry.domain != DOMAIN}
    opsets[""] = dialect  # operators used here only gained dtypes between 20 and 23
    if any(node.domain == "com.microsoft" for node in model.graph.node):
        opsets["com.microsoft"] = 1
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(*entry) for entry in opsets.items())


def halve_weights(model: onnx.ModelProto) -> None:
    """Store float32 weights of 256 numbers and more that float16 holds exactly as float16 behind a Cast.

    ONNX Runtime casts them once, when the session is made, so only the file's size changes.
    """
    import onnx

    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or tensor.external_data:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            narrow = values.astype(np.float16)
        if values.size < 256 or not np.array_equal(narrow.astype(np.float32), values):
            continue
        stored = f"{tensor.name}.float16"
        casts.append(onnx.helper.make_node("Cast", [stored], [tensor.name], to=onnx.TensorProto.FLOAT))
        tensor.CopyFrom(onnx.numpy_helper.from_array(narrow, stored))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
