"""The steps of an animation by hand, as docs/guide/embedding.md shows them, and what pose pictures they take."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mimicmotion_trt as mm
from mimicmotion_trt.media.reader import VideoReader
from mimicmotion_trt.pose.draw import LINE_WIDTH, drawn_width

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "embedding.md"


@pytest.fixture(scope="module")
def tiny():
    with mm.Animator.load("tiny", threads=2) as loaded:
        yield loaded


def test_the_guides_example_gives_the_frames_of_animate(tiny, person, clip_of, tmp_path, monkeypatch):
    section = GUIDE.read_text().partition("## The steps by hand")[2]
    (tmp_path / "person.png").write_bytes(person.read_bytes())
    (tmp_path / "dance.mp4").write_bytes(clip_of(8))
    monkeypatch.chdir(tmp_path)
    known: dict[str, Any] = {}
    exec(re.search(r"```python\n(.*?)```", section, re.DOTALL)[1], known)
    result = tiny.animate("person.png", "dance.mp4", tiny.settings(seed=42)).result()
    np.testing.assert_array_equal(known["frames"], result.frames())


def test_a_result_says_what_the_bundle_is_for(tiny, person, dance):
    job = tiny.animate(person, dance[:1], tiny.settings(steps=1))
    assert "drawn people" in job.result().note


def test_poses_are_drawn_in_the_size_and_on_the_canvas_of_the_model(tiny, dance):
    drawn = tiny.draw_poses(dance[:1], dance[1:3])
    width, height = tiny.draw_poses(dance[:1]).shape[2], tiny.draw_poses(dance[:1]).shape[1]
    np.testing.assert_array_equal(drawn, mm.draw_poses(dance[:3], height, width, canvas=256))
    assert tiny.draw_poses(dance[:1], settings=tiny.settings(size=(64, 128))).shape == (1, 128, 64, 3)
    with pytest.raises(mm.MotionError, match="no poses"):
        tiny.draw_poses()


def test_poses_are_estimated_with_the_settings_stride_and_length(tiny, clip_of):
    found = tiny.estimate_poses(clip_of(8), tiny.settings(stride=2, frames=3))
    assert (len(found), found.fps) == (3, 15)
    frames = np.stack([frame for _, frame in VideoReader(clip_of(8)).frames()])
    assert tiny.estimate_poses(frames, tiny.settings(stride=2, frames=3)) == found
    part = tiny.estimate_poses(frames, tiny.settings(start=0.1, fps=60))
    assert (len(part), part.fps) == (5, 30)  # what lies between them is interpolated when they are drawn
    with pytest.raises(mm.MotionError, match="no video"):
        tiny.estimate_poses(found.to_bytes())


@pytest.mark.parametrize(("canvas", "warned"), [(256, False), (128, False), (512, True), (2160, True)])
def test_lines_far_thinner_than_the_models_are_warned_of(tiny, person, dance, canvas, warned):
    pictures = mm.draw_poses(dance[:2], 192, 128, canvas)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tiny.sample(person, pictures, tiny.settings(steps=1))
    assert bool(caught) == warned
    if caught:
        assert caught[0].filename == __file__
        assert "canvas=256" in str(caught[0].message)


@pytest.mark.parametrize(
    ("height", "width", "canvas"), [(192, 128, 256), (576, 1024, 1024), (1024, 576, 2160)]
)
def test_the_width_of_lines_is_found_in_the_picture(dance, height, width, canvas):
    wanted = LINE_WIDTH * min(height, width) / canvas
    assert drawn_width(mm.draw_poses(dance[:1], height, width, canvas)[0]) == pytest.approx(wanted, rel=0.2)


def test_a_black_picture_has_no_lines():
    assert drawn_width(np.zeros((64, 64, 3), np.uint8)) == 0
