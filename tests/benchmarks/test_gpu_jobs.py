"""Two jobs in gpu_check, on step programs with the kernels of g++."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import Any

import pytest

from mimicmotion_trt import animator as animator_module
from mimicmotion_trt.cuda.denoiser import ProgramCache
from mimicmotion_trt.cuda.program import Layout, StepProgram
from mimicmotion_trt.engines import Engine


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, with fewer runs and steps."""
    module = importlib.import_module("gpu_jobs")
    monkeypatch.setattr(module, "RUNS", 2)
    monkeypatch.setattr(module, "LONG", 4)
    return module


@pytest.fixture
def programs(host, stand_in, monkeypatch) -> list[ProgramCache]:
    """Animators denoise on stand-ins that take their time; their programs."""
    opened: list[ProgramCache] = []

    class Slow(stand_in):
        def mark(self) -> Callable[[], None]:
            return lambda: time.sleep(0.02)  # so that jobs ask for steps while the GPU computes

    device = Slow(host)  # one, as there is one GPU

    def make(layout: Layout, unet: Engine, outer: Engine | None) -> StepProgram:
        return StepProgram(device, unet, layout)

    def open_programs(*given: Any, **named: Any) -> ProgramCache:
        opened.append(ProgramCache(make))
        return opened[-1]

    monkeypatch.setattr(animator_module, "open_programs", open_programs)
    return opened


@pytest.mark.parametrize("host", ["float32"], indirect=True)
def test_two_jobs_share_the_steps_of_one_program(jobs, programs, bundle):
    (told,) = jobs.two_jobs_parts(lambda: bundle)["together"]()
    assert told["together_programs"] == programs[1].made == 1
    assert 0 < told["together_steps"] <= 2 * 4
    assert told["together_rel_l2"] < 1e-5
    assert told["together_ratio"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("host", ["float32"], indirect=True)
def test_jobs_that_share_nothing_are_told(jobs, programs, bundle, monkeypatch):
    limits = jobs.Limits
    monkeypatch.setattr(jobs, "Limits", lambda jobs, together: limits(jobs=jobs))
    told = jobs.two_jobs_parts(lambda: bundle)["together"]()
    assert next(told)["together_steps"] == 0
    with pytest.raises(AssertionError, match="took 0 steps together"):
        next(told)


@pytest.mark.slow
def test_on_the_cpu_there_is_no_program_to_share(jobs, bundle):
    (told,) = jobs.two_jobs_parts(lambda: bundle)["together"]()
    assert set(told) == {"together_s", "together_ratio", "together_rel_l2"}
    assert told["together_rel_l2"] < 1e-5
