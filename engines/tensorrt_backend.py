"""Engines on TensorRT and TensorRT-RTX: one class, on memory that is fixed when it is bound."""

from __future__ import annotations

import mmap
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BundleError, EngineError
from .backend import Placement
from .bundle import COMMAND
from .cuda import Gpu, gpu_index, open_gpu
from .cuda_memory import DeviceArray
from .plan import EnginePlan
from .spec import EngineSpec
from .tensorrt_binding import Binding, Session
from .tensorrt_checks import (
    check_gpu,
    check_library,
    check_tensors,
    check_validity,
    flavour_of,
    for_cpu,
    for_gpu,
    rebuild,
)
from .tensorrt_layers import Layers, read_layers
from .tensorrt_library import EXTRAS, open_library

_sessions: weakref.WeakValueDictionary[tuple[str, int, str], Session] = weakref.WeakValueDictionary()
_opening = threading.Lock()


def open_session(flavour: str, device: str, stream: str, command: str = COMMAND) -> Session:
    """The session of a flavour and a stream of a device; it goes with its last engine. Raises `BundleError`.

    `command` is what builds the bundle again.
    """
    on_cpu = f"For the CPU rebuild it: {rebuild(for_cpu(command))}."
    index = gpu_index(device, on_cpu)
    with _opening:
        session = _sessions.get((flavour, index, stream))
        if session is None:
            gpu = open_gpu(index, EXTRAS[flavour], on_cpu)
            library = open_library(flavour)
            session = Session(library, gpu, library.start(library.api.Runtime))
            _sessions[flavour, index, stream] = session
        return session


def open_engine(
    path: Path,
    spec: EngineSpec,
    placement: Placement,
    *,
    plan: EnginePlan | None,
    command: str = COMMAND,
) -> TensorRtEngine:
    """Load one plan on the device "auto", "cuda" or "cuda:1"."""
    flavour = flavour_of(plan, path.name, command)
    session = open_session(flavour, placement.device, placement.stream, command)
    assert plan is not None
    return TensorRtEngine(session, path, spec, plan, command)


