"""One look for all plots, of training and of benchmarks. Needs matplotlib, which the extra `train` brings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Of Okabe and Ito, which colour-blind readers tell apart."""
DASHES = ("-", "--", "-.", ":", "-", "--", "-.")
"""A second mark of every colour, for prints without any."""
MARK = "#7A7A7A"
"""The colour of lines to compare with."""
STYLE: dict[str, Any] = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#E0E0E0",
    "axes.axisbelow": True,
    "legend.fontsize": 8.0,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "savefig.dpi": 110,
}
NARROW = 4.0
"""A logarithmic axis shows at least this factor, so that a small change looks small."""


@contextmanager
def drawn(path: Path, rows: int, columns: int, size: tuple[float, float], **more: Any) -> Iterator[Any]:
    """Axes of matplotlib [rows,columns] of a figure of this size in inches, which is written to `path` at the end.

    `more` goes to `Figure.subplots`. Nothing of matplotlib's global state is used or changed.
    """
    from cycler import cycler
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style: Any = {**STYLE, "axes.prop_cycle": cycler(color=COLOURS) + cycler(linestyle=DASHES)}
    with rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        yield figure.subplots(rows, columns, squeeze=False, **more)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)


def plain_log(axes: Any, side: str = "y") -> None:
    """A logarithmic axis (`x` or `y`) with numbers as people write them, once its data are there."""
    from matplotlib import ticker

    axis = getattr(axes, f"{side}axis")
    getattr(axes, f"set_{side}scale")("log")
    low, high = axis.get_view_interval()
    if high / low < NARROW:
        middle = (low * high) ** 0.5
        low, high = middle / NARROW**0.5, middle * NARROW**0.5
        getattr(axes, f"set_{side}lim")(low, high)
    narrow = high / low < NARROW + 1
    axis.set_major_locator(
        ticker.MaxNLocator(5, steps=[1, 2, 5, 10]) if narrow else ticker.LogLocator(subs=(1, 2, 5))
    )
    axis.set_minor_locator(ticker.NullLocator())
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,.4g}"))
