"""Engines on PyTorch, eager or compiled: the reference, and the engine for GPUs without TensorRT.

An engine file is a TorchScript trace of the same module that the ONNX files are exported from: it loads with
PyTorch alone and runs no Python code of its own. It is read into a `torch.fx` graph: so its device is chosen when
it is loaded, sizes are plain integers, and `torch.compile` takes it whole.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BundleError, EngineError, OutOfMemory
from .backend import Call, Placement
from .cuda import Gpu, gpu_index, open_gpu
from .cuda_memory import SMALLER, DeviceArray, translate
from .spec import Array, EnginePlan, EngineSpec
from .weight_table import WeightChanges, check_range

try:
    import torch
except ImportError as error:
    raise BundleError(
        f"PyTorch is not installed, or cannot be loaded: {error}.",
        remedy="pip install 'mimicmotion-trt[torch]'",
        field="backend",
    ) from error

MODE_VARIABLE = "MIMICMOTION_TORCH"
"""How torch bundles run: `eager` (if it is not set) or `compile`, which spends minutes on each new kind of call."""
SIZES: Mapping[str, Callable[..., Any]] = {
    "aten::add": operator.add,
    "aten::sub": operator.sub,
    "aten::mul": operator.mul,
    "aten::floor_divide": operator.floordiv,
}
"""Arithmetic on sizes, which a trace does on tensors."""
SAME = ("prim::NumToTensor", "aten::Int", "aten::ScalarImplicit")
"""What turns sizes into tensors and back."""


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
        changes: WeightChanges | None = None,
    ) -> None:
        self.gpu = gpu
        """The same device for arrays and graphs of ours; None on a CPU."""
        self.spec, self._device, self._threads = spec, torch.device(device), threads
        try:
            trace: Any = torch.jit.load(str(path), map_location=self._device)  # type: ignore[no-untyped-call]
            if changes is not None:
                change_weights(trace.state_dict(), changes)
            program: Any = read_trace(trace, self._device)
        except BundleError:
            raise
        except Exception as error:  # a damaged file raises kinds of its own
            raise BundleError(
                f"{path.name} cannot be loaded by PyTorch {torch.__version__}: {error}",
                remedy="Rebuild the bundle, or install the PyTorch that built it.",
            ) from error
        self._program: Any = program
        self._run: Any = (
            torch.compile(program, dynamic=True, fullgraph=True) if mode == "compile" else program
        )

    @property
    def program(self) -> torch.fx.GraphModule:
        """The network as a graph of ATen operators; raises `EngineError` once the engine is closed."""
        if self._program is None:
            raise EngineError("the engine was closed.", remedy="Load the bundle again.")
        program: torch.fx.GraphModule = self._program
        return program

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Call:
        """See `Engine.bind`; with arrays on the GPU the result is a `TorchBinding`, which runs on any stream."""
        self.spec.check(inputs, outputs)
        assert self.program is not None
        if not any(isinstance(array, np.ndarray) for array in (*inputs.values(), *outputs.values())):
            memory = None if self.gpu is None else shared_memory(self.gpu)
            return TorchBinding(self._run, self.spec, inputs, outputs, self._device, memory)
        given = [inputs[tensor.name] for tensor in self.spec.inputs]
        into = [torch.from_numpy(outputs[tensor.name]) for tensor in self.spec.outputs]

        def run() -> None:
            with torch.inference_mode(), limit_threads(self._threads), exact_floats():
                fill(into, self._run(*(_read(array).to(self._device) for array in given)))

        def call() -> None:
            assert self.program is not None
            run_twice(run, self.gpu)

        return call

    def close(self) -> None:
        """Free the network, and on a GPU what PyTorch keeps for its stream unless others are bound."""
        self._program = self._run = None
        if self.gpu is not None:
            with contextlib.suppress(EngineError):  # a lost GPU takes nothing back
                self.gpu.activate()
                self.gpu.wait()
                shared_memory(self.gpu).free_unused()


def open_engine(
    path: Path,
    spec: EngineSpec,
    placement: Placement,
    *,
    plan: EnginePlan | None = None,
    changes: WeightChanges | None = None,
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
    return TorchEngine(path, spec, chosen, placement.threads, mode, gpu, changes)


def change_weights(tensors: Mapping[str, torch.Tensor], changes: WeightChanges) -> None:
    """Change the weights of a trace in memory, in place; sums are made in float64."""
    with torch.no_grad():
        for name, delta in changes.deltas.items():
            tensor = tensors[name]
            added = torch.from_numpy(np.ascontiguousarray(delta())).to(tensor.device)
            tensor.copy_(tensor.double() + added.reshape(tensor.shape))
            check_range(name, bool(tensor.isfinite().all()), tensor.dtype)


@functools.cache
def _open_gpu(index: int, stream: str) -> Gpu:
    """One for all engines of a stream of a GPU, which runs their work in order."""
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


def fill(targets: Sequence[torch.Tensor], outputs: torch.Tensor | Sequence[torch.Tensor]) -> None:
    """Copy a network's output or outputs into tensors of the same shapes; raises RuntimeError."""
    found = [outputs] if isinstance(outputs, torch.Tensor) else outputs
    for target, output in zip(targets, found, strict=True):
        if output.shape != target.shape:  # copy_ would repeat it
            raise RuntimeError(f"it computes {list(output.shape)}, not {list(target.shape)}")
        target.copy_(output)


