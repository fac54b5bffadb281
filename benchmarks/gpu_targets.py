"""What the GPU step is to reach, which figures say so, and whether they do.

A ratio counts if all that it is made of was measured in one run: by one process on one card.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

Figures = Mapping[str, Any]
UNETS = ("graph", "rows_2", "compiled", "tensorrt")
"""Ways to run our U-Net in a captured step."""


@dataclass(frozen=True)
class Target:
    """One of them."""

    what: str
    stages: tuple[str, ...]
    """Each measures a way to reach it; the best one counts."""
    bound: float
    figure: Callable[[Figures], float | None]
    """Of a stage's figures; None where something is missing."""
    at_most: bool = False

    def told(self, stages: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The target, the best figure of one run, and whether it is met by that.

        Where no run has all of a figure's parts, it is made of several runs' and neither met nor missed.
        """
        found = {name: stages.get(name, {}) for name in self.stages}
        best = self._best(
            (name, run, own) for name, of in found.items() for run, own in of.get("runs", {}).items()
        ) or self._best((name, None, of.get("figures", {})) for name, of in found.items())
        figure, stage, run = best or (None, self.stages[0], None)
        told = {"what": self.what, "stage": stage, "target": self.aim, "figure": figure, "run": run}
        if figure is None or run is None:
            return told | {"met": None}
        return told | {"met": figure < self.bound if self.at_most else figure >= self.bound}

    def _best(self, found: Iterable[tuple[str, str | None, Figures]]) -> tuple[float, str, str | None] | None:
        """The best figure of (stage, run, figures), and of which it is; None if there is none."""
        told = [(figure, stage, run) for stage, run, own in found if (figure := self.figure(own)) is not None]
        choose = min if self.at_most else max
        return choose(told, key=lambda one: one[0], default=None)

    @property
    def aim(self) -> str:
        """`>= 2`."""
        return f"{'<' if self.at_most else '>='} {self.bound:g}"


def speed_up(own: Figures) -> float | None:
    """The plain loop's video over ours, per job, exactly computed; the faster of one job and of two that overlap."""
    ours = [own[name] for name in ("video_ours_s", "video_overlapped_s") if name in own]
    return own["video_plain_s"] / min(ours) if ours and "video_plain_s" in own else None


def with_options(own: Figures) -> float | None:
    """The plain loop's video over ours with options on, the faster of those without and with features reused."""
    ours = [own[name] for name in ("video_options_s", "video_reuse_s") if name in own]
    return own["video_plain_s"] / min(ours) if ours and "video_plain_s" in own else None


def share_of_ceiling(own: Figures) -> float | None:
    """Our best U-Net's TFLOP/s over those of a large product, measured beside it."""
    found = [own[f"{name}_unet_tflops"] for name in UNETS if f"{name}_unet_tflops" in own]
    return max(found) / own["matmul_tflops"] if found and "matmul_tflops" in own else None


def idle(loop: str, own: Figures) -> float | None:
    """The share of a loop's captured step in which the GPU has nothing to do."""
    return own.get(f"{loop}_gaps_idle")


def blending(own: Figures) -> float | None:
    """Blend-guide-step's bandwidth over a copy's."""
    return own.get("float16_blend_step_share_of_copy")


LOOPS = (("loop-16", "tensorrt-real"), ("loop-72", "tensorrt-real-72"))
"""Stages that run the same loop, on PyTorch and on a plan."""
EACH = tuple(name for loops in LOOPS for name in loops)
TARGETS = (
    *(Target("video, exactly, against the plain PyTorch loop", loops, 2.0, speed_up) for loops in LOOPS),
    *(
        Target("video with options on, against the plain PyTorch loop", loops, 5.0, with_options)
        for loops in LOOPS
    ),
    *(Target("U-Net's TFLOP/s over the matmul ceiling", (loop,), 0.45, share_of_ceiling) for loop in EACH),
    *(
        Target(
            f"share of a step of {loop} without work on the GPU", ("gaps",), 0.01, partial(idle, loop), True
        )
        for loop in EACH
    ),
    Target("blend-guide-step's bandwidth over a copy's", ("kernels",), 0.8, blending),
)


def judged(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every target with the figure of a report of `gpu_check.py`."""
    return [target.told(report["stages"]) for target in TARGETS]


def verdict(told: Mapping[str, Any]) -> str:
    """For people; a figure that is no run's own is neither met nor missed."""
    unknown = "not measured" if told["figure"] is None else "across runs"
    return {None: unknown, True: "met", False: "NOT MET"}[told["met"]]
