"""Work that is put on a stream once and launched again as a whole: a CUDA graph.

It is captured by the driver's own calls. The builder of `cuda.core` (1.2) keeps the graph that a capture is making;
when the capture fails, the driver destroys that graph itself, and letting go of the builder, however it is done, ends
the process (NVIDIA/cuda-python#2834).
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..engines.cuda_errors import answer, explained
from ..engines.cuda_gpu import Gpu

Work = Callable[[Any], None]
"""Puts something on the stream that it is given."""
OFF = "Run with graphs off (--graphs off), and report the text above."
_one = threading.Lock()


class Graph:
    """Captured work on a GPU; `close` it. What the work refers to lives as long: a capture keeps nothing alive."""

    def __init__(self, gpu: Gpu, work: Work) -> None:
        """Capture `work`, which must have run before, so that nothing is allocated or compiled now.

        Raises `EngineError` with the reason if that fails, `OutOfMemory` if memory is why.
        """
        self._gpu, self._executable = gpu, None
        self._work: Work | None = work
        with gpu.locked():
            try:
                with _undisturbed(gpu):
                    graph = self._captured(work)
                self._executable = self._instance(graph)
            except Exception as error:
                raise explained(error, "the step could not be captured as a CUDA graph", OFF) from error

    def __call__(self) -> None:
        """Put it on the GPU's stream."""
        with self._gpu.locked():
            launched = self._gpu.driver.cuGraphLaunch(self._executable, self._gpu.stream.handle)
            answer(launched, "a CUDA graph could not be launched")

    def close(self) -> None:
        """Destroy it; it must not be under way."""
        executable, self._executable, self._work = self._executable, None, None
        if executable is not None:
            self._gpu.driver.cuGraphExecDestroy(executable)

    def _captured(self, work: Work) -> Any:
        driver, stream = self._gpu.driver, self._gpu.stream
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        answer(driver.cuStreamBeginCapture(stream.handle, mode), "the capture could not begin")
        try:
            work(stream)
        except BaseException:  # whatever it is, the stream must not stay as it is
            _, graph = driver.cuStreamEndCapture(stream.handle)
            if graph is not None:
                driver.cuGraphDestroy(graph)
            raise
        return answer(driver.cuStreamEndCapture(stream.handle), "the capture did not end well")

    def _instance(self, graph: Any) -> Any:
        driver, stream = self._gpu.driver, self._gpu.stream
        try:
            executable = answer(driver.cuGraphInstantiate(graph, 0), "it could not be made executable")
        finally:
            driver.cuGraphDestroy(graph)
        error, *_ = driver.cuGraphUpload(executable, stream.handle)
        if error:
            driver.cuGraphExecDestroy(executable)
        answer((error,), "it could not be brought to the GPU")
        return executable


@contextmanager
def _undisturbed(gpu: Gpu) -> Iterator[None]:
    """A time for one capture, in which nothing is given back: on the stream, or by this thread, that would end it.

    Python's collector may let go of anything at any time, so it works before and rests meanwhile.
    """
    with _one:  # of two at once, the first to end would wake the collector
        gc.collect()
        gpu.collect()
        collects = gc.isenabled()
        gc.disable()
        gpu.capturing = True
        try:
            yield
        finally:
            gpu.capturing = False
            if collects:
                gc.enable()
