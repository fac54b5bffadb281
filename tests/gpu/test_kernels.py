"""The fused kernels on this GPU: they load, and compute numpy's bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from mimicmotion_trt.cuda.launches import open_device
from mimicmotion_trt.engines.cuda import open_gpu

from .kernel_checks import CHECKS, WRITTEN, Array, Kernels

pytestmark = pytest.mark.gpu


class GpuKernels:
    """The kernels of one dtype, loaded onto the GPU."""

    def __init__(self, gpu: Any, dtype: str) -> None:
        self.dtype, self.device = np.dtype(dtype), open_device(gpu, dtype)

    def run(self, launch: Any, *arrays: Array) -> None:
        """See `Kernels`."""
        held = []
        for array in arrays:
            held.append(self.device.empty(array.shape, array.dtype))
            self.device.upload(array, held[-1])
        self.device.enqueue(lambda stream: self.device.launch(launch, *held, stream=stream))
        for array, memory in list(zip(arrays, held, strict=True))[-WRITTEN.get(launch.kernel, 1) :]:
            array[...] = self.device.download(memory)


@pytest.fixture(scope="module", params=["float16", "float32"])
def kernels(request: pytest.FixtureRequest, needs_gpu: None) -> Iterator[Kernels]:
    """Compiled for this GPU and loaded."""
    loaded = GpuKernels(open_gpu(0), request.param)
    yield loaded
    loaded.device.close()


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_a_kernel_computes_numpys_bits(kernels: Kernels, check: Callable[[Kernels], None]) -> None:
    check(kernels)
