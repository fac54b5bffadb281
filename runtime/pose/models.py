"""ONNX Runtime sessions for the small networks that find poses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import EngineError, InputError

FOLDER = Path(__file__).parent.parent / "models"
"""Where the networks that come with the package lie."""
_ERRORS_ONLY = 3  # ONNX Runtime's severity


class Network:
    """One network on the CPU, with one input.

    `threads` is the number of threads within one run; None leaves it to ONNX Runtime (all cores). Raises
    `InputError` when the file is missing, is no ONNX network, or does not take an input of `shape`.
    """

    def __init__(
        self, path: str | os.PathLike[str], threads: int | None = None, *, shape: tuple[int, ...] = ()
    ) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        options.intra_op_num_threads = threads or 0
        # Several small networks take turns: threads that spin after a run would slow the next one.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session: Any = onnxruntime.InferenceSession(
                os.fspath(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the library's own exceptions share no base class
            raise _unfit(path, f"cannot be loaded: {_first_line(error)}") from error
        entry = self._session.get_inputs()[0]
        self._input: str = entry.name
        self._path = path
        if shape and not _fits(entry.shape, shape):
            raise _unfit(path, f"takes inputs of shape {entry.shape}, not {list(shape)}.")

    def __call__(self, value: npt.NDArray[np.float32], outputs: list[str] | None = None) -> list[Any]:
        """Run on one input; the named outputs (None: all, in the file's order) as arrays.

        Raises `EngineError` if the network fails.
        """
        try:
            return list(self._session.run(outputs, {self._input: value}))
        except Exception as error:
            raise EngineError(f"The pose network {self._path} failed: {_first_line(error)}") from error


def sigmoid(logits: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """1 / (1 + exp(-x)) in float64, without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * np.asarray(logits, np.float64))))


def _fits(stated: list[Any], shape: tuple[int, ...]) -> bool:
    """Axes of any length are stated by a name or None."""
    return len(stated) == len(shape) and all(
        side == axis or not isinstance(axis, int) for axis, side in zip(stated, shape, strict=True)
    )


def _unfit(path: str | os.PathLike[str], fault: str) -> InputError:
    return InputError(
        f"The pose network {os.fspath(path)} {fault}",
        remedy="Check the path; for a network of this package, install the package again.",
        field="estimator",
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
