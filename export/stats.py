"""What a network costs, as a function of a call's shape, and which operators its graph is made of."""

from __future__ import annotations

import operator
from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from ..engines import EngineSpec, FlopModel, GraphStats, call_sizes
from ..errors import ExportError

Shape = tuple[int, int, int, int]
"""(rows, frames, latent height, latent width)."""

# Five unknowns, five calls: frames vary at one size, sizes at one frame. The sixth only checks.
SHAPES: tuple[Shape, ...] = ((1, 1, 8, 16), (1, 2, 8, 16), (1, 3, 8, 16), (1, 1, 16, 16), (1, 1, 24, 16))
CHECK: Shape = (1, 5, 16, 32)
DENOMINATOR = 2.0**12
"""Coefficients are whole multiples of 1 over this: two latent pixels at the U-Net's deepest level is 1/64**2."""

SHAPE_KEEPING = (F.group_norm, F.layer_norm, F.instance_norm, F.silu, F.gelu)
ATTENTION = ("Attention", "MultiHeadAttention")
NORMS = ("GroupNormalization", "LayerNormalization", "InstanceNormalization")
PRODUCTS = ("Conv", "Gemm", "MatMul")
SIZE_OPERATORS = (
    "Shape", "Gather", "Unsqueeze", "Concat", "Div", "Range", "Slice", "Squeeze",
    "Mul", "Add", "Cast", "Equal", "Where", "ConstantOfShape",
)  # fmt: skip
TORCH_PRODUCTS = ("aten.linear", "aten._convolution")
TORCH_NORMS = ("aten.group_norm", "aten.layer_norm", "aten.instance_norm")


def fit_flops(network: str, module: nn.Module, spec: EngineSpec) -> FlopModel:
    """The operations of one network in the form that is exported (single-token cross-attention folded).

    Nothing is computed: the calls run on PyTorch's meta device, on shapes alone, so it takes seconds for any width
    of network. Exact for one row; positions in time, which the rows of a batch share, count once a row (3e-5 of
    the whole at 576x1024). Raises `ExportError` if the operations do not grow as `FlopModel` says.
    """
    tensors = (*module.named_parameters(), *module.named_buffers())
    weights = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors}
    counted = [count_flops(module, weights, spec, shape) for shape in SHAPES]
    columns = [[1, f, f * h * w, f * (h * w) ** 2, f * f * h * w] for _, f, h, w in SHAPES]
    solved = np.linalg.solve(np.array(columns, np.float64), np.array(counted, np.float64))
    # A coefficient below zero is no network of this form either: without it the check fails.
    model = FlopModel(*(max(0.0, float(value)) for value in np.round(solved * DENOMINATOR) / DENOMINATOR))
    rows, frames, height, width = CHECK
    expected = count_flops(module, weights, spec, CHECK)
    found = model.total(rows=rows, frames=frames, pixels=height * width)
    if found != expected:
        raise ExportError(
            f"the operations of {network} do not grow as expected: {found:.4g} instead of {expected:.4g}.",
            remedy="This exporter does not know such a network; please report it.",
        )
    return model


def input_shapes(spec: EngineSpec, shape: Shape, batch: int) -> dict[str, tuple[int, ...]]:
    """The shape of each input of a call."""
    rows, frames, height, width = shape
    sizes = call_sizes(frames, (height, width), rows=rows, batch=batch)
    return {tensor.name: tensor.sized(sizes) for tensor in spec.inputs}


def count_flops(module: nn.Module, weights: dict[str, Tensor], spec: EngineSpec, shape: Shape) -> int:
    """Operations of one call, as PyTorch's `FlopCounterMode` counts them, with `weights` on the meta device."""
    shapes = input_shapes(spec, shape, batch=shape[1])
    inputs = tuple(torch.empty(sizes, device="meta") for sizes in shapes.values())
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter, _ProductsOnly():
        functional_call(module, weights, inputs)
    return int(counter.get_total_flops())


class _ProductsOnly(TorchFunctionMode):
    """Skips what is not counted and keeps its input's shape, and biases: on the meta device they take most time."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in SHAPE_KEEPING:
            return args[0]
        if func is F.linear:
            return func(*args[:2])
        return func(*args, **(kwargs or {}))


def graph_stats(model: Any) -> GraphStats:
    """Of an `onnx.ModelProto`, whose weights need not be loaded."""
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
    """Tensors that hold sizes: results of Shape operators, and of arithmetic on nothing but these."""
    found: set[str] = set()
    constants = {"", *(tensor.name for tensor in model.graph.initializer)}
    constants |= {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    for node in model.graph.node:  # sorted: what a node reads stands before it
        read = set(node.input) - constants
        if node.op_type == "Shape" or (node.op_type in SIZE_OPERATORS and read and read <= found):
            found.update(node.output)
    return found


def program_stats(program: torch.fx.GraphModule) -> GraphStats:
    """Of a loaded TorchScript engine's graph."""
    nodes = [node for node in program.graph.nodes if node.op.startswith("call")]
    kinds = Counter(map(_kind, nodes))
    products = [node for node in nodes if _kind(node) in TORCH_PRODUCTS]
    return GraphStats(
        operators=len(nodes),
        products=len(products),
        wide=sum(_weight(program, node).dtype == torch.float32 for node in products),
        attention=kinds["aten.scaled_dot_product_attention"],
        softmax=kinds["aten.softmax"] + kinds["aten._softmax"],
        norms=sum(kinds[kind] for kind in TORCH_NORMS),
        transposes=kinds["aten.transpose"] + kinds["aten.permute"],
        casts=kinds["aten.to"],
        shapes=sum(count for kind, count in kinds.items() if not kind.startswith("aten.")),
    )


def _kind(node: torch.fx.Node) -> str:
    """`aten.linear`, `size`, `mul`."""
    target: Any = node.target
    return target if isinstance(target, str) else str(getattr(target, "overloadpacket", target.__name__))


def _weight(program: torch.fx.GraphModule, node: torch.fx.Node) -> Tensor:
    """The weights of a product."""
    weight: Any = node.args[1]
    return operator.attrgetter(weight.target)(program)  # type: ignore[no-any-return]
