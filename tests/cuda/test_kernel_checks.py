"""What tests/gpu checks on a GPU holds on the kernels of g++, and fails where one is wrong."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from mimicmotion_trt.cuda import launches
from mimicmotion_trt.cuda.launches import KERNELS
from mimicmotion_trt.engines.cuda import Gpu

from ..gpu.kernel_checks import CHECKS
from ..gpu.test_kernels import GpuKernels
from .stand_in_cuda import Cuda


class Watched:
    """Kernels that note what was launched; of one of them the results are wrong."""

    def __init__(self, host, wrong=""):
        self.dtype, self._host, self._wrong, self.launched = host.dtype, host, wrong, set()

    def run(self, launch, *arrays):
        self._host.run(launch, *arrays)
        self.launched.add(launch.kernel)
        if launch.kernel == self._wrong:
            arrays[-1][...] += arrays[-1].dtype.type(1)


def check_all(kernels):
    with np.errstate(over="ignore"):
        for check in CHECKS.values():
            check(kernels)


def test_every_kernel_is_checked_and_computes_numpys_bits(host):
    watched = Watched(host)
    check_all(watched)
    assert watched.launched == set(KERNELS)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("host", ["float16"], indirect=True)
def test_a_wrong_kernel_is_noticed(host, kernel):
    with pytest.raises(AssertionError, match="not equal"):
        check_all(Watched(host, kernel))


def test_the_gpus_kernels_are_run_as_those_of_a_host(host, monkeypatch):
    """On a stand-in for CUDA: arrays go up, the kernel runs on the stream, the last array comes down."""
    cuda = Cuda(host)
    monkeypatch.setitem(sys.modules, "cuda.core", cuda.core())
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", cuda.driver())
    monkeypatch.setattr(launches, "compile_kernels", lambda arch, dtype: b"cubin")
    kernels = GpuKernels(Gpu(0), host.dtype.name)
    check_all(kernels)
    kernels.device.close()
