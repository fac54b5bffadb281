"""Engines on PyTorch, eager or compiled: the reference, and the engine for GPUs without TensorRT.

An engine file is a TorchScript trace of the same module that the ONNX files are exported from: it loads with
PyTorch alone and runs no Python code of its own.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BundleError, EngineError, OutOfMemory
from .backend import Call, Placement
from .cuda import Gpu, gpu_index, open_gpu
from .cuda_memory import SMALLER, translate
from .plan import EnginePlan
from .spec import Array, EngineSpec

try:
    import torch
except ImportError as error:
    raise BundleError(
        f"PyTorch is not installed, or cannot be loaded: {error}.",
        remedy="pip install 'mimicmotion-trt[torch]'",
        field="backend",
    ) from error

from .torch_trace import count_tensors, read_trace

MODE_VARIABLE = "MIMICMOTION_TORCH"
"""How torch bundles run: `eager` (if it is not set) or `compile`, which spends minutes on each new kind of call."""


class TorchEngine:
    """One network on one device; free sizes may differ from call to call."""

    def __init__(
        self,
        path: Path,
        spec: EngineSpec,
        device: str,
        threads: int | None,
        mode: str = "eager",
        gpu: Gpu | None = None,
    ) -> None:
        self.gpu = gpu
        """The same device for arrays and graphs of ours; None on a CPU."""
        self._spec, self._device, self._threads = spec, torch.device(device), threads
        try:
            trace: Any = torch.jit.load(str(path), map_location=self._device)  # type: ignore[no-untyped-call]
            program: Any = read_trace(trace, self._device)
        except Exception as error:  # a damaged file raises kinds of its own
            raise BundleError(
                f"{path.name} cannot be loaded by PyTorch {torch.__version__}: {error}",
                remedy="Rebuild the bundle, or install the PyTorch that built it.",
            ) from error
        found = count_tensors(program.graph)
        if found != (len(spec.inputs), len(spec.outputs)):
            raise BundleError(
                f"{path.name} has {found[0]} inputs and {found[1]} outputs; its manifest says "
                f"{', '.join(map(str, spec.inputs))} and {', '.join(map(str, spec.outputs))}.",
                remedy="Rebuild the bundle.",
            )
        self._program: Any = program
        self._run: Any = (
            torch.compile(program, dynamic=True, fullgraph=True) if mode == "compile" else program
        )

    @property
    def spec(self) -> EngineSpec:
        """Its tensors."""
        return self._spec

    @property
    def program(self) -> torch.fx.GraphModule:
        """The network as a graph of ATen operators; raises `EngineError` once the engine is closed."""
        if self._program is None:
            raise EngineError("the engine was closed.")
        program: torch.fx.GraphModule = self._program
        return program

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Call:
        """See `Engine.bind`; PyTorch keeps memory of its own, and on a GPU each call copies in and out.

        With arrays on the GPU the result is a `torch_binding.TorchBinding`, to be put on any stream.
        """
        self._spec.check(inputs, outputs)
        assert self.program is not None
        if not any(isinstance(array, np.ndarray) for array in (*inputs.values(), *outputs.values())):
            from .torch_binding import TorchBinding, memory_of

            memory = None if self.gpu is None else memory_of(self.gpu)
            return TorchBinding(self._run, self._spec, inputs, outputs, self._device, memory)
        given = [inputs[tensor.name] for tensor in self._spec.inputs]
        into = [torch.from_numpy(outputs[tensor.name]) for tensor in self._spec.outputs]

        def put() -> None:
            with torch.inference_mode(), limit_threads(self._threads), exact_floats():
                fill(into, self._run(*(_read(array).to(self._device) for array in given)))

        def call() -> None:
            assert self.program is not None
            run_twice(put, self.gpu)

        return call

    def close(self) -> None:
        """Drop the network; on a GPU what PyTorch keeps for its stream goes back, too, unless others are bound."""
        self._program = self._run = None
        if self.gpu is not None:
            from .torch_binding import memory_of

            with contextlib.suppress(EngineError):  # a lost GPU takes nothing back
                self.gpu.activate()
                self.gpu.wait()
                memory_of(self.gpu).free_unused()


def open_engine(
    path: Path,
    spec: EngineSpec,
    placement: Placement,
    *,
    plan: EnginePlan | None = None,
    command: str = "",
) -> TorchEngine:
    """Load one engine file on "cpu", "cuda" or "cuda:N"; "auto" takes a GPU if PyTorch finds one.

    `threads` bounds the CPU threads while a call runs (`limit_threads`); PyTorch does not let spinning be chosen.
    Raises `BundleError` for a device that is not there, for a GPU without the extra `cuda`, and for an unknown
    `MIMICMOTION_TORCH`.
    """
    mode = os.environ.get(MODE_VARIABLE) or "eager"
    if mode not in ("eager", "compile"):
        raise BundleError(f"{MODE_VARIABLE} is {mode!r}.", remedy="Set it to eager or compile.")
    chosen = choose_device(placement.device)
    gpu = None if chosen == "cpu" else _open_gpu(gpu_index(chosen), placement.stream)
    return TorchEngine(path, spec, chosen, placement.threads, mode, gpu)


@functools.cache
def _open_gpu(index: int, stream: str) -> Gpu:
    """One for all engines of a stream of a GPU: their work stands in line there."""
    return open_gpu(index, "cuda")


def choose_device(device: str) -> str:
    """PyTorch's name for a device; raises `BundleError` if it is not there."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    known = ["cpu", *(["cuda"] if count else []), *(f"cuda:{index}" for index in range(count))]
    if device == "auto":
        return "cuda" if count else "cpu"
    if device not in known:
        raise BundleError(
            f"a torch bundle does not run on {device!r}: PyTorch {torch.__version__} finds {', '.join(known)}.",
            remedy='Use device="auto", or install the PyTorch build for your GPU and its driver.',
        )
    return device


