"""Jobs of a bundle: several runs of one seed; two jobs apart, at once, and in one step program."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from gpu_golden import relative_error
from gpu_place import Figures, Part

from mimicmotion_trt import Animator, Limits
from mimicmotion_trt.cuda.program import StepProgram
from mimicmotion_trt.denoise.schedule import Step

BOUND = 1e-4
"""Largest relative L2 error of a float32 job in company against the same alone."""
RUNS = 3
LONG = 8
"""Steps of jobs that are to meet: enough for both to be denoised at the same time."""


@dataclass(frozen=True)
class Pair:
    """Two jobs of other seeds on one animator."""

    latents: list[Any]
    seconds: float
    """Of both together, the fastest run."""
    shared: int
    """Steps that both took together, in all runs."""
    programs: int | None
    """How many step programs were made; None on the CPU, which has none."""

    @classmethod
    def run(cls, bundle: str | Path, limits: Limits, steps: int) -> Pair:
        """As many at once as the limits allow."""
        with Animator.load(bundle, limits=limits) as animator, counted() as company:
            latents, seconds = time_jobs(animator, limits.jobs, steps)
            programs = animator.denoisers.programs
            return cls(latents, seconds, company[2], None if programs is None else programs.made)

    def error(self, other: Pair) -> float:
        """How far the latents are from the other's, relative L2; AssertionError if too far."""
        found = max(relative_error(a, b) for a, b in zip(self.latents, other.latents, strict=True))
        if not found <= BOUND:
            raise AssertionError(f"in company the latents are others: relative L2 {found:.1e}")
        return found


def two_jobs_parts(bundle: Callable[[], str | Path]) -> Mapping[str, Part]:
    """Two jobs of one shape, sampled and decoded: one after the other, at once, and at once in one step program.

    At once each has a program of its own, and one is decoded while the other is denoised. In one program their rows
    share the steps' graphs. Company may change a job's last bits only: by at most what is told, relative L2.
    """

    def at_once() -> Iterator[Figures]:
        apart, both = (Pair.run(bundle(), Limits(jobs=jobs), steps=3) for jobs in (1, 2))
        error = both.error(apart)
        yield {
            "apart_s": apart.seconds,
            "at_once_s": both.seconds,
            "ratio": apart.seconds / both.seconds,
            "rel_l2": error,
        }

    def together() -> Iterator[Figures]:
        apart, both = (Pair.run(bundle(), Limits(jobs=n, together=n), LONG) for n in (1, 2))
        figures = {
            "together_s": both.seconds,
            "together_ratio": apart.seconds / both.seconds,
            "together_rel_l2": both.error(apart),
        }
        if both.programs is None:
            yield figures
            return
        yield figures | {"together_programs": both.programs, "together_steps": both.shared}
        if both.programs != 1 or not both.shared:
            raise AssertionError(
                f"two equal jobs took {both.shared} steps together, on {both.programs} programs"
            )

    return {"at-once": at_once, "together": together}


@contextmanager
def counted() -> Iterator[Counter[int]]:
    """How many steps were taken by one job alone, by two together, …, while this lasts."""
    company, advance = Counter[int](), StepProgram.advance

    def advanced(program: StepProgram, steps: Mapping[int, Step], kind: int = 0) -> None:
        company[len(steps)] += 1
        advance(program, steps, kind)

    with patch.object(StepProgram, "advance", advanced):
        yield company


def time_jobs(animator: Animator, at_once: int, steps: int) -> tuple[list[Any], float]:
    """The latents of two jobs of other seeds, and the fastest time of both together; the first is not timed."""
    picture, poses = chance_inputs(animator)

    def job(seed: int) -> Any:
        latents = animator.sample(picture, poses, animator.settings(steps=steps, seed=seed))
        animator.decode(latents)
        return latents

    best, latents = float("inf"), []
    with ThreadPoolExecutor(at_once) as threads:
        for run in range(RUNS):
            began = time.perf_counter()
            latents = list(threads.map(job, (1, 2)))
            best = min(best, time.perf_counter() - began) if run else best
    return latents, best


def time_samples(animator: Animator, runs: int = 4) -> tuple[float, list[bytes]]:
    """The fastest of some runs of one seed, of which the first is not timed; and the latents of each."""
    picture, poses = chance_inputs(animator)
    settings = animator.settings(steps=3, seed=1)
    best, answers = float("inf"), []
    for run in range(runs):
        began = time.perf_counter()
        answers.append(animator.sample(picture, poses, settings).tobytes())
        best = min(best, time.perf_counter() - began) if run else best
    return best, answers


def chance_inputs(animator: Animator) -> tuple[Any, Any]:
    """A picture and 17 pose pictures of chance, of the bundle's first size."""
    width, height = animator.manifest.sizes[0]
    chance = np.random.default_rng(0)
    picture = chance.integers(0, 255, (height, width, 3), np.uint8)
    return picture, chance.integers(0, 255, (17, height, width, 3), np.uint8)
