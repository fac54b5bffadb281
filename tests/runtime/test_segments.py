"""How a clip is cut into segments, and what each counts where they overlap."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimicmotion_trt.denoise.segments import cut_segments, fusion_weights


@st.composite
def clips(draw: st.DrawFn) -> tuple[int, int, int]:
    """(frames, segment, overlap)"""
    segment = draw(st.integers(2, 40))
    return draw(st.integers(1, 200)), segment, draw(st.integers(1, segment - 1))


layouts = st.sampled_from(["reference", "compact"])
fusions = st.sampled_from(["triangular", "linear"])


def literal(frames: int, segment: int, overlap: int) -> list[list[int]]:
    """The reference's formula, word for word; only a clip shorter than a segment is ours."""
    if frames < segment:
        return [list(range(frames))]
    plan = []
    for i in range(0, frames - segment + 1, segment - overlap):
        plan.append([0, *range(i + 1, i + segment)])
    if plan[-1][-1] < frames - 1:
        plan.append([0, *range(frames - segment + 1, frames)])
    return plan


@given(clips())
def test_the_reference_layout_is_the_references_formula(clip):
    np.testing.assert_array_equal(cut_segments(*clip, "reference"), literal(*clip))


@given(clips(), layouts)
def test_what_every_layout_keeps(clip, layout):
    frames, segment, overlap = clip
    plan = cut_segments(frames, segment, overlap, layout)
    assert set(plan.ravel()) == set(range(frames))
    assert (plan[:, 0] == 0).all()
    assert plan.shape[1] <= segment
    assert (np.diff(plan[:, 1:]) == 1).all()  # each is one window of neighbouring frames
    for before, after in itertools.pairwise(plan):
        assert len(set(before[1:]) & set(after[1:])) >= overlap - 1
        assert before[-1] < after[-1]


@given(clips())
def test_compact_computes_no_more_than_the_reference(clip):
    assert cut_segments(*clip, "compact").size <= cut_segments(*clip, "reference").size


def test_compact_saves_what_the_references_last_window_repeats():
    assert cut_segments(19, 16, 3, "reference").tolist() == [list(range(16)), [0, *range(4, 19)]]
    assert cut_segments(19, 16, 3, "compact").tolist() == [list(range(11)), [0, *range(9, 19)]]


@pytest.mark.parametrize("layout", ["reference", "compact", "shifted"])
@pytest.mark.parametrize("frames", [1, 2, 7, 8])
def test_a_clip_no_longer_than_a_segment_is_one(frames, layout):
    assert cut_segments(frames, 8, 3, layout).tolist() == [list(range(frames))]


@given(clips(), layouts, fusions)
def test_weights_sum_to_one_for_every_frame(clip, layout, fusion):
    plan = cut_segments(*clip, layout)
    weights = fusion_weights(plan, fusion)
    assert weights.dtype == np.float32
    assert weights.shape == plan.shape
    assert (weights > 0).all()
    total = np.bincount(plan.ravel(), weights.ravel().astype(np.float64))
    np.testing.assert_allclose(total, 1, atol=1e-6)


shifts = st.floats(0, 1, exclude_max=True)


@given(clips(), shifts, fusions)
def test_what_the_shifted_layout_keeps(clip, shift, fusion):
    """Every frame is covered, windows are whole, only the first and the last may overlap their neighbour."""
    frames, segment, _ = clip
    plan = cut_segments(*clip, "shifted", shift)
    assert set(plan.ravel()) == set(range(frames))
    assert (plan[:, 0] == 0).all()
    assert plan.shape[1] == min(frames, segment)
    assert (np.diff(plan[:, 1:]) == 1).all()
    assert (np.diff(plan[:, -1]) > 0).all()
    assert set(np.bincount(plan[1:-1, 1:].ravel())) <= {0, 1}
    assert plan.size <= cut_segments(*clip, "reference").size
    total = np.bincount(plan.ravel(), fusion_weights(plan, fusion).ravel().astype(np.float64))
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_shifted_segments_by_hand():
    """Eleven driven frames in windows of four: the grid begins at frame 1, or up to three frames before it."""
    first, middle, last = ([1, 2, 3, 4], [4, 5, 6, 7], [8, 9, 10, 11])
    plans = {shift: cut_segments(12, 5, 3, "shifted", shift) for shift in (0.0, 0.4, 0.9)}
    assert plans[0.0][:, 1:].tolist() == [first, [5, 6, 7, 8], last]
    assert plans[0.4][:, 1:].tolist() == [first, middle, last]
    assert plans[0.9][:, 1:].tolist() == [first, [3, 4, 5, 6], [7, 8, 9, 10], last]


def test_shifted_computes_fewer_frames_than_overlapping_segments():
    """72 frames of video in segments of 16 that overlap by 6: seven of them, or five and six without."""
    assert len(cut_segments(73, 16, 6)) == 7
    assert {len(cut_segments(73, 16, 6, "shifted", k * 0.618 % 1)) for k in range(25)} == {5, 6}


def test_triangular_weights_by_hand():
    """Two segments of four: slots weigh 1/4 3/4 3/4 1/4; frame 0 stands in both, frame 3 last and first."""
    plan = np.array([[0, 1, 2, 3], [0, 3, 4, 5]])
    expected = [[1 / 2, 1, 1, (1 / 4) / (1 / 4 + 3 / 4)], [1 / 2, 3 / 4, 1, 1]]
    np.testing.assert_allclose(fusion_weights(plan, "triangular"), expected, rtol=1e-6)


def test_triangular_weights_of_an_odd_segment():
    """u = 2(k+0.5)/5 is 0.2 0.6 1.0 1.4 1.8; the weight min(u, 2-u)."""
    plan = np.array([[0, 1, 2, 3, 4], [0, 3, 4, 5, 6]])
    expected = [
        [1 / 2, 1, 1, 0.6 / (0.6 + 0.6), 0.2 / (0.2 + 1.0)],
        [1 / 2, 0.6 / (0.6 + 0.6), 1.0 / (1.0 + 0.2), 1, 1],
    ]
    np.testing.assert_allclose(fusion_weights(plan, "triangular"), expected, rtol=1e-6)


def test_linear_weights_by_hand():
    """Three driven frames are shared: the later segment's weight grows by 1/(3+1) a frame."""
    plan = np.array([[0, 1, 2, 3, 4, 5], [0, 3, 4, 5, 6, 7]])
    expected = [[1 / 2, 1, 1, 3 / 4, 2 / 4, 1 / 4], [1 / 2, 1 / 4, 2 / 4, 3 / 4, 1, 1]]
    np.testing.assert_allclose(fusion_weights(plan, "linear"), expected, rtol=1e-6)


def test_linear_weights_where_nothing_but_the_first_frame_is_shared():
    plan = cut_segments(7, 4, 1)
    assert plan.tolist() == [[0, 1, 2, 3], [0, 4, 5, 6]]
    assert fusion_weights(plan, "linear").tolist() == [[0.5, 1, 1, 1], [0.5, 1, 1, 1]]
