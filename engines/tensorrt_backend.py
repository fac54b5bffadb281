"""Engines on TensorRT and TensorRT-RTX: one class for both, on memory that is fixed when an engine is bound."""

from __future__ import annotations

import json
import mmap
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BundleError, EngineError
from .backend import Placement
from .cuda import Gpu
from .cuda_memory import DeviceArray, Memory, error_class
from .onnx_weights import write_changed
from .spec import Array, EnginePlan, EngineSpec
from .tensorrt_library import REBUILD, Session, check_plan, check_validity, open_session
from .weight_table import WeightChanges

FLOAT32 = ("fp32", "float32", "float")
"""How inspectors name it, in lower case."""
FULL_LIBRARY = "Install the full library: pip install 'mimicmotion-trt[gpu]'"
SMALLER = "Use fewer pixels, frames or rows if memory ran out; else report it with the text above."


def open_engine(
    path: Path,
    spec: EngineSpec,
    placement: Placement,
    *,
    plan: EnginePlan | None,
    changes: WeightChanges | None = None,
) -> TensorRtEngine:
    """Load one plan on the device "auto", "cuda" or "cuda:1"; with `changes` it is refitted by its graph."""
    if plan is None:
        raise BundleError(f"the manifest does not say which TensorRT compiled {path.name}.", remedy=REBUILD)
    flavour = plan.library.partition(" ")[0]
    session = open_session(flavour, placement.device, placement.stream)
    loaded = TensorRtEngine(session, path, spec, plan)
    if changes is not None:
        try:
            _refit_changed(loaded, changes)
        except BaseException:
            loaded.close()
            raise
    return loaded


def _refit_changed(loaded: TensorRtEngine, changes: WeightChanges) -> None:
    """Refit a plan with its own graph, some weights changed."""
    assert changes.graph is not None  # a bundle without the graph has no table of weights either
    with tempfile.TemporaryDirectory(prefix="mimicmotion-") as folder:
        loaded.refit(write_changed(changes.graph, changes.deltas, Path(folder)))


