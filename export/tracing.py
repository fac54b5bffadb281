"""A PyTorch module to one ONNX file (and one file of weights where they exceed 2 GB)."""

from __future__ import annotations

import contextlib
import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..engines import EngineSpec
from .dialect import ONNXRUNTIME, Dialect, halve_weights, translate
from .proof import Inputs

if TYPE_CHECKING:
    import onnx

OPSET = 20
ALIGNMENT = 4096
"""Bytes to which weights outside the graph are aligned, so that they can be mapped."""


def trace(
    module: nn.Module, inputs: Inputs, spec: EngineSpec, path: Path, dialect: Dialect = ONNXRUNTIME
) -> list[Path]:
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
    return finish(path, dialect)


def finish(path: Path, dialect: Dialect) -> list[Path]:
    """Translate the graph; over 2 GB the exporter wrote a file a tensor: bring them into one beside it."""
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
        if dialect is ONNXRUNTIME:
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
            offset, path = out.tell(), folder / entries["location"]
            with path.open("rb") as source:
                source.seek(int(entries.get("offset", 0)))
                shutil.copyfileobj(source, out)
            del tensor.external_data[:]
            for key, value in (
                ("location", weights.name),
                ("offset", offset),
                ("length", out.tell() - offset),
            ):
                tensor.external_data.add(key=key, value=str(value))


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
