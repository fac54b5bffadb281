"""Other weights in an ONNX file, by the few fields of the format that this needs; all else is kept as it is.

Field numbers and types: onnx.proto3 of the ONNX project.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from ..errors import BundleError
from .spec import Array
from .weight_table import Delta, check_range

HALVED = ".float16"
"""A float32 tensor that float16 holds exactly may be stored as one of its name and this, behind a Cast."""
CHANGED = "changed.weights"
"""The file beside the graph that holds changed weights."""
EXTERNAL = 1
"""TensorProto.DataLocation: the values lie in another file."""
DTYPES: Mapping[int, np.dtype[Any]] = {1: np.dtype(np.float32), 10: np.dtype(np.float16)}
"""TensorProto.DataType of weights."""
FIELDS: Mapping[str, Mapping[str, tuple[int, str]]] = {
    "Entry": {"key": (1, "string"), "value": (2, "string")},
    "Tensor": {
        "dims": (1, "int64*"),
        "data_type": (2, "int32"),
        "name": (8, "string"),
        "raw_data": (9, "bytes"),
        "external_data": (13, "Entry*"),
        "data_location": (14, "int32"),
    },
    "Node": {"input": (1, "string*"), "output": (2, "string*"), "op_type": (4, "string")},
    "Graph": {"node": (1, "Node*"), "initializer": (5, "Tensor*")},
    "Model": {"graph": (7, "Graph")},
}
"""Message -> its fields: number and type, a star where it is repeated."""


@functools.cache
def _model_class() -> Any:
    """The class of an ONNX model's message."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="onnx_weights.proto", package="mimicmotion_onnx", syntax="proto2"
    )
    for message, fields in FIELDS.items():
        described = file.message_type.add(name=message)
        for name, (number, kind) in fields.items():
            plain = kind.rstrip("*")
            made = described.field.add(name=name, number=number)
            made.label = field.LABEL_REPEATED if kind.endswith("*") else field.LABEL_OPTIONAL
            if plain in FIELDS:
                made.type, made.type_name = field.TYPE_MESSAGE, f".mimicmotion_onnx.{plain}"
            else:
                made.type = field.Type.Value(f"TYPE_{plain.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("mimicmotion_onnx.Model"))


def change_weights(path: Path, deltas: Mapping[str, Delta]) -> tuple[bytes, dict[str, Array]]:
    """An ONNX file whose weights `deltas` are changed, without their values, and these values by name.

    The file says that they lie in `CHANGED`, one after the other. Raises `BundleError` if it has no such weights,
    or if a changed one leaves the range of its dtype.
    """
    model = _model_class().FromString(path.read_bytes())
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    values: dict[str, Array] = {}
    offset = 0
    for name, delta in deltas.items():
        tensor = tensors.get(name) or tensors.get(name + HALVED)
        if tensor is None or tensor.data_type not in DTYPES:
            raise BundleError(
                f"{path.name} has no weight {name}.", remedy="Rebuild the bundle.", field="lora"
            )
        base = read_tensor(path, tensor)
        dtype = base.dtype if tensor.name == name else np.dtype(np.float32)
        with np.errstate(over="ignore"):
            values[name] = (base.astype(np.float64) + delta().reshape(base.shape)).astype(dtype)
        check_range(name, bool(np.isfinite(values[name]).all()), dtype)
        tensor.name = name
        tensor.data_type = next(number for number, known in DTYPES.items() if known == dtype)
        _place_outside(tensor, offset, values[name].nbytes)
        offset += values[name].nbytes
    _drop_casts(model.graph, {name for name in values if name + HALVED in tensors})
    data: bytes = model.SerializeToString()
    return data, values


def write_changed(path: Path, deltas: Mapping[str, Delta], folder: Path) -> Path:
    """Write the changed ONNX file into a folder, with all that it reads; returns its path. Raises `BundleError`."""
    data, values = change_weights(path, deltas)
    graph = folder / path.name
    graph.write_bytes(data)
    with (folder / CHANGED).open("wb") as out:
        for array in values.values():
            out.write(array.tobytes())
    weights = path.with_suffix(".weights")
    if weights.exists():  # a copy, since readers refuse links
        shutil.copyfile(weights, folder / weights.name)
    return graph


def read_tensor(path: Path, tensor: Any) -> Array:
    """The values of a tensor of the file `path`, wherever they lie."""
    dtype, shape = DTYPES[tensor.data_type], tuple(tensor.dims)
    if tensor.data_location != EXTERNAL:
        return np.frombuffer(tensor.raw_data, dtype).reshape(shape)
    entries = {entry.key: entry.value for entry in tensor.external_data}
    count, offset = int(np.prod(shape)), int(entries.get("offset", 0))
    return np.fromfile(path.parent / entries["location"], dtype, count, offset=offset).reshape(shape)


def _place_outside(tensor: Any, offset: int, size: int) -> None:
    tensor.ClearField("raw_data")
    del tensor.external_data[:]
    tensor.data_location = EXTERNAL
    for key, value in {"location": CHANGED, "offset": offset, "length": size}.items():
        tensor.external_data.add(key=key, value=str(value))


def _drop_casts(graph: Any, names: set[str]) -> None:
    """Remove the Casts that gave these tensors."""
    kept = [node for node in graph.node if not (node.op_type == "Cast" and node.output[0] in names)]
    if len(kept) < len(graph.node):
        del graph.node[:]
        graph.node.extend(kept)
