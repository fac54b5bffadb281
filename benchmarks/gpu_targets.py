"""What the GPU step is to reach, which figures say so, and whether they do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Stages = Mapping[str, Mapping[str, Any]]
"""Figures by stage."""
UNETS = ("graph", "rows_2", "compiled", "tensorrt")
"""Ways to run our U-Net in a captured step."""


@dataclass(frozen=True)
class Target:
    """One of them; `figure` is None where a stage has not measured it."""

    what: str
    stage: str
    bound: float
    figure: Callable[[Mapping[str, Any]], float | None]
    """Of the stage's figures."""
    at_most: bool = False

    def told(self, stages: Stages) -> dict[str, Any]:
        """The target, its figure, and whether it is met."""
        figure = self.figure(stages.get(self.stage, {}))
        met = None if figure is None else figure < self.bound if self.at_most else figure >= self.bound
        return {"what": self.what, "stage": self.stage, "target": self.aim, "figure": figure, "met": met}

    @property
    def aim(self) -> str:
        """`>= 2`."""
        return f"{'<' if self.at_most else '>='} {self.bound:g}"


def speed_up(own: Mapping[str, Any]) -> float | None:
    """The plain loop's video over ours, per job, exactly computed; the faster of one job and of two that overlap."""
    ours = [own[name] for name in ("video_ours_s", "video_overlapped_s") if name in own]
    return own["video_plain_s"] / min(ours) if ours and "video_plain_s" in own else None


def with_options(own: Mapping[str, Any]) -> float | None:
    """The plain loop's video over ours with options on, the faster of those without and with features reused."""
    ours = [own[name] for name in ("video_options_s", "video_reuse_s") if name in own]
    return own["video_plain_s"] / min(ours) if ours and "video_plain_s" in own else None


def share_of_ceiling(own: Mapping[str, Any]) -> float | None:
    """Our best U-Net's TFLOP/s over those of a large product, measured beside it."""
    found = [own[f"{name}_unet_tflops"] for name in UNETS if f"{name}_unet_tflops" in own]
    return max(found) / own["matmul_tflops"] if found and "matmul_tflops" in own else None


def idle(own: Mapping[str, Any]) -> float | None:
    """The share of a captured step in which the GPU has nothing to do."""
    return own.get("gaps_idle")


def blending(own: Mapping[str, Any]) -> float | None:
    """Blend-guide-step's bandwidth over a copy's."""
    return own.get("float16_blend_step_share_of_copy")


TARGETS = (
    *(
        target
        for loop in ("loop-16", "loop-72")
        for target in (
            Target("video, exactly, against the plain PyTorch loop", loop, 2.0, speed_up),
            Target("video with options on, against the plain PyTorch loop", loop, 5.0, with_options),
            Target("U-Net's TFLOP/s over the matmul ceiling", loop, 0.45, share_of_ceiling),
            Target("share of a step without work on the GPU", loop, 0.01, idle, at_most=True),
        )
    ),
    Target("U-Net's TFLOP/s over the matmul ceiling", "tensorrt-real", 0.45, share_of_ceiling),
    Target("share of a step without work on the GPU", "tensorrt-real", 0.01, idle, at_most=True),
    Target("blend-guide-step's bandwidth over a copy's", "kernels", 0.8, blending),
)


def judged(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every target with the figure of a report of `gpu_check.py`."""
    stages = {name: found.get("figures", {}) for name, found in report["stages"].items()}
    return [target.told(stages) for target in TARGETS]


def verdict(told: Mapping[str, Any]) -> str:
    """For people."""
    return {None: "not measured", True: "met", False: "NOT MET"}[told["met"]]
