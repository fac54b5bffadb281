"""The picture of a report of `gpu_check.py`: seconds of each way to run the loop, and TFLOP/s beside the ceiling."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

Bars = dict[str, dict[str, float]]
"""Stage -> name of a bar -> value."""
TFLOPS = "_unet_tflops"


def bars(report: Mapping[str, Any]) -> tuple[Bars, Bars]:
    """Seconds, and TFLOP/s, of every stage that has some."""
    seconds: Bars = {}
    tflops: Bars = {}
    for name, found in report["stages"].items():
        figures = found.get("figures", {})
        looped = {key.removesuffix("_s"): v for key, v in figures.items() if key.endswith("_s")}
        if name.startswith(("loop", "tensorrt-real")) and looped:
            seconds[name] = looped
        computed = {key.removesuffix(TFLOPS): v for key, v in figures.items() if key.endswith(TFLOPS)}
        if computed:
            tflops[name] = computed
    return seconds, tflops


def plot(report: Mapping[str, Any], path: Path) -> None:
    """A row of bars for each stage; nothing is drawn where nothing was measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    seconds, tflops = bars(report)
    if not seconds:
        return
    rows = [max(len(seconds[name]), len(tflops.get(name, {})), 2) for name in seconds]
    figure, axes = pyplot.subplots(
        len(seconds), 2, figsize=(12, 0.4 * sum(rows) + 1.2 * len(rows)), squeeze=False, height_ratios=rows
    )
    for (left, right), name in zip(axes, seconds, strict=True):
        left.barh(list(seconds[name]), list(seconds[name].values()))
        left.set(title=f"{name}: seconds")
        right.barh(list(tflops.get(name, {})), list(tflops.get(name, {}).values()), color="tab:green")
        right.set(title="U-Net, TFLOP/s")
        ceiling = report["stages"][name]["figures"].get("matmul_tflops")
        if ceiling is not None:
            right.axvline(ceiling, color="black", linestyle="--", label=f"matmul {ceiling:.0f}")
            right.legend(fontsize=7)
        for axis in (left, right):
            axis.invert_yaxis()
    figure.suptitle(report["machine"])
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
