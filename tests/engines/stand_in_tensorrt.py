"""A stand-in for TensorRT and for a GPU: "device" memory is the host's, the network doubles its input.

Its classes offer names of the real bindings only; `test_tensorrt_names.py` holds them to that.
"""

from __future__ import annotations

import ctypes
import enum
import json
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np

from mimicmotion_trt.engines import EnginePlan, EngineSpec, Profile, TensorSpec
from mimicmotion_trt.engines.cuda_memory import Arena, Memory
from mimicmotion_trt.engines.tensorrt_library import Library, Session

SPEC = EngineSpec((TensorSpec("x", "float16", ("rows", 3)),), (TensorSpec("y", "float32", ("rows", 3)),))
PROFILES = (Profile({"rows": (1, 1, 1)}), Profile({"rows": (2, 3, 4)}))
SCRATCH = (1000, 5000)
"""Bytes of each profile."""


def plan_of(**changes: Any) -> EnginePlan:
    values = {"library": "tensorrt 11.4.0.106", "target": "NVIDIA L4 SM89", "profiles": PROFILES} | changes
    return EnginePlan(**values)


class HostGpu:
    """`cuda.Gpu` on numpy arrays; everything happens at once, `did` tells in which order."""

    def __init__(self, free: int = 10**9, capability: str = "SM89") -> None:
        self.index, self.name, self.capability, self.free = 0, "NVIDIA L4", capability, free
        self.did: list[str] = []
        self.allocated: list[int] = []
        self.stream = SimpleNamespace(handle=7)
        self.lock = threading.RLock()
        self.capturing = False
        self.scratch = Arena(self.allocate)

    def activate(self) -> None:
        pass

    @contextmanager
    def locked(self) -> Iterator[None]:
        with self.lock:
            yield

    def free_memory(self) -> int:
        return self.free

    def allocate(self, size: int) -> Memory:
        self.allocated.append(size)
        return self._memory(size)

    def pin(self, size: int) -> Memory:
        return self._memory(size)

    def _memory(self, size: int) -> Memory:
        owner = np.zeros(size, np.uint8)
        return Memory(owner.ctypes.data, size, owner)

    def copy(self, source: Memory, target: Memory) -> None:
        self.did.append("copy")
        target.owner[:] = source.owner

    def wait(self) -> None:
        self.did.append("wait")


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY, EAGER, NONE = range(3)


class IRuntimeConfig:
    dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY
    _allocation = ExecutionContextAllocationStrategy.STATIC

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self._allocation = strategy


class TensorIOMode(enum.Enum):
    NONE, INPUT, OUTPUT = range(3)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, config: IRuntimeConfig) -> None:
        self._engine, self._at, self._shape = engine, dict[str, int](), (0, 0)
        self._profile, self._scratch = -1, (0, 0)

    def __del__(self) -> None:
        self._engine._log.append("context gone")

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self._profile = index
        self._engine._log.append(f"profile {index}")
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shape = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._engine._log.append(f"bind {name}")
        self._at[name] = address
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        self._scratch = (address, size)
        self._engine._log.append(f"scratch at {address}")

    def is_stream_capturable(self, stream: int) -> bool:
        self._engine._log.append(f"asked of {stream}")
        return "capture" not in self._engine._faults

    def execute_async_v3(self, stream: int) -> bool:
        engine = self._engine
        engine._log.append(f"run on {stream}")
        if "run" in engine._faults:
            engine._messages.append("Error Code 1: Cuda Runtime (out of memory)")
            return False
        address, size = self._scratch
        assert size >= SCRATCH[self._profile]
        ctypes.memset(address, 0xFF, size)  # what is not ours would be destroyed here
        rows, columns = self._shape
        count = rows * columns
        x = np.frombuffer((ctypes.c_char * (2 * count)).from_address(self._at["x"]), np.float16)
        y = np.frombuffer((ctypes.c_char * (4 * count)).from_address(self._at["y"]), np.float32)
        y.flags.writeable = True
        y[:] = x.astype(np.float32) * engine._factor
        return True


