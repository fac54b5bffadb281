"""How long jobs take: what is learned from finished ones, and what is predicted for others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimicmotion_trt.denoise.segments import cut_segments
from mimicmotion_trt.events import STAGES, Done, Progress
from mimicmotion_trt.service.rates import Rates, count_segments
from mimicmotion_trt.settings import Settings


def done(frames: int = 10, seconds: float = 1.0) -> Done:
    shares = dict.fromkeys((*STAGES, "write"), seconds / 5)
    return Done(frames, 12.0, (64, 64), 10, "", shares)


@pytest.mark.parametrize("layout", ["reference", "compact"])
def test_segments_are_counted_as_they_are_planned(layout):
    for segment, overlap in ((2, 1), (8, 3), (16, 6), (72, 71)):
        settings = Settings(segment=segment, overlap=overlap, layout=layout)
        for frames in range(1, 200):
            planned = cut_segments(frames + 1, segment, overlap, layout)
            assert count_segments(settings, frames) == len(planned), (segment, overlap, frames)
    assert count_segments(Settings(), 10) is None


@given(st.integers(2, 30), st.data(), st.integers(1, 200), st.floats(0, 1, exclude_max=True))
def test_shifted_segments_are_counted_as_they_are_planned(segment, data, frames, shift):
    settings = Settings(segment=segment, overlap=data.draw(st.integers(1, segment - 1)), layout="shifted")
    planned = cut_segments(frames + 1, segment, settings.overlap, "shifted", shift)
    assert count_segments(settings, frames, shift) == len(planned)


def test_predictions_scale_with_the_work():
    rates, settings = Rates(), Settings(steps=10, segment=11, overlap=1)
    assert rates.predict(settings, 10) is None
    rates.learn(settings, done(frames=10, seconds=5.0))
    assert rates.predict(settings, 10) == pytest.approx(5.0)
    assert rates.predict(settings) == pytest.approx(5.0), "as many frames as before"
    assert rates.predict(Settings(steps=20, segment=11, overlap=1), 10) == pytest.approx(6.0)
    assert rates.predict(settings, 20) == pytest.approx(10.0)
    assert rates.predict(Settings(steps=10, segment=11, overlap=1, guidance=(1, 1)), 10) == pytest.approx(4.5)
    never = Settings(steps=10, segment=11, overlap=1, guidance_interval=(5000, 9000))
    assert rates.predict(never, 10) == pytest.approx(4.5)
    rates.learn(settings, done(frames=10, seconds=15.0))
    assert rates.predict(settings, 10) == pytest.approx(8.0), "the newest counts 0.3"


def test_what_is_left_of_a_job_follows_from_its_newest_report():
    rates, settings = Rates(), Settings(steps=10, segment=11, overlap=1)
    rates.learn(settings, done(frames=10, seconds=5.0))
    left = lambda stage, step, steps: rates.remaining(settings, 10, Progress(stage, step, steps))  # noqa: E731
    assert rates.remaining(settings, 10, None) == pytest.approx(5.0)
    assert left("pose", 5, 10) == pytest.approx(4.5)
    assert left("denoise", 5, 10) == pytest.approx(2.5)
    assert left("decode", 5, 10) == pytest.approx(1.0)


def test_the_frames_of_a_motion_are_told_from_its_bytes():
    rates, whole, cut = Rates(), Settings(stride=2), Settings(frames=5)
    rates.learn(whole, done(frames=10), "video", 2000)
    rates.learn(cut, done(frames=5), "video", 10**9)
    assert rates.frames(whole, "video", 4000) == 20
    assert rates.frames(Settings(), "video", 4000) == 40
    assert rates.frames(cut, "video", 4000) == 5
    assert rates.frames(Settings(), "keypoints", 4000) == round(10 - 0.3 * 5), "as many as videos had so far"


def test_rates_outlive_the_server_and_belong_to_one_bundle(tmp_path):
    rates, settings, path = Rates(), Settings(steps=10, segment=11, overlap=1), tmp_path / "rates.json"
    rates.learn(settings, done(frames=10, seconds=5.0), "video", 1000)
    rates.save(path, "tiny")
    again, other = Rates(), Rates()
    again.load(path, "tiny")
    other.load(path, "large")
    assert (again.jobs, again.predict(settings)) == (1, rates.predict(settings))
    assert again.frames(settings, "video", 3000) == 30
    assert other.predict(settings) is None
    for damaged in (b"", b"{}", b"[1]", b"\xff", path.read_bytes()[:-9]):
        path.write_bytes(damaged)
        unknown = Rates()
        unknown.load(path, "tiny")
        assert unknown.jobs == 0
