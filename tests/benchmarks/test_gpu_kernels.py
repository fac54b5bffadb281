"""The kernels' stage of gpu_check on the kernels of g++: it sees that they are right, and times what it says."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="module")
def stage() -> Any:
    """The stage as a module."""
    return importlib.import_module("gpu_kernels")


def test_every_kernel_is_compared_with_numpy(host, stand_in, stage):
    device = stand_in(host)
    figures = {k: v for told in stage.check_kernels(device, host.dtype.name) for k, v in told.items()}
    assert all(value == 0 for value in figures.values()), figures
    launched = {word for word in device.told if word != "empty"}
    assert launched == set(importlib.import_module("mimicmotion_trt.cuda.launches").KERNELS)


@pytest.mark.parametrize("host", ["float32"], indirect=True)
def test_a_kernel_that_is_wrong_is_told(host, stand_in, stage):
    class Wrong(stand_in):
        def launch(self, what: Any, *arrays: Any, stream: Any) -> None:
            super().launch(what, *arrays, stream=stream)
            if what.kernel == "blend_step":
                arrays[-1][...] *= np.float32(1.001)

    told = stage.check_kernels(Wrong(host), "float32")
    with pytest.raises(AssertionError, match="blend_step for float32 differs from numpy by 1"):
        list(told)


@pytest.mark.parametrize("host", ["float16"], indirect=True)
def test_bandwidth_is_of_many_launches_in_one_graph(host, stand_in, stage):
    device = stand_in(host)
    amount = stage.Amount(frames=20, cells=(2, 4), rows=1, pictures=1, launches=3)
    figures = {k: v for told in stage.time_kernels(device, "float16", amount) for k, v in told.items()}
    for name in ("blend_step", "poses", "to_pictures"):
        kernel, copy = figures[f"{name}_gb_s"], figures[f"{name}_copy_gb_s"]
        assert figures[f"{name}_share_of_copy"] == pytest.approx(kernel / copy)
    assert device.recorded == 6  # three kernels and their copies
    assert device.told.count("blend_step") == 3 * 5  # once before the capture, then four replays


@pytest.mark.parametrize("host", ["float16"], indirect=True)
def test_the_stage_has_the_figure_of_the_target(host, stand_in, stage, monkeypatch):
    stages, targets = (importlib.import_module(f"gpu_{name}") for name in ("stages", "targets"))
    small = stage.Amount(frames=20, cells=(2, 4), rows=1, pictures=1, launches=1)
    monkeypatch.setattr(stages, "Amount", lambda: small)
    monkeypatch.setattr(stages, "CudaDevice", lambda gpu, dtype: stand_in(host))
    machine = stages.Machine(object(), "a stand-in", "", "", None)
    figures = {k: v for told in stages.kernels(machine)["float16"]() for k, v in told.items()}
    told = targets.judged({"stages": {"kernels": {"figures": figures}}})
    assert [one["figure"] is not None for one in told if one["stage"] == "kernels"] == [True]


def test_the_amounts_that_are_timed_fit_into_no_cache(stage):
    class Sizes:
        """Takes no memory, and knows what would have been taken."""

        def empty(self, shape: tuple[int, ...], dtype: Any) -> int:
            return int(np.prod(shape)) * np.dtype(dtype).itemsize

        def upload(self, values: Any, array: int) -> None:
            assert values.nbytes == array

    for make in (stage.blending, stage.gathering, stage.picturing):
        _, moved, held = make(Sizes(), np.dtype("float16"), stage.Amount())
        assert moved >= 500e6
        assert moved <= 2 * sum(held)
