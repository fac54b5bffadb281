"""A PyTorch module to one ONNX file (and one file of weights where they exceed 2 GB)."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from ..engines import EngineSpec
from .proof import Inputs

OPSET = 20


def trace(module: nn.Module, inputs: Inputs, spec: EngineSpec, path: Path) -> list[Path]:
    """Export with every free dimension of the spec dynamic; the files written, the graph first."""
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
            opset_version=OPSET,
            dynamo=False,  # the dynamo exporter fixes a size that becomes 1 at the deepest level
        )
    return _gather_weights(path)


def _gather_weights(path: Path) -> list[Path]:
    """Over 2 GB the exporter writes a file a tensor; bring them into one beside the graph."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False)
    scattered = {
        entry.value
        for tensor in graph.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    if not scattered:
        return [path]
    weights = path.with_suffix(".weights")
    full = onnx.load(str(path))
    onnx.save(
        full, str(path), save_as_external_data=True, all_tensors_to_one_file=True, location=weights.name
    )
    for name in scattered:
        (path.parent / name).unlink()
    return [path, weights]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The tracer warns of every branch on a size; the proof afterwards is what counts."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