def _read(array: Array) -> torch.Tensor:
    """The array's own memory, or a copy where it may not be written: PyTorch knows no such tensors."""
    return torch.from_numpy(array) if array.flags.writeable else torch.tensor(array)


class TemporarySetting:
    """A setting of the whole process that holds while at least one call runs; of several calls the last one's."""

    def __init__(self, read: Callable[[], Any], write: Callable[[Any], None]) -> None:
        self._read, self._write = read, write
        self._lock, self._calls = threading.Lock(), 0
        self._before: Any = None

    @contextlib.contextmanager
    def at(self, value: Any) -> Iterator[None]:
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


def run_twice(run: Callable[[], None], gpu: Gpu | None) -> None:
    """Run PyTorch's work; where memory runs out, once more with what can be had back on its GPU.

    Raises `EngineError`, not from PyTorch's own error, whose frames would keep half of the call's memory.
    """
    failed = _failure(run)
    if isinstance(failed, OutOfMemory) and gpu is not None and gpu.free_unused():
        failed = _failure(run)
    if failed is not None:
        raise failed


def _failure(run: Callable[[], None]) -> EngineError | None:
    try:
        run()
    except RuntimeError as error:  # of sizes that do not fit, of memory, of the GPU
        return translate(error, "PyTorch failed", SMALLER)
    return None


_threads = TemporarySetting(torch.get_num_threads, torch.set_num_threads)
_tf32 = TemporarySetting(
    lambda: torch.backends.cudnn.allow_tf32,
    lambda allowed: setattr(torch.backends.cudnn, "allow_tf32", allowed),
)


def limit_threads(threads: int | None) -> contextlib.AbstractContextManager[None]:
    """PyTorch's CPU threads while a call runs; None leaves them."""
    return contextlib.nullcontext() if threads is None else _threads.at(threads)


def exact_floats() -> contextlib.AbstractContextManager[None]:
    """No TF32 in convolutions while a call runs: cuDNN's default, which moves a bundle of precision fp32 by 1e-3."""
    return _tf32.at(False)


class TorchMemory:
    """PyTorch's memory for the networks on one stream: a pool in which they take turns, as in `Gpu.scratch`.

    Nothing in the pool goes back while a binding lives that has run in it, so a captured graph finds its addresses
    again. Without bindings the pool is kept, since to free it waits for all that the GPU does, until memory is
    wanted back: PyTorch frees none of its own when a call inside a pool finds none (pytorch#159674).
    """

    def __init__(self, gpu: Gpu | None) -> None:
        self.lock = threading.RLock() if gpu is None else gpu.lock
        """Held by each call: a pool serves one at a time."""
        self.gpu = gpu
        self._kept: torch.cuda.MemPool | None = None
        self._last: weakref.ref[torch.cuda.MemPool] | None = None
        if gpu is not None:
            gpu.reclaimable.add(self)

    def pool(self) -> torch.cuda.MemPool:
        """The pool, a new one if there is none any more; it is kept until `free_unused`."""
        found = self._last() if self._last else None
        if found is None:
            found = torch.cuda.MemPool()
            self._last = weakref.ref(found)
        self._kept = found
        return found

    def free_unused(self) -> None:
        """What PyTorch keeps: outside of pools, and the pool itself, now or with the last binding that ran in it."""
        with self.lock:
            self._kept = None
            torch.cuda.empty_cache()


@functools.cache  # as the `Gpu` is
def shared_memory(gpu: Gpu) -> TorchMemory:
    """The memory of all networks on a stream."""
    return TorchMemory(gpu)


