"""The benchmark of the options: what is tried, what its lines say, and where the table goes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from mimicmotion_trt import Settings

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "options.py"


@pytest.fixture(scope="module")
def options() -> Any:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("options", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["options"] = module
    spec.loader.exec_module(module)
    return module


def test_what_the_bundle_allows_is_tried(options):
    exact = Settings(segment=8, overlap=3)
    names = set(options.make_variants(exact, 10, (0.3, 20.0), deep=False))
    assert {"exact", "10 steps, align-your-steps", "layout shifted", "guidance in (0.3, 20]"} <= names
    deep = options.make_variants(exact, 10, (0.3, 20.0), deep=True)
    assert set(deep) - names == {
        "reuse_interval 2",
        "reuse_interval 3",
        "all, compact, reuse 2",
    }
    for more in deep.values():
        Settings.from_dict({**exact.to_dict(), **more})  # no combination is refused
    unguided = options.make_variants(Settings(guidance=1), 10, (0.3, 20.0), deep=True)
    assert not any("guidance_interval" in more for more in unguided.values())


def test_a_line_has_medians_of_ratios_and_means_of_measures(options):
    exact = [options.Run(4.0, 3.0, (99.0, 1.0), (20.0, 0.5)), options.Run(8.0, 6.0, (99.0, 1.0), (22.0, 0.7))]
    fast = [options.Run(2.0, 1.0, (30.0, 0.9), (19.0, 0.4)), options.Run(4.0, 2.0, (40.0, 0.7), (20.0, 0.6))]
    line = options.summary("fast", fast, exact)
    assert (line.speed_up, line.denoise_speed_up) == (2.0, 3.0)
    assert (line.psnr_exact, line.psnr_truth) == (35.0, 19.5)
    assert (line.ssim_exact, line.ssim_truth) == pytest.approx((0.8, 0.5))


def test_the_table_replaces_the_one_before(options):
    page = options.DOCS.read_text()
    once = options.with_table(page, "| new |")
    assert options.with_table(once, "| new |") == once
    assert "| new |" in once
    assert once.startswith(page[: page.index(options.BEGIN)])
    with pytest.raises(ValueError, match=r"options\.md lacks"):
        options.with_table("no marks", "| new |")


def test_variants_run_on_the_same_clips(options, animator):
    """One clip of three frames in two steps; the exact run agrees with itself, the other nearly."""
    chosen = {"size": (64, 128), "rescale": False, "steps": 2}
    variants = {"exact": {}, "guidance in (5, 800]": {"guidance_interval": (5.0, 800.0)}}
    runs = options.measure(animator, chosen, variants, [0], frames=3)
    (exact,), (other,) = runs.values()
    assert exact.exact == (99.0, pytest.approx(1.0))
    assert 10 < other.exact[0] < 99
    assert exact.truth[0] > 0
    assert 0 < other.denoise < other.seconds
