"""The benchmark of the options: what is tried, what its lines say, and where the table goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import options
import pytest

from mimicmotion_trt import Settings
from mimicmotion_trt.bundles import load_bundle
from mimicmotion_trt.denoise.segments import cut_segments
from mimicmotion_trt.settings import Layout

MODEL = Path(__file__).parents[2] / "training" / "models" / "tiny"


def test_what_the_bundle_allows_is_tried():
    exact = Settings(segment=8, overlap=3)
    names = set(options.make_variants(exact, 10, (0.3, 20.0), reuses=False))
    assert {"exact", "10 steps, align-your-steps", "layout shifted", "guidance in (0.3, 20]"} <= names
    deep = options.make_variants(exact, 10, (0.3, 20.0), reuses=True)
    assert set(deep) - names == {
        "reuse_interval 2",
        "reuse_interval 3",
        "all, compact, reuse 2",
    }
    for more in deep.values():
        Settings.from_dict({**exact.to_dict(), **more})  # no combination is refused
    unguided = options.make_variants(Settings(guidance=1), 10, (0.3, 20.0), reuses=True)
    assert not any("guidance_interval" in more for more in unguided.values())


def test_a_line_has_medians_of_ratios_and_means_of_measures():
    exact = [
        options.Outcome(4.0, 3.0, (99.0, 1.0), (20.0, 0.5)),
        options.Outcome(8.0, 6.0, (99.0, 1.0), (22.0, 0.7)),
    ]
    fast = [
        options.Outcome(2.0, 1.0, (30.0, 0.9), (19.0, 0.4)),
        options.Outcome(4.0, 2.0, (40.0, 0.7), (20.0, 0.6)),
    ]
    line = options.summary("fast", fast, exact)
    assert (line["speed_up"], line["denoise_speed_up"]) == (2.0, 3.0)
    assert (line["psnr_exact"], line["psnr_truth"]) == (35.0, 19.5)
    assert (line["ssim_exact"], line["ssim_truth"]) == pytest.approx((0.8, 0.5))


def test_the_table_replaces_the_one_before():
    page = options.DOCS.read_text()
    once = options.with_table(page, "options", "| new |")
    assert options.with_table(once, "options", "| new |") == once
    assert "| new |" in once
    assert once.startswith(page[: page.index("<!-- options: begin -->")])
    with pytest.raises(ValueError, match="the page lacks <!-- options: begin -->"):
        options.with_table("no marks", "options", "| new |")


def test_the_section_says_what_was_measured():
    run = options.Outcome(2.0, 1.0, (99.0, 1.0), (20.0, 0.5))
    told = {"bundle": "tiny", "build": "0123456789abcdef", "clips": 1, "frames": 24}
    settings = Settings(steps=10, guidance=1.2, segment=8, overlap=3).to_dict()
    text = options.section([options.summary("exact", [run], [run])], {**told, "settings": settings})
    assert "exact in 10 steps, guidance 1.2 to 1.2, segment 8, overlap 3" in text
    assert text.splitlines()[-1] == "| exact | 1.00 | 1.00 | 99.0 | 1.000 | 20.00 | 0.5000 |"


def test_variants_run_on_the_same_clips(animator):
    """A clip of three frames in two steps, then one more; the exact run agrees with itself, the other nearly."""
    exact = animator.settings(size=(64, 128), rescale=False, steps=2)
    variants = {"exact": {}, "guidance in (5, 800]": {"guidance_interval": (5.0, 800.0)}}
    animations = options.measure(animator, exact, variants, [0, 1], frames=3)
    (first,), (other,) = next(animations).values()
    assert first.exact == (99.0, pytest.approx(1.0))
    assert 10 < other.exact[0] < 99
    assert first.truth[0] > 0
    assert 0 < other.denoise < other.seconds
    assert [len(runs) for runs in next(animations).values()] == [2, 2]


def test_the_usual_clips_tell_the_layouts_apart():
    """24 frames and the reference, in tiny's segments."""
    reference, compact, shifted = (cut_segments(25, 8, 3, name) for name in get_args(Layout))
    assert reference.tolist() != compact.tolist()
    assert compact.size <= reference.size
    assert shifted.size < reference.size


@pytest.mark.slow
def test_the_shipped_model_is_built_with_what_reuse_interval_needs(tmp_path):
    built = load_bundle(str(options.build_deep("tiny", MODEL, tmp_path / "bundle"))).manifest
    shipped = load_bundle("tiny").manifest
    assert built.reuses
    assert (built.sizes, built.rows, built.defaults) == (shipped.sizes, shipped.rows, shipped.defaults)


@pytest.mark.slow
def test_the_command_measures_reuse_and_guidance(capsys):
    """Three frames in four guided steps; nothing is saved."""
    options.main(
        clips=1, frames=3, setting=["steps=4", "guidance=[1.2,1.2]"], deep_cache=MODEL, as_json=True,
        few=None, interval=(0.3, 20.0),
    )  # fmt: skip
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"reuse_interval 2", "guidance in (0.3, 20]", "2 steps, karras"} <= set(told["variants"])
    assert [line["psnr_exact"] for line in told["options"] if line["option"] == "exact"] == [99.0]