class TensorRtEngine:
    """One plan on one GPU. Calls may come from several threads; they take turns."""

    def __init__(self, session: Session, path: Path, spec: EngineSpec, plan: EnginePlan) -> None:
        self.spec, self.gpu = spec, session.gpu
        self._session, self._plan, self._name = session, plan, path.name
        self._bindings: weakref.WeakSet[Binding] = weakref.WeakSet()
        with self.gpu.locked():
            check_plan(session, plan, path.stat().st_size, path.name)
            self._engine: Any = _load(session, path)
            self._check_tensors()
            if plan.streamable:
                self.stream_weights()
            self.gpu.scratch.join()

    def bind(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Binding:
        """See `Engine.bind`; each array may be numpy's, or one on the GPU (`__cuda_array_interface__`).

        Arrays on the GPU are used where they are. Arrays of the host are copied in and out by the call, through
        memory that is allocated here. Raises `EngineError` if the plan has no profile for the shapes.
        """
        sources = {name: _array(array) for name, array in inputs.items()}
        targets = {name: _array(array) for name, array in outputs.items()}
        profile = self._plan.choose(self.spec.check(sources, targets))
        with self.gpu.locked():
            binding = Binding(self._session, self._opened(), profile, sources, targets)
            self._bindings.add(binding)
        return binding

    def stream_weights(self, budget: int | None = None) -> None:
        """Keep at most `budget` bytes of weights on the GPU, the rest in the host's memory; call it before `bind`.

        None: half of what is free beside the scratch memory of the largest profile. The bundle's other networks,
        which load later, and the arrays of jobs need the other half; TensorRT's automatic budget knows of neither.
        """
        engine = self._opened()
        if budget is None:
            profiles = range(engine.num_optimization_profiles)
            scratch = max(int(engine.get_device_memory_size_for_profile_v2(index)) for index in profiles)
            budget = max(self.gpu.free_memory() - scratch, 0) // 2
        engine.weight_streaming_budget_v2 = min(budget, int(engine.streamable_weights_size))

    def refit(self, graph: str | Path) -> None:
        """Put the weights of an ONNX file of the same network and exporter into the plan: a LoRA, a checkpoint.

        Bindings go on with the new weights; graphs have to be captured again. Raises `EngineError`; after a
        failure half of the weights may be new, and the engine is to be closed.
        """
        library = self._session.library
        if not self._plan.refittable:
            raise EngineError(
                f"{self._name} does not take other weights.", remedy="Rebuild the bundle with --refit."
            )
        with self.gpu.locked():
            self.gpu.wait()  # nobody may compute with weights that are half new
            refitter = library.api.Refitter(self._opened(), library.logger)
            parser = library.api.OnnxParserRefitter(refitter, library.logger)
            parsed = parser.refit_from_file(str(graph))
            errors = [str(parser.get_error(index).desc()) for index in range(parser.num_errors)]
            missing = refitter.get_missing_weights() if parsed else []
            if not parsed or missing or not refitter.refit_cuda_engine():
                lacks = f"it lacks {', '.join(missing[:5])}" if missing else library.reason()
                reason = "; ".join(errors) or lacks
                raise EngineError(
                    f"the weights of {graph} do not go into {self._name}: {reason}.",
                    remedy="Export the same network with the same options, then close and load this engine again.",
                )

    def serialize(self) -> Any:
        """The plan with the weights that it has now, as a buffer, as refittable as before; raises `EngineError`."""
        library = self._session.library
        with self.gpu.locked():
            engine = self._opened()
            settings = engine.create_serialization_config()
            settings.set_flag(library.api.SerializationFlag.INCLUDE_REFIT)
            data = engine.serialize_with_config(settings)
            if data is None:
                raise EngineError(
                    f"{self._name} cannot be written by {library.version}: {library.reason()}.",
                    remedy="Build the bundle without --refit-from.",
                )
            return data

    def layers(self) -> Layers:
        """The layers that the plan has after all fusions; raises `EngineError`."""
        library = self._session.library
        if not hasattr(library.api, "EngineInspector"):
            raise EngineError(
                f"{library.version} does not tell layers: it is the lean one.", remedy=FULL_LIBRARY
            )
        with self.gpu.locked():
            inspector = self._opened().create_engine_inspector()
            form = library.api.LayerInformationFormat.JSON
            return read_layers(inspector.get_engine_information(form))

    def close(self) -> None:
        """Free bindings, then the plan; the last engine of a stream frees its scratch memory."""
        if self._engine is None:
            return
        with self.gpu.locked():
            self.gpu.wait()
            for binding in list(self._bindings):
                binding.close()
            self._engine = None
            self.gpu.scratch.leave()

    def _opened(self) -> Any:
        if self._engine is None:
            raise EngineError("the engine was closed.", remedy="Load the bundle again.")
        return self._engine

    def _check_tensors(self) -> None:
        """Raise `BundleError` unless the plan has the tensors and profiles of the manifest."""
        api, engine = self._session.library.api, self._engine
        names = map(engine.get_tensor_name, range(engine.num_io_tensors))
        found = {name: np.dtype(api.nptype(engine.get_tensor_dtype(name))) for name in names}
        profiles = engine.num_optimization_profiles, len(self._plan.profiles)
        if found != self.spec.dtypes or profiles[0] != profiles[1]:
            raise BundleError(
                f"{self._name} has tensors {found} and {profiles[0]} profiles; its manifest says "
                f"{self.spec.dtypes} and {profiles[1]}.",
                remedy=REBUILD,
            )


def _array(array: Any) -> Any:
    return array if isinstance(array, np.ndarray) else DeviceArray.of(array)


def _load(session: Session, path: Path) -> Any:
    """Read a plan through a memory map, so that its pages are never copied into this process's own memory."""
    library = session.library
    library.messages.clear()
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if session.portable:
                check_validity(session, data, path.name)
            engine = session.runtime.deserialize_cuda_engine(data)
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise BundleError(f"{path.name} cannot be read: {error}", remedy=REBUILD) from error
    if engine is None:
        raise BundleError(
            f"{path.name} cannot be loaded by {library.version}: {library.reason()}.", remedy=REBUILD
        )
    return engine


@dataclass(frozen=True)
class _Staged:
    """An array of the host, pinned memory of its size, and memory on the GPU."""

    host: Array
    pinned: Memory
    view: Array
    """The pinned memory as an array."""
    device: Memory

    @classmethod
    def of(cls, gpu: Gpu, host: Array) -> _Staged:
        size = max(host.nbytes, 1)
        pinned = gpu.pin(size)
        return cls(host, pinned, pinned.as_array(host.shape, host.dtype), gpu.allocate(size))


class Binding:
    """An engine bound to memory. Calling it runs the engine and, if arrays of the host are bound, waits for it.

    With arrays on the GPU alone a call puts the engine on the GPU's stream and returns; `enqueue` puts it on any
    other one, such as one that is being captured. Such a binding keeps its scratch memory in place: keep the
    binding for as long as the graph, and launch the graph in the order of the GPU's stream.
    """

    def __init__(
        self,
        session: Session,
        engine: Any,
        profile: int,
        inputs: Mapping[str, Any],
        outputs: Mapping[str, Any],
    ) -> None:
        self._library, self._gpu, self._engine = session.library, session.gpu, engine
        self._arrays = (dict(inputs), dict(outputs))
        self._sent, self._fetched = (
            {
                name: _Staged.of(self._gpu, array)
                for name, array in arrays.items()
                if isinstance(array, np.ndarray)
            }
            for arrays in (inputs, outputs)
        )
        self._context: Any = make_context(session.library.api, engine)
        if self._context is None:
            raise self._failed("no execution context could be made")
        self._set_shapes(profile)
        staged = {name: array.device for name, array in (self._sent | self._fetched).items()}
        for name, memory in ({**inputs, **outputs} | staged).items():
            self._check(self._context.set_tensor_address(name, memory.address), f"{name} was not taken")
        self._capturable = True
        """Whether a CUDA graph can take it. TensorRT-RTX knows once it has run; TensorRT fails when it is tried."""
        self._scratch_size = int(engine.get_device_memory_size_for_profile_v2(profile))
        self._scratch_address = 0
        self._scratch: Memory | None = self._follow_arena()
        if self._sent or self._fetched:
            self._scratch = None  # looked up anew by each call, since the arena may have moved

    def __call__(self) -> None:
        gpu = self._gpu
        gpu.activate()
        for staged in self._sent.values():
            np.copyto(staged.view, staged.host)
        with gpu.lock:
            for staged in self._sent.values():
                gpu.copy(staged.pinned, staged.device)
            self._execute(gpu.stream)
            for staged in self._fetched.values():
                gpu.copy(staged.device, staged.pinned)
        if self._sent or self._fetched:
            gpu.wait()
        for staged in self._fetched.values():
            np.copyto(staged.host, staged.view)

    def enqueue(self, stream: Any) -> None:
        """Put the engine alone on a `cuda.core` stream.

        Raises `EngineError` where arrays of the host are bound, and under a capture that the library rules out.
        """
        if self._sent or self._fetched:
            names = ", ".join((*self._sent, *self._fetched))
            raise EngineError(f"{names} lie on the host.", remedy="Bind arrays on the GPU.")
        with self._gpu.lock:
            if self._gpu.capturing and not self._capturable:
                raise EngineError(
                    f"{self._library.version} says that CUDA graphs cannot take this plan; those built with "
                    "--weight-streaming are such.",
                    remedy="Run with graphs off (--graphs off), or rebuild the bundle without --weight-streaming.",
                )
            self._execute(stream)
            if not self._gpu.capturing and hasattr(self._context, "is_stream_capturable"):
                self._capturable = bool(self._context.is_stream_capturable(int(stream.handle)))

    def close(self) -> None:
        """Free the context; no call may follow."""
        self._context = self._engine = self._scratch = None

    def _execute(self, stream: Any) -> None:
        if self._context is None:
            raise EngineError("the engine was closed.", remedy="Load the bundle again.")
        if self._scratch is None:
            self._follow_arena()
        if not self._context.execute_async_v3(int(stream.handle)):
            raise self._failed("the engine failed")

    def _follow_arena(self) -> Memory:
        """The scratch memory as it is now."""
        memory = self._gpu.scratch.reserve(self._scratch_size)
        if memory.address != self._scratch_address:
            self._context.set_device_memory(memory.address, memory.size)
            self._scratch_address = memory.address
        return memory

    def _set_shapes(self, profile: int) -> None:
        inputs, outputs = self._arrays
        done = self._context.set_optimization_profile_async(profile, int(self._gpu.stream.handle))
        self._check(done, "the profile was not taken")
        self._gpu.wait()
        for name, array in inputs.items():
            self._check(self._context.set_input_shape(name, array.shape), f"{name}'s shape was not taken")
        for name, array in outputs.items():
            computed = tuple(self._context.get_tensor_shape(name))
            if computed != array.shape:
                raise EngineError(f"the engine computes {name} {list(computed)}, not {list(array.shape)}.")

    def _check(self, done: bool, what: str) -> None:
        if not done:
            raise self._failed(what)

    def _failed(self, what: str) -> EngineError:
        reason = self._library.reason()
        return error_class(reason)(f"{what}: {self._library.version} says: {reason}.", remedy=SMALLER)


def make_context(api: Any, engine: Any) -> Any:
    """What runs an engine, on scratch memory of ours; None if the library makes none.

    TensorRT-RTX compiles kernels for each new shape, by itself in the background. Here the call waits for them:
    a graph would keep the slower kernels that run meanwhile, and last bits would depend on when it is captured.
    """
    config = engine.create_runtime_config()
    if config is None:
        return None
    config.set_execution_context_allocation_strategy(api.ExecutionContextAllocationStrategy.USER_MANAGED)
    if hasattr(api, "DynamicShapesKernelSpecializationStrategy"):
        eager = api.DynamicShapesKernelSpecializationStrategy.EAGER
        config.dynamic_shapes_kernel_specialization_strategy = eager
    return engine.create_execution_context(config)


@dataclass(frozen=True, slots=True)
class Layers:
    """The layers of a plan after all fusions."""

    kinds: Mapping[str, int]
    """How many of each kind, the most frequent first."""
    wide: tuple[str, ...]
    """Names of those whose outputs are float32 only."""

    @property
    def count(self) -> int:
        """All of them."""
        return sum(self.kinds.values())


def read_layers(text: str) -> Layers:
    """Layers of an inspector's JSON; raises `EngineError` if it is not in the detailed form that builds here have."""
    try:
        layers = json.loads(text)["Layers"]
        kinds = Counter(layer["LayerType"] for layer in layers)
        wide = [layer["Name"] for layer in layers if _only_float32(layer.get("Outputs", ()))]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(
            f"the engine inspector's JSON is not understood: {type(error).__name__} {error}.",
            remedy="The bundle may still run; rebuild it with this version to see its layers.",
        ) from error
    return Layers(dict(kinds.most_common()), tuple(wide))


def _only_float32(outputs: Iterable[Mapping[str, Any]]) -> bool:
    """Layers without outputs do not count. Old inspectors name format and dtype in one string."""
    words = [
        str(tensor.get("Datatype", tensor.get("Format/Datatype", ""))).lower().split() for tensor in outputs
    ]
    return bool(words) and all(any(word in FLOAT32 for word in tensor) for tensor in words)