def fill(into: Sequence[torch.Tensor], answers: torch.Tensor | Sequence[torch.Tensor]) -> None:
    """Copy what a network answers, alone or in order, into tensors of the same shapes; raises RuntimeError."""
    found = [answers] if isinstance(answers, torch.Tensor) else answers
    for target, answer in zip(into, found, strict=True):
        if answer.shape != target.shape:  # copy_ would repeat it
            raise RuntimeError(f"it computes {list(answer.shape)}, not {list(target.shape)}")
        target.copy_(answer)


def _read(array: Array) -> torch.Tensor:
    """The array's own memory, or a copy where it may not be written: PyTorch knows no such tensors."""
    return torch.from_numpy(array) if array.flags.writeable else torch.tensor(array)


class Held:
    """A setting of the whole process that holds while at least one call runs, and is put back after.

    Of calls at the same time with different values the last one's holds for all.
    """

    def __init__(self, read: Callable[[], Any], write: Callable[[Any], None]) -> None:
        self._read, self._write = read, write
        self._lock, self._calls = threading.Lock(), 0
        self._before: Any = None

    @contextlib.contextmanager
    def at(self, value: Any) -> Iterator[None]:
        """Hold it at a value."""
        with self._lock:
            if self._calls == 0:
                self._before = self._read()
            self._calls += 1
            self._write(value)
        try:
            yield
        finally:
            with self._lock:
                self._calls -= 1
                if self._calls == 0:
                    self._write(self._before)


def run_twice(put: Callable[[], None], gpu: Gpu | None) -> None:
    """Run PyTorch's work once; where memory runs out, once more with what can be had back on its GPU.

    Raises `EngineError`.
    """
    failed = _failure(put)
    if isinstance(failed, OutOfMemory) and gpu is not None and gpu.free_unused():
        failed = _failure(put)
    if failed is not None:
        raise failed


def _failure(put: Callable[[], None]) -> EngineError | None:
    """What went wrong, if anything; not as PyTorch's error, whose frames would keep half of the call's memory."""
    try:
        put()
    except RuntimeError as error:  # of sizes that do not fit, of memory, of the GPU
        return translate(error, "PyTorch failed", SMALLER)
    return None


_threads = Held(torch.get_num_threads, torch.set_num_threads)
_tf32 = Held(
    lambda: torch.backends.cudnn.allow_tf32,
    lambda allowed: setattr(torch.backends.cudnn, "allow_tf32", allowed),
)


def limit_threads(threads: int | None) -> contextlib.AbstractContextManager[None]:
    """PyTorch's CPU threads while a call runs; None leaves them."""
    return contextlib.nullcontext() if threads is None else _threads.at(threads)


def exact_floats() -> contextlib.AbstractContextManager[None]:
    """float32 convolutions in float32 while a call runs.

    PyTorch lets cuDNN round what they multiply to TF32's 11 bits unless it is told otherwise, which moves a
    bundle of precision fp32 by 1e-3; of matrix products it does not.
    """
    return _tf32.at(False)
