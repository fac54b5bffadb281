"""A TorchScript trace as a `torch.fx` graph of ATen operators.

As a graph its device is chosen when it is loaded, sizes are plain integers, and `torch.compile` takes it whole.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch

SIZES: Mapping[str, Callable[..., Any]] = {
    "aten::add": operator.add,
    "aten::sub": operator.sub,
    "aten::mul": operator.mul,
    "aten::floor_divide": operator.floordiv,
}
"""Arithmetic on sizes, which a trace does on tensors."""
SAME = ("prim::NumToTensor", "aten::Int", "aten::ScalarImplicit")
"""What turns sizes into tensors and back."""


def read_trace(trace: Any, device: torch.device) -> torch.fx.GraphModule:
    """A TorchScript trace without control flow as a graph of ATen operators, whose new tensors are on `device`.

    Raises `ValueError` for an operator that a traced network of ours does not have.
    """
    graph, tensors = torch.fx.Graph(), dict(trace.state_dict())
    traced = trace.inlined_graph
    own, *arguments = traced.inputs()
    values: dict[str, Any] = {
        value.debugName(): graph.placeholder(f"input_{index}") for index, value in enumerate(arguments)
    }
    paths, sizes = {own.debugName(): ""}, set[str]()
    for node in traced.nodes():
        kind, inputs = node.kind(), [value.debugName() for value in node.inputs()]
        outputs = [value.debugName() for value in node.outputs()]
        if kind == "prim::GetAttr":
            path = f"{paths[inputs[0]]}.{node.s('name')}".lstrip(".")
            paths[outputs[0]] = path
            if path in tensors:
                values[outputs[0]] = graph.get_attr(path)
            continue
        given = [values[name] for name in inputs]
        if kind == "prim::Constant":
            values[outputs[0]] = _constant(node.output(), device, graph, tensors)
            if isinstance(values[outputs[0]], int):
                sizes.add(outputs[0])
        elif kind in SAME:
            values[outputs[0]] = given[0]
            sizes.add(outputs[0])
        elif kind in ("prim::ListConstruct", "prim::TupleConstruct"):
            values[outputs[0]] = given
        elif kind in ("prim::ListUnpack", "prim::TupleUnpack"):
            for index, name in enumerate(outputs):
                values[name] = _item(graph, given[0], index)
        elif kind == "aten::size":
            values[outputs[0]] = graph.call_method("size", tuple(given))
        elif kind in SIZES and sizes.issuperset(inputs):
            values[outputs[0]] = graph.call_function(SIZES[kind], tuple(given[:2]))
            sizes.add(outputs[0])
        else:
            values[outputs[0]] = _call(graph, node, given)
    (result,) = (values[value.debugName()] for value in traced.outputs())
    graph.output(result)
    used = {node.target for node in graph.nodes if node.op == "get_attr"}
    return torch.fx.GraphModule({name: tensors[name] for name in tensors if name in used}, graph)


def count_tensors(graph: torch.fx.Graph) -> tuple[int, int]:
    """How many a network takes, and how many it answers."""
    inputs = sum(node.op == "placeholder" for node in graph.nodes)
    (result,) = next(node.args for node in graph.nodes if node.op == "output")
    return inputs, len(result) if isinstance(result, (list, tuple)) else 1


def _constant(output: Any, device: torch.device, graph: torch.fx.Graph, tensors: dict[str, Any]) -> Any:
    """A constant's value; of a device the one that is wanted now, of a number in a tensor the number."""
    value = output.toIValue()
    if isinstance(value, torch.device):
        return device
    if not isinstance(value, torch.Tensor):
        return value
    if value.dim() == 0:
        return value.item()
    name = f"constant_{len(tensors)}"
    tensors[name] = value.to(device)
    return graph.get_attr(name)


def _item(graph: torch.fx.Graph, value: Any, index: int) -> Any:
    return value[index] if isinstance(value, list) else graph.call_function(operator.getitem, (value, index))


def _call(graph: torch.fx.Graph, node: Any, given: list[Any]) -> torch.fx.Node:
    """A call of the same overload of the same ATen operator."""
    space, _, name = node.schema().partition("(")[0].partition("::")
    if space != "aten":
        raise ValueError(f"{node.kind()} is no operator of a traced network")
    packet, _, overload = name.partition(".")
    target = getattr(getattr(torch.ops.aten, packet), overload or "default")
    arguments = list(zip(target._schema.arguments, given, strict=True))
    positional = tuple(value for argument, value in arguments if not argument.kwarg_only)
    named = {argument.name: value for argument, value in arguments if argument.kwarg_only}
    return graph.call_function(target, positional, named)