class TorchBinding:
    """A network on arrays of the GPU; a call starts it on a stream and does not wait.

    Run it once before a capture, and keep it for as long as the graph: both use the same memory of PyTorch's.
    """

    def __init__(
        self,
        run: Callable[..., torch.Tensor | Sequence[torch.Tensor]],
        spec: EngineSpec,
        inputs: Mapping[str, Any],
        outputs: Mapping[str, Any],
        device: torch.device,
        memory: TorchMemory | None = None,
    ) -> None:
        """`memory` is shared by the bindings of one stream; None: some of its own."""
        self._run, self._device = run, device
        given, made = ([t.name for t in tensors] for tensors in (spec.inputs, spec.outputs))
        self._arrays = [DeviceArray.of(array) for array in (*map(inputs.get, given), *map(outputs.get, made))]
        tensors = [torch.as_tensor(array, device=device) for array in self._arrays]
        self._given, self._into = tensors[: len(given)], tensors[len(given) :]
        self._memory = memory or TorchMemory(None)
        self._pool: torch.cuda.MemPool | None = None
        """Where it ran: a graph may have its addresses."""

    def __call__(self) -> None:
        """Run on PyTorch's current stream; raises `EngineError` if PyTorch refuses."""
        with self._memory.lock:
            run_twice(self._start, self._memory.gpu)

    def _start(self) -> None:
        pool = self._pool or self._memory.pool()
        with torch.inference_mode(), exact_floats(), torch.cuda.use_mem_pool(pool):
            fill(self._into, self._run(*self._given))
        self._pool = pool

    def enqueue(self, stream: Any) -> None:
        """Run on a `cuda.core` stream; raises `EngineError` if PyTorch refuses."""
        outer: Any = torch.cuda.ExternalStream(int(stream.handle), device=self._device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(outer):
            self()


def read_trace(trace: Any, device: torch.device) -> torch.fx.GraphModule:
    """A TorchScript trace without control flow as a graph of ATen operators, whose new tensors are on `device`.

    Raises `ValueError` for an operator that a traced network of ours does not have.
    """
    graph, tensors = torch.fx.Graph(), dict(trace.state_dict())
    traced = trace.inlined_graph
    own, *arguments = traced.inputs()
    values: dict[str, Any] = {
        value.debugName(): graph.placeholder(f"input_{index}") for index, value in enumerate(arguments)
    }
    paths, sizes = {own.debugName(): ""}, set[str]()
    for node in traced.nodes():
        kind, inputs = node.kind(), [value.debugName() for value in node.inputs()]
        outputs = [value.debugName() for value in node.outputs()]
        if kind == "prim::GetAttr":
            path = f"{paths[inputs[0]]}.{node.s('name')}".lstrip(".")
            paths[outputs[0]] = path
            if path in tensors:
                values[outputs[0]] = graph.get_attr(path)
            continue
        given = [values[name] for name in inputs]
        if kind == "prim::Constant":
            values[outputs[0]] = _constant(node.output(), device, graph, tensors)
            if isinstance(values[outputs[0]], int):
                sizes.add(outputs[0])
        elif kind in SAME:
            values[outputs[0]] = given[0]
            sizes.add(outputs[0])
        elif kind in ("prim::ListConstruct", "prim::TupleConstruct"):
            values[outputs[0]] = given
        elif kind in ("prim::ListUnpack", "prim::TupleUnpack"):
            for index, name in enumerate(outputs):
                values[name] = _item(graph, given[0], index)
        elif kind == "aten::size":
            values[outputs[0]] = graph.call_method("size", tuple(given))
        elif kind in SIZES and sizes.issuperset(inputs):
            values[outputs[0]] = graph.call_function(SIZES[kind], tuple(given[:2]))
            sizes.add(outputs[0])
        else:
            values[outputs[0]] = _call(graph, node, given)
    (result,) = (values[value.debugName()] for value in traced.outputs())
    graph.output(result)
    used = {node.target for node in graph.nodes if node.op == "get_attr"}
    return torch.fx.GraphModule({name: tensors[name] for name in tensors if name in used}, graph)


def _constant(output: Any, device: torch.device, graph: torch.fx.Graph, tensors: dict[str, Any]) -> Any:
    """A constant's value; of a device the one that is wanted now, of a number in a tensor the number."""
    value = output.toIValue()
    if isinstance(value, torch.device):
        return device
    if not isinstance(value, torch.Tensor):
        return value
    if value.dim() == 0:
        return value.item()
    name = f"constant_{len(tensors)}"
    tensors[name] = value.to(device)
    return graph.get_attr(name)


def _item(graph: torch.fx.Graph, value: Any, index: int) -> Any:
    return value[index] if isinstance(value, list) else graph.call_function(operator.getitem, (value, index))


def _call(graph: torch.fx.Graph, node: Any, given: list[Any]) -> torch.fx.Node:
    """A call of the same overload of the same ATen operator."""
    space, _, name = node.schema().partition("(")[0].partition("::")
    if space != "aten":
        raise ValueError(f"{node.kind()} is no operator of a traced network")
    packet, _, overload = name.partition(".")
    target = getattr(getattr(torch.ops.aten, packet), overload or "default")
    arguments = list(zip(target._schema.arguments, given, strict=True))
    positional = tuple(value for argument, value in arguments if not argument.kwarg_only)
    named = {argument.name: value for argument, value in arguments if argument.kwarg_only}
    return graph.call_function(target, positional, named)
