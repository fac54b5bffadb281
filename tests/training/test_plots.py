"""Plots have one look: plain numbers on logarithmic axes, and small changes that look small."""

from __future__ import annotations

import pytest

from mimicmotion_trt.media.picture import read_picture
from mimicmotion_trt.training.plots import COLOURS, drawn, plain_log


def ticks(axes) -> list[str]:
    low, high = axes.get_ylim()
    return [
        axes.yaxis.get_major_formatter()(at) for at in axes.yaxis.get_majorticklocs() if low <= at <= high
    ]


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ((0.052, 0.341), ["0.05", "0.1", "0.2"]),
        ((1, 4000), ["1", "10", "100", "1,000"]),
        ((0.00021, 0.013), ["0.0005", "0.001", "0.005", "0.01"]),
    ],
)
def test_logarithmic_axes_have_plain_numbers(tmp_path, values, shown):
    with drawn(tmp_path / "plot.png", 1, 1, (3, 2)) as axes:
        axes[0, 0].plot([1, 2], values)
        plain_log(axes[0, 0])
        found = ticks(axes[0, 0])
    assert set(shown) <= set(found)
    assert len(found) <= 15


def test_a_small_change_looks_small(tmp_path):
    with drawn(tmp_path / "plot.png", 1, 1, (3, 2)) as axes:
        axes[0, 0].plot([1, 2], [3.2, 3.6])
        plain_log(axes[0, 0])
        low, high = axes[0, 0].get_ylim()
        assert high / low >= 3.9
        assert len(ticks(axes[0, 0])) >= 2


def test_a_plot_is_written_with_its_folder_and_changes_no_global_state(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    with drawn(tmp_path / "new" / "plot.png", 2, 1, (3, 3)) as axes:
        assert axes.shape == (2, 1)
        (line,) = axes[0, 0].plot([1, 2])
        assert line.get_color() == COLOURS[0]
    assert read_picture(tmp_path / "new" / "plot.png").std() > 1
    assert dict(matplotlib.rcParams) == before