class TensorRtEngine:
    """One plan on one GPU. Calls may come from several threads; they take turns."""

    def __init__(
        self, session: Session, path: Path, spec: EngineSpec, plan: EnginePlan, command: str = COMMAND
    ) -> None:
        self._session, self._spec, self._plan, self._name = session, spec, plan, path.name
        self._command = command
        self._bindings: weakref.WeakSet[Binding] = weakref.WeakSet()
        library, gpu = session.library, session.gpu
        check_library(library, plan, path.name, command)
        with gpu.lock:
            gpu.activate()
            check_gpu(gpu, plan, path.stat().st_size, path.name, command, session.portable)
            self._engine: Any = _load(session, path, plan, command)
            check_tensors(library.api, self._engine, spec, plan, path, command)
            if plan.streamable:
                self.stream_weights()
            gpu.scratch.join()

    @property
    def spec(self) -> EngineSpec:
        """Its tensors."""
        return self._spec

    @property
    def gpu(self) -> Gpu:
        """Where it runs."""
        return self._session.gpu

    def bind(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Binding:
        """See `Engine.bind`; each array may be numpy's, or one on the GPU (`__cuda_array_interface__`).

        What lies on the GPU is used where it lies. What lies on the host is copied in and out by the call,
        through memory that is taken here. Raises `EngineError` if the plan has no profile for the shapes.
        """
        given = {name: _array(array) for name, array in inputs.items()}
        made = {name: _array(array) for name, array in outputs.items()}
        profile = self._plan.choose(self._spec.check(given, made))
        with self.gpu.lock:
            self.gpu.activate()
            binding = Binding(self._session, self._opened(), profile, given, made)
            self._bindings.add(binding)
        return binding

    def stream_weights(self, budget: int | None = None) -> None:
        """Keep at most `budget` bytes of weights on the GPU, the rest in the host's memory.

        None: half of what is free beside the scratch memory of the largest profile. The bundle's other networks,
        which load later, and the arrays of jobs need the other half; TensorRT's automatic budget knows of neither.
        Raises `EngineError` if the plan was not built for that, or is bound already.
        """
        if not self._plan.streamable:
            raise EngineError(
                f"the weights of {self._name} cannot stay in the host's memory.",
                remedy=f"Rebuild it: {rebuild(self._command, '--weight-streaming')}.",
            )
        if self._bindings:
            raise EngineError(f"{self._name} is bound already.", remedy="Stream weights before it is bound.")
        with self.gpu.lock:
            self.gpu.activate()
            engine = self._opened()
            if budget is None:
                profiles = range(engine.num_optimization_profiles)
                scratch = max(int(engine.get_device_memory_size_for_profile_v2(index)) for index in profiles)
                budget = max(self.gpu.free_memory() - scratch, 0) // 2
            engine.weight_streaming_budget_v2 = min(budget, int(engine.streamable_weights_size))

    def refit(self, graph: str | Path) -> None:
        """Put the weights of an ONNX file of the same network and exporter into the plan: a LoRA, a checkpoint.

        What is bound goes on with the new weights; graphs have to be captured again. Raises `EngineError`; after
        a failure half of the weights may be new, and the engine is to be closed.
        """
        api, logger = self._session.library.api, self._session.library.logger
        if not self._plan.refittable:
            command = for_gpu(f"{self._command} --refit", self.gpu.capability, self._session.portable)
            raise EngineError(
                f"{self._name} does not take other weights.", remedy=f"Rebuild it: {rebuild(command)}."
            )
        if not hasattr(api, "OnnxParserRefitter"):
            raise EngineError(
                f"{self._session.library.version} cannot refit from ONNX.",
                remedy="Install the full library: pip install 'mimicmotion-trt[gpu]'",
            )
        with self.gpu.lock:
            self.gpu.activate()
            self.gpu.wait()  # nobody may compute with weights that are half new
            refitter = api.Refitter(self._opened(), logger)
            parser = api.OnnxParserRefitter(refitter, logger)
            taken = parser.refit_from_file(str(graph))
            told = [str(parser.get_error(index).desc()) for index in range(parser.num_errors)]
            missing = refitter.get_missing_weights() if taken else []
            if not taken or missing or not refitter.refit_cuda_engine():
                said, _ = self._session.library.explain("")
                reason = "; ".join(told) or (f"it lacks {', '.join(missing[:5])}" if missing else said)
                raise EngineError(
                    f"the weights of {graph} do not go into {self._name}: {reason}.",
                    remedy="Export the same network with the same options, then close and load this engine again.",
                )

    def serialize(self) -> Any:
        """The plan with the weights that it has now, as a buffer, and as open for others as it was.

        Raises `EngineError`.
        """
        with self.gpu.lock:
            self.gpu.activate()
            library, engine = self._session.library, self._opened()
            settings = engine.create_serialization_config()
            settings.set_flag(library.api.SerializationFlag.INCLUDE_REFIT)
            data = engine.serialize_with_config(settings)
            if data is None:
                said, remedy = library.explain("Build the bundle without --refit-from.")
                raise EngineError(
                    f"{self._name} cannot be written by {library.version}: {said}.", remedy=remedy
                )
            return data

    def layers(self) -> Layers:
        """The layers that the plan has after all fusions; raises `EngineError`."""
        with self.gpu.lock:
            self.gpu.activate()
            api = self._session.library.api
            if not hasattr(api, "EngineInspector"):
                raise EngineError(
                    f"{self._session.library.version} does not tell layers.",
                    remedy="Install the full library: pip install 'mimicmotion-trt[gpu]'",
                )
            inspector = self._opened().create_engine_inspector()
            return read_layers(inspector.get_engine_information(api.LayerInformationFormat.JSON))

    def close(self) -> None:
        """Give up what is bound, then the plan; the last engine of a stream gives up its scratch memory."""
        if self._engine is None:
            return
        with self.gpu.lock:
            self.gpu.activate()
            self.gpu.wait()
            for binding in list(self._bindings):
                binding.close()
            self._engine = None
            self.gpu.scratch.leave()

    def _opened(self) -> Any:
        if self._engine is None:
            raise EngineError("the engine was closed.")
        return self._engine


def _array(array: Any) -> Any:
    return array if isinstance(array, np.ndarray) else DeviceArray.of(array)


def _load(session: Session, path: Path, plan: EnginePlan, command: str) -> Any:
    """Read a plan through a memory map, so that its pages are never copied into this process's own memory."""
    library = session.library
    library.messages.clear()
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if session.portable:
                check_validity(library, session.runtime, data, session.gpu, path.name, command, plan.target)
            engine = session.runtime.deserialize_cuda_engine(data)
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise BundleError(
            f"{path.name} cannot be read: {error}", remedy=f"Rebuild it: {rebuild(command)}."
        ) from error
    if engine is None:
        said, hint = library.explain("The plan may be damaged.")
        remedy = f"{hint} What rebuilds it: {rebuild(command)}."
        raise BundleError(f"{path.name} cannot be loaded by {library.version}: {said}.", remedy=remedy)
    return engine
