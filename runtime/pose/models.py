"""ONNX Runtime sessions for the small networks that find poses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError

FOLDER = Path(__file__).parent.parent / "models"
"""Where the networks that come with the package lie."""
_ERRORS_ONLY = 3  # ONNX Runtime's severity


class Network:
    """One network on the CPU, with one input and its outputs in the file's order.

    `threads` is the number of threads within one run; None leaves it to ONNX Runtime (all cores).
    Raises `InputError` when the file is missing or is no ONNX network.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        # Several small networks take turns: threads that spin after a run would slow the next one.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session: Any = onnxruntime.InferenceSession(
                os.fspath(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the library's own exceptions share no base class
            raise InputError(
                f"The pose network {path} cannot be loaded: {_first_line(error)}",
                remedy="Check the path; for a network of this package, install the package again.",
                field="estimator",
            ) from error
        self._input: str = self._session.get_inputs()[0].name
        self.input_shape: list[Any] = self._session.get_inputs()[0].shape
        self.outputs: list[str] = [output.name for output in self._session.get_outputs()]

    def __call__(self, value: npt.NDArray[np.float32], outputs: list[str] | None = None) -> list[Any]:
        """Run on one input; the named outputs (all when None) as float32 arrays."""
        return list(self._session.run(outputs, {self._input: value}))


def sigmoid(logits: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """1 / (1 + exp(-x)) in float64, without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * np.asarray(logits, np.float64))))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
