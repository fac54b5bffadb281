"""Every name that is used of TensorRT, TensorRT-RTX and cuda.core exists there; the source is read, no GPU needed."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from . import stand_in_tensorrt

ROOT = Path(__file__).parents[2]
API = ("api", "library.api", "session.library.api", "self._session.library.api")

RUNNING = {
    "engine": "ICudaEngine",
    "self._opened()": "ICudaEngine",
    "config": "IRuntimeConfig",
    "settings": "ISerializationConfig",
    "inspector": "EngineInspector",
    "self._context": "IExecutionContext",
    "runtime": "Runtime",
    "session.runtime": "Runtime",
    "refitter": "Refitter",
    "parser": "OnnxParserRefitter",
    "parser.get_error(index)": "ParserError",
}
BUILDING = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "parser": "OnnxParser",
    "parser.get_error(i)": "ParserError",
    "made": "IOptimizationProfile",
    "t": "ITensor",
}
CUDA = {
    "device": "Device",
    "self._device": "Device",
    "self.stream": "Stream",
    "self.event": "Event",
    "code": "ObjectCode",
    "into": "Buffer",
    "self._pinned": "LegacyPinnedMemoryResource",
    "buffer": "Buffer",
    "target.owner": "Buffer",
}
FULL_ONLY = (
    "OnnxParserRefitter",
    "ParserError",
    "EngineValidity",
    "EngineInvalidityDiagnostics",
    "get_engine_validity",
    "EngineInspector",
    "ComputeCapability",
    "DynamicShapesKernelSpecializationStrategy",
    "dynamic_shapes_kernel_specialization_strategy",
    "is_stream_capturable",
)
"""Not in every flavour; the source asks before it uses them."""


def names_used(source: str, receivers: Mapping[str, str], modules: tuple[str, ...]) -> set[tuple[str, str]]:
    """(class or "", dotted name) of every attribute that the source takes of a receiver or a module."""
    used = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            dotted = ast.unparse(node)
            for receiver, kind in (*receivers.items(), *((module, "") for module in modules)):
                if re.fullmatch(re.escape(receiver) + r"(\.\w+)+", dotted):
                    used.add((kind, dotted.removeprefix(receiver + ".")))
    return used


def missing(library: Any, used: set[tuple[str, str]]) -> list[str]:
    """Those of the names that a library does not have; attributes of what is no class or module are not followed."""
    return sorted(
        f"{kind}.{dotted}".strip(".") for kind, dotted in used if not has(library, (kind + "." + dotted))
    )


def has(library: Any, dotted: str) -> bool:
    at = library
    for part in filter(None, dotted.split(".")):
        if not (inspect.ismodule(at) or inspect.isclass(at)):
            return True
        if not hasattr(at, part):
            return False
        at = getattr(at, part)
    return True


def runtime_names() -> set[tuple[str, str]]:
    modules = ("tensorrt_backend", "tensorrt_library")
    sources = [(ROOT / "engines" / f"{module}.py").read_text() for module in modules]
    return set().union(*(names_used(source, RUNNING, API) for source in sources))


def builder_names() -> set[tuple[str, str]]:
    sources = [(ROOT / "export" / f"{module}.py").read_text() for module in ("tensorrt_build",)]
    return set().union(*(names_used(source, BUILDING, API) for source in sources))


def test_the_readers_find_what_is_used():
    found = {f"{kind}.{name}" for kind, name in runtime_names()}
    assert {
        "IExecutionContext.execute_async_v3",
        "IExecutionContext.set_tensor_address",
        "IExecutionContext.set_device_memory",
        "ICudaEngine.get_device_memory_size_for_profile_v2",
        "ICudaEngine.weight_streaming_budget_v2",
        "Runtime.deserialize_cuda_engine",
        "Refitter.refit_cuda_engine",
        "ICudaEngine.create_engine_inspector",
        "EngineInspector.get_engine_information",
        ".LayerInformationFormat.JSON",
        "OnnxParserRefitter.refit_from_file",
        "ICudaEngine.serialize_with_config",
        "ISerializationConfig.set_flag",
        ".ExecutionContextAllocationStrategy.USER_MANAGED",
        ".DynamicShapesKernelSpecializationStrategy.EAGER",
        "ICudaEngine.create_runtime_config",
        "IRuntimeConfig.set_execution_context_allocation_strategy",
        "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
        "IExecutionContext.is_stream_capturable",
    } <= found
    assert ("Builder", "build_serialized_network") in builder_names()


def test_the_runtimes_names_are_tensorrt_rtxs():
    assert missing(importlib.import_module("tensorrt_rtx"), runtime_names()) == []


def test_the_runtimes_names_are_tensorrts():
    """The lean runtime has the bindings of the full one but for parser and builder."""
    used = {pair for pair in runtime_names() if not set(FULL_ONLY) & {pair[0], *pair[1].split(".")}}
    assert missing(importlib.import_module("tensorrt_lean"), used) == []


def test_the_builders_names_are_tensorrt_rtxs():
    assert missing(importlib.import_module("tensorrt_rtx"), builder_names()) == []


def test_the_names_of_cuda_core():
    files = ("engines/cuda.py", "engines/cuda_device.py", "engines/cuda_memory.py")
    sources = [(ROOT / file).read_text() for file in files]
    used = set().union(*(names_used(source, CUDA, ("core", "self._core")) for source in sources))
    assert {
        ("Device", "create_stream"),
        ("Buffer", "copy_from"),
        ("", "launch"),
        ("Event", "is_done"),
    } <= used
    assert missing(importlib.import_module("cuda.core"), used) == []
    driver = ("driver", "self.driver", "self._gpu.driver")
    used = set().union(*(names_used(source, {}, driver) for source in sources))
    assert {("", "cuInit"), ("", "cuStreamQuery"), ("", "cuGraphLaunch"), ("", "cuStreamEndCapture")} <= used
    assert missing(importlib.import_module("cuda.bindings.driver"), used) == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("self._context.execute_async_v4(0)", ["IExecutionContext.execute_async_v4"]),
        ("config.kernel_specialization_strategy = 1", ["IRuntimeConfig.kernel_specialization_strategy"]),
        ("engine.num_bindings", ["ICudaEngine.num_bindings"]),
        ("api.ExecutionContextAllocationStrategy.USER", ["ExecutionContextAllocationStrategy.USER"]),
        ("engine.weight_streaming_budget = 3", ["ICudaEngine.weight_streaming_budget"]),
    ],
)
def test_a_misspelt_or_removed_name_is_found(line, says):
    for flavour in ("tensorrt_rtx", "tensorrt_lean"):
        assert missing(importlib.import_module(flavour), names_used(line, RUNNING, API)) == says


def stand_ins() -> Iterator[tuple[str, str]]:
    for kind in stand_in_tensorrt.CLASSES:
        for name in vars(kind):
            if not name.startswith("_"):
                yield kind.__name__, name


@pytest.mark.parametrize(("kind", "name"), list(stand_ins()))
def test_the_stand_in_offers_real_names_only(kind, name):
    assert hasattr(getattr(importlib.import_module("tensorrt_rtx"), kind), name)
