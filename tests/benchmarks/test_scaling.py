"""The scaling benchmark: slopes, predictions and the picture, from points that need not be measured."""

from __future__ import annotations

import json
from typing import Any

import pytest
import scaling

from mimicmotion_trt.denoise.cost import MIMICMOTION, cost_of


@pytest.fixture
def points() -> list[dict[str, Any]]:
    """A sweep of frames whose seconds grow with the square and whose operations grow linearly."""
    return [
        {"frames": n, "size": [64, 128], "segment": 8, "rows": 0, "seconds": n**2 / 64, "peak_mib": 100.0 + n,
         "loaded_mib": 90.0, "predicted": {"flops": n * 1e9, "more_mib": 4.0}}
        for n in (8, 16, 32)
    ]  # fmt: skip


def test_slopes_are_those_of_the_powers(points):
    found = scaling.summary("frames", points)
    assert found["slope_measured"] == pytest.approx(2)
    assert found["slope_predicted"] == pytest.approx(1)
    assert found["memory_slope_measured"] == pytest.approx(0.6, abs=0.1)  # 18, 26 and 42 MiB
    assert found["memory_slope_predicted"] == pytest.approx(0)
    assert found["gflops_per_second"] == pytest.approx(4)  # the middle one: 16 GFLOP in 4 s


def test_memory_that_does_not_grow_has_no_slope(points):
    points[0]["peak_mib"] = points[0]["loaded_mib"]
    found = scaling.summary("frames", points)
    assert found["memory_slope_measured"] is None
    assert "of memory –" in scaling.table_of("frames", found).title


def test_the_page_has_slopes_and_points(points):
    sweeps = {"frames": scaling.summary("frames", points)}
    text = scaling.section({"bundle": "tiny", "steps": 4, "threads": 2, "sweeps": sweeps})
    assert "| frames | 8 | 32 | 2.00 | 1.00 | 0.61 | 0.00 |" in text
    assert text.splitlines()[-1] == "| 32 | 64x128 | 8 |  | 16.000 | 32.0 | 42 | 4 |"
    page = scaling.with_table(scaling.DOCS.read_text(), "scaling", text)
    assert text in page


def test_a_call_of_the_unet_costs_by_its_rows():
    one, four = (scaling.row_cost(MIMICMOTION, scaling.Point(7, (64, 128), 8, rows)) for rows in (1, 4))
    assert four == (pytest.approx(4 * one[0]), 4 * one[1])


def test_a_size_counts_by_its_pixels(points):
    assert scaling.quantity("size", points[0]) == 64 * 128
    assert scaling.quantity("frames", points[0]) == 8


def test_every_sweep_varies_one_quantity():
    for name, points in scaling.SWEEPS.items():
        kept = [(p.frames, p.size, p.segment, p.rows) for p in points]
        others = {
            tuple(v for k, v in zip(("frames", "size", "segment", "rows"), p, strict=True) if k != name)
            for p in kept
        }
        assert len(others) == 1, name
        assert len(set(kept)) == len(points) >= 2


def test_gpus_are_predicted_from_operations():
    curves = scaling.gpu_curves()
    settings = scaling.Settings(size=(576, 1024), segment=72)
    expected = cost_of(MIMICMOTION, settings, 71).total / (989e12 * curves["efficiency"])
    assert curves["seconds"]["H100"][curves["frames"].index(71)] == pytest.approx(expected)
    for seconds in curves["seconds"].values():
        assert sorted(seconds) == seconds


def test_the_picture_is_drawn(points, tmp_path):
    sweeps = {"frames": scaling.summary("frames", points)}
    scaling.draw(tmp_path / "results" / "scaling.png", sweeps, scaling.gpu_curves())
    assert (tmp_path / "results" / "scaling.png").stat().st_size > 1000
    assert scaling.table_of("frames", sweeps["frames"]).row_count == 3
    json.dumps(sweeps)
