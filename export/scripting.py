"""A PyTorch module to one TorchScript file, which runs with PyTorch alone."""

from __future__ import annotations

import os
import secrets
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..engines import EngineSpec, GraphStats
from .proof import Inputs

PRODUCTS = ("aten.linear", "aten._convolution")
NORMS = ("aten.group_norm", "aten.layer_norm", "aten.instance_norm")


def script(module: nn.Module, inputs: Inputs, spec: EngineSpec, path: Path) -> Path:
    """Trace a module into the file `path`; sizes are read from the tensors of each call, so all stay free."""
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # of every branch on a size; the proof afterwards is what counts
        traced: Any = torch.jit.trace(  # type: ignore[no-untyped-call]
            module.eval(), tuple(inputs[tensor.name] for tensor in spec.inputs), check_trace=False
        )
        beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        traced.save(str(beside))
    os.replace(beside, path)
    return path


def audit_program(program: torch.fx.GraphModule) -> GraphStats:
    """The audit of a loaded engine's graph."""
    nodes = [node for node in program.graph.nodes if node.op.startswith("call")]
    kinds = Counter(_kind(node) for node in nodes)
    products = [node for node in nodes if _kind(node) in PRODUCTS]
    return GraphStats(
        operators=len(nodes),
        products=len(products),
        wide=sum(_weight(program, node).dtype == torch.float32 for node in products),
        attention=kinds["aten.scaled_dot_product_attention"],
        softmax=kinds["aten.softmax"] + kinds["aten._softmax"],
        norms=sum(kinds[kind] for kind in NORMS),
        transposes=kinds["aten.transpose"] + kinds["aten.permute"],
        casts=kinds["aten.to"],
        shapes=sum(not _kind(node).startswith("aten.") for node in nodes),
    )


def _kind(node: torch.fx.Node) -> str:
    """`aten.linear`, `size`, `mul`."""
    target: Any = node.target
    return target if isinstance(target, str) else str(getattr(target, "overloadpacket", target.__name__))


def _weight(program: torch.fx.GraphModule, node: torch.fx.Node) -> torch.Tensor:
    """The weights of a product."""
    value: Any = program
    weight: Any = node.args[1]
    for name in weight.target.split("."):
        value = getattr(value, name)
    return value  # type: ignore[no-any-return]
