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
    device, figures = stand_in(host), {}
    for name in stage.CHECKS:
        figures |= stage.check_kernel(device, host.dtype.name, name)
    assert set(figures) == {f"{name}_rel" for name in stage.CHECKS}
    assert all(value == 0 for value in figures.values()), figures
    launched = {word for word in device.told if word != "empty"}
    assert launched == set(importlib.import_module("mimicmotion_trt.cuda.launches").KERNELS)


@pytest.fixture
def parts(host, stand_in, stage, monkeypatch) -> Any:
    """The parts of the stage, small, on a stand-in whose kernels are those of g++, but for two."""
    stages = importlib.import_module("gpu_stages")

    class Wrong(stand_in):
        def launch(self, what: Any, *arrays: Any, stream: Any) -> None:
            super().launch(what, *arrays, stream=stream)
            if what.kernel == "blend_step":
                arrays[-1][...] *= np.float32(1.001)

        def record(self, *given: Any, **named: Any) -> Any:
            raise RuntimeError("nothing is captured today")

    made: list[Any] = []

    def device(gpu: Any, dtype: str) -> Any:
        made.append(Wrong(host))
        return made[-1]

    monkeypatch.setattr(stages, "CudaDevice", device)
    yield stages.kernels(stages.Machine(object(), "a stand-in", "", "", None))
    assert all(one.told[-1] == "closed" for one in made)


@pytest.mark.parametrize("host", ["float32"], indirect=True)
def test_a_kernel_that_is_wrong_and_timing_that_fails_cost_no_other_figure(stage, parts):
    figures, failed = {}, []
    for name in (name for name in parts if name.startswith("float32")):
        try:
            for told in parts[name]():
                figures |= told
        except (AssertionError, RuntimeError) as error:
            failed.append(str(error))
    assert set(figures) == {f"float32_{name}_rel" for name in stage.CHECKS if name != "blend_step"}
    assert failed[0].startswith("the kernel blend_step for float32 differs from numpy by 1")
    assert failed[1:] == ["nothing is captured today"] * len(stage.TIMED)


@pytest.mark.parametrize("host", ["float32"], indirect=True)
def test_all_kernels_are_checked_before_any_is_timed(stage, parts):
    timed = [name.endswith("bandwidth") for name in parts]
    assert timed == sorted(timed)
    assert len(parts) == 2 * (len(stage.CHECKS) + len(stage.TIMED))


@pytest.mark.parametrize("host", ["float16"], indirect=True)
def test_bandwidth_is_of_many_launches_in_one_graph(host, stand_in, stage):
    device = stand_in(host)
    amount = stage.Amount(frames=20, cells=(2, 4), rows=1, pictures=1, launches=3)
    figures = {}
    for name in stage.TIMED:
        figures |= stage.time_kernel(device, "float16", name, amount)
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
    (figures,) = stages.kernels(machine)["float16 blend_step bandwidth"]()
    told = targets.judged({"stages": {"kernels": {"runs": {"a run": figures}}}})
    assert [one["met"] is not None for one in told if one["stage"] == "kernels"] == [True]


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
