"""Engines on ONNX Runtime: the embedded default, on the CPU of any machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort

from ..errors import BundleError, EngineError
from .backend import Call, Placement
from .onnx_weights import change_weights
from .spec import Array, EnginePlan, EngineSpec
from .weight_table import WeightChanges


class OnnxRuntimeEngine:
    """One ONNX file in one session; free sizes may differ from call to call."""

    gpu = None

    def __init__(
        self,
        path: Path,
        spec: EngineSpec,
        threads: int | None,
        *,
        spin_threads: bool = False,
        changes: WeightChanges | None = None,
    ) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised, not printed
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        # Planning which tensors share memory compares every pair of them: 1.3 s for the small U-Net, and the peak is
        # the same without it, since the arena takes back what was read for the last time.
        options.enable_mem_reuse = False
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin_threads)))
        graph: str | bytes = str(path)
        if changes is not None:
            graph, values = change_weights(path, changes.deltas)
            given = [ort.OrtValue.ortvalue_from_numpy(array) for array in values.values()]
            options.add_external_initializers(list(values), given)
            folder = "session.model_external_initializers_file_folder_path"
            options.add_session_config_entry(folder, str(path.parent))
        try:
            self._session: Any = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library raises kinds of its own, without a common base
            raise BundleError(
                f"{path.name} cannot be loaded by ONNX Runtime {ort.__version__}: {error}",
                remedy="Rebuild the bundle, or install the ONNX Runtime that built it.",
            ) from error
        # Memory is given back after each call: a large clip's would else be held as long as the process lives.
        self._run_options = ort.RunOptions()
        self._run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self.spec = spec

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Call:
        """See `Engine.bind`; the arrays live as long as the call does."""
        self.spec.check(inputs, outputs)
        if self._session is None:
            raise EngineError("the engine was closed.", remedy="Load the bundle again.")
        binding = self._session.io_binding()
        for bind, arrays in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
            for name, array in arrays.items():
                bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        keep = (dict(inputs), dict(outputs))  # a binding holds addresses, not arrays

        def call() -> None:
            assert keep
            try:
                self._session.run_with_iobinding(binding, self._run_options)
            except Exception as error:
                raise EngineError(
                    f"ONNX Runtime failed: {error}",
                    remedy="Use fewer pixels, frames or rows if memory ran out.",
                ) from error

        return call

    def close(self) -> None:
        """See `Engine.close`."""
        self._session = None


def open_engine(
    path: Path,
    spec: EngineSpec,
    placement: Placement,
    *,
    plan: EnginePlan | None = None,
    changes: WeightChanges | None = None,
) -> OnnxRuntimeEngine:
    """Load one ONNX file. The device must be "auto" or "cpu"; there is no plan."""
    if placement.device not in ("auto", "cpu"):
        raise BundleError(
            f"an onnxruntime bundle runs on the CPU, not on {placement.device!r}.",
            remedy='Use device="cpu", or a bundle built for that device.',
        )
    spin = placement.spin_threads
    return OnnxRuntimeEngine(path, spec, placement.threads, spin_threads=spin, changes=changes)
