"""Where the stages of `gpu_check.py` run: a GPU, or this machine's CPU, where the same code runs on small shapes."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from mimicmotion_trt.cuda.launches import Device, open_device
from mimicmotion_trt.engines import EngineSpec
from mimicmotion_trt.engines.cuda import Gpu, load_driver, open_gpu
from mimicmotion_trt.engines.cuda_memory import DeviceArray

Run = Callable[..., torch.Tensor]
Figures = dict[str, Any]
Part = Callable[[], Iterator[Figures]]
"""Adds figures as it has them."""


@dataclass(frozen=True)
class Place:
    """PyTorch's device, and beside it what the step program and the decoder run on."""

    torch: torch.device
    device: Device | None = None
    """Of the step program; None: the CPU's own denoiser."""
    decoding: Device | None = None
    """Of the decoder, on a stream of its own; None: PyTorch alone."""
    gpu: Gpu | None = None
    decoding_gpu: Gpu | None = None

    @classmethod
    def of(cls, gpu: Gpu | None, dtype: str) -> Place:
        """A GPU with the kernels for engines of `dtype`, or the CPU."""
        if gpu is None:
            return cls(torch.device("cpu"))
        other = open_gpu(gpu.index)
        return cls(
            torch.device("cuda", gpu.index), open_device(gpu, dtype), open_device(other, dtype), gpu, other
        )

    def wait(self) -> None:
        """Until all that was asked for is done, on every stream: PyTorch's and ours do not wait for each other."""
        if self.torch.type == "cuda":
            torch.cuda.synchronize(self.torch)

    def tidy(self) -> None:
        """Give back what nobody uses: networks of a part that failed, what PyTorch keeps, what it compiled."""
        self.wait()
        gc.collect()
        if self.torch.type == "cuda":
            torch._dynamo.reset()
            gc.collect()
            torch.cuda.empty_cache()
        if self.gpu is not None:
            self.gpu.free_unused()  # the pools of its streams, which outlive engines

    def used_gib(self) -> float | None:
        """GPU memory that is not free now, whoever holds it; None on a CPU.

        Asked while a part's arrays still lie there: PyTorch keeps what it once took, so this is the part's peak.
        """
        if self.gpu is None:
            return None
        self.gpu.activate()
        error, free, total = load_driver().cuMemGetInfo()
        if error:
            raise RuntimeError(f"the GPU does not tell its free memory ({error.name})")
        return float(total - free) / 2**30


def tidied(place: Place, parts: Mapping[str, Part]) -> dict[str, Part]:
    """Parts that find the GPU's memory free, and leave it so."""

    def run(part: Part) -> Iterator[Figures]:
        place.tidy()
        yield from part()
        place.tidy()

    return {name: partial(run, part) for name, part in parts.items()}


def named(name: str, part: Part) -> Iterator[Figures]:
    """A part's figures under names that begin with `name`."""
    for figures in part():
        yield {f"{name}_{key}": value for key, value in figures.items()}


class ModuleEngine:
    """A PyTorch module as an engine: what step program and decoder need of one."""

    def __init__(self, run: Run, spec: EngineSpec, place: Place, gpu: Gpu | None) -> None:
        self._run, self.spec, self._place, self.gpu = run, spec, place, gpu

    def bind(self, inputs: Any, outputs: Any) -> Any:
        """On arrays of the GPU a `TorchBinding`, else a call on numpy's."""
        first, *others = self.spec.outputs
        if self.gpu is not None:
            from mimicmotion_trt.engines.torch_backend import TorchBinding, shared_memory

            into = [
                torch.as_tensor(DeviceArray.of(outputs[t.name]), device=self._place.torch) for t in others
            ]
            spec, answer = EngineSpec(self.spec.inputs, (first,)), {first.name: outputs[first.name]}
            run, memory = first_of(self._run, into), shared_memory(self.gpu)
            return TorchBinding(run, spec, inputs, answer, self._place.torch, memory)
        given = [torch.from_numpy(inputs[tensor.name]) for tensor in self.spec.inputs]
        kept = [torch.from_numpy(outputs[tensor.name]) for tensor in (first, *others)]
        run = first_of(self._run, kept[1:])

        def call() -> None:
            with torch.inference_mode():
                kept[0].copy_(run(*given))

        return call

    def close(self) -> None:
        """Nothing is held."""


def first_of(run: Callable[..., Any], into: Sequence[torch.Tensor]) -> Run:
    """A network's first answer; the others are copied into tensors, one each."""
    if not into:
        return run

    def first(*given: torch.Tensor) -> torch.Tensor:
        answers: Sequence[torch.Tensor] = run(*given)
        for target, answer in zip(into, answers[1:], strict=True):
            target.copy_(answer)
        return answers[0]

    return first


def seconds_of(work: Callable[[], Any], wait: Callable[[], None], series: int = 3) -> float:
    """Of one round, the median of some; a first one is not timed."""
    found = []
    for number in range(series + 1):
        wait()
        began = time.perf_counter()
        work()
        wait()
        if number:
            found.append(time.perf_counter() - began)
    return statistics.median(found)


def matmul_tflops(place: Place, side: int = 8192, times: int = 30) -> float:
    """TFLOP/s of side x side products, in float16 on a GPU."""
    dtype = torch.float16 if place.torch.type == "cuda" else torch.float32
    a, b = (torch.randn((side, side), device=place.torch).to(dtype) for _ in range(2))

    def products() -> None:
        for _ in range(times):
            a @ b

    return 2 * side**3 * times / seconds_of(products, place.wait) / 1e12


def idle_share(work: Callable[[], Any], wait: Callable[[], None]) -> float | None:
    """The share of `work` in which the GPU runs no kernel and no copy, by PyTorch's profiler; None if it saw none."""
    from torch.profiler import ProfilerActivity, profile

    os.environ["TEARDOWN_CUPTI"] = "0"  # PyTorch: graphs do not survive its being taken down
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        work()
        wait()
    spans = [
        (event.time_range.start, event.time_range.end)
        for event in seen.events() or ()
        if event.device_type.name == "CUDA" and not event.is_user_annotation
    ]
    return uncovered(spans) if spans else None


def uncovered(spans: Iterable[Sequence[float]]) -> float:
    """The share of the time from the first beginning to the last end that no (begin, end) covers."""
    ordered = sorted(map(tuple, spans))
    first, covered = ordered[0][0], 0.0
    reached = first
    for begin, end in ordered:
        covered += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return 1 - covered / (reached - first) if reached > first else 0.0