class ICudaEngine:
    num_io_tensors = 2
    num_optimization_profiles = 2
    streamable_weights_size = 4000

    def __init__(self, log: list[str], messages: deque[str], faults: set[str]) -> None:
        self._log, self._messages, self._faults, self._factor = log, messages, faults, 2.0

    def __del__(self) -> None:
        self._log.append("engine gone")

    @property
    def weight_streaming_budget_v2(self) -> int:
        return self._budget

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, size: int) -> None:
        self._budget = size
        self._log.append(f"budget {size}")

    def get_tensor_name(self, index: int) -> str:
        return ("x", "y")[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name == "x" else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return np.float16 if name == "x" else np.float32

    def get_tensor_shape(self, name: str) -> tuple[int, int]:
        return (-1, 3)

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return SCRATCH[profile]

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector()

    def create_serialization_config(self) -> ISerializationConfig:
        return ISerializationConfig()

    def serialize_with_config(self, settings: ISerializationConfig) -> bytes | None:
        if "write" in self._faults:
            self._messages.append("Error Code 2: OutOfMemory")
            return None
        return f"plan times {self._factor}{' refittable' if settings.refittable else ''}".encode()

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, config: IRuntimeConfig) -> IExecutionContext:
        assert config._allocation is ExecutionContextAllocationStrategy.USER_MANAGED
        self._log.append(f"kernels {config.dynamic_shapes_kernel_specialization_strategy.name}")
        return IExecutionContext(self, config)


class SerializationFlag(enum.Enum):
    EXCLUDE_WEIGHTS, EXCLUDE_LEAN_RUNTIME, INCLUDE_REFIT = range(3)


class ISerializationConfig:
    def __init__(self) -> None:
        self.refittable = False

    def set_flag(self, flag: SerializationFlag) -> bool:
        assert flag is SerializationFlag.INCLUDE_REFIT
        self.refittable = True
        return True


class LayerInformationFormat(enum.Enum):
    JSON = 1


class EngineInspector:
    def get_engine_information(self, form: LayerInformationFormat) -> str:
        assert form is LayerInformationFormat.JSON
        outputs = [{"Name": "y", "Dimensions": [1, 3], "Format": "Row-Major", "Datatype": "Float"}]
        return json.dumps({"Layers": [{"Name": "double", "LayerType": "PointWise", "Outputs": outputs}]})


class Runtime:
    """Loads anything that begins with `plan`."""

    def __init__(self, log: list[str], messages: deque[str], faults: set[str]) -> None:
        self._log, self._messages, self._faults = log, messages, faults

    def deserialize_cuda_engine(self, data: Any) -> ICudaEngine | None:
        if bytes(data)[:4] != b"plan":
            self._messages.append("Serialization assertion header.magicTag == kEXPECTED_MAGIC_TAG failed.")
            return None
        return ICudaEngine(self._log, self._messages, self._faults)


class Refitter:
    def __init__(self, engine: ICudaEngine, logger: Any) -> None:
        self._engine = engine

    def get_missing_weights(self) -> list[str]:
        return []

    def refit_cuda_engine(self) -> bool:
        self._engine._factor = 3.0
        return True


class OnnxParserRefitter:
    num_errors = 1

    def __init__(self, refitter: Refitter, logger: Any) -> None:
        pass

    def refit_from_file(self, path: str) -> bool:
        return path.endswith("good.onnx")

    def get_error(self, index: int) -> Any:
        return SimpleNamespace(desc=lambda: "no initializer named conv.weight")


CLASSES = (
    DynamicShapesKernelSpecializationStrategy,
    EngineInspector,
    ExecutionContextAllocationStrategy,
    ICudaEngine,
    IExecutionContext,
    ILogger,
    IRuntimeConfig,
    ISerializationConfig,
    LayerInformationFormat,
    OnnxParserRefitter,
    Refitter,
    Runtime,
    SerializationFlag,
    TensorIOMode,
)


def open_stand_in(
    gpu: HostGpu | None = None, log: list[str] | None = None, faults: set[str] | None = None
) -> Session:
    """A session of the stand-in; `log` is told what happens to engines and contexts.

    While these words are in `faults`, it cannot "run" or "write" an engine, or "capture" a run.
    """
    messages: deque[str] = deque()
    api = SimpleNamespace(__version__="11.4.0.106", nptype=lambda dtype: dtype)
    for kind in CLASSES:
        setattr(api, kind.__name__, kind)
    library = Library("tensorrt", api, None, messages)
    made: Any = gpu or HostGpu()
    return Session(
        library, made, Runtime([] if log is None else log, messages, set() if faults is None else faults)
    )
