"""The tables say what the rows of the numpy program say."""

from __future__ import annotations

import numpy as np
import pytest

from mimicmotion_trt.cuda import launches
from mimicmotion_trt.cuda.launches import make_tables, step_numbers
from mimicmotion_trt.denoise.plan import Batching, StepVariant, guidance_ramp, make_variant
from mimicmotion_trt.denoise.schedule import euler_steps, karras_sigmas
from mimicmotion_trt.denoise.segments import cut_segments, fusion_weights

TWO = np.array([[0, 1, 2], [0, 2, 3]])
WEIGHTS = np.array([[0.5, 1, 0.25], [0.5, 0.75, 1]], np.float32)


def guided(segments, weights) -> StepVariant:
    """A variant with both branches."""
    return make_variant(segments, weights, np.full(segments.max() + 1, 2, np.float32), Batching((1,)))


@pytest.mark.parametrize("guidance", [(2.0, 2.0), (1.0, 1.0), (0.0, 0.0), (1.0, 3.0)])
@pytest.mark.parametrize("frames", [1, 5, 29])
def test_tables_hold_the_plans_rows(guidance, frames):
    segments = cut_segments(frames, 8, 3)
    variant = make_variant(
        segments, fusion_weights(segments), guidance_ramp(guidance, frames), Batching((1,))
    )
    tables = make_tables(variant)
    assert [row.conditional for row in variant.rows] == tables.conditional.tolist()
    np.testing.assert_array_equal([row.frames for row in variant.rows], tables.frames)


def test_covers_list_each_frames_rows_in_order():
    tables = make_tables(guided(TWO, WEIGHTS))
    assert tables.first.tolist() == [0, 4, 6, 10, 12]
    assert tables.covers[tables.first[2] :][:4].tolist() == [  # row * 3 + index, conditional, weight
        (0 * 3 + 2, 1, 0.25),
        (1 * 3 + 2, 0, 0.25),
        (2 * 3 + 1, 1, 0.75),
        (3 * 3 + 1, 0, 0.75),
    ]


@pytest.mark.parametrize("fusion", ["triangular", "linear"])
def test_the_weights_of_a_frame_sum_to_one_a_branch(fusion):
    segments = cut_segments(200, 72, 6)
    tables = make_tables(guided(segments, fusion_weights(segments, fusion)))
    for branch in (0, 1):
        weights = np.where(tables.covers["conditional"] == branch, tables.covers["weight"], 0)
        np.testing.assert_allclose(np.add.reduceat(weights, tables.first[:-1]), 1, rtol=1e-6)


def test_padding_rows_hold_no_frame():
    plain, padded = make_tables(guided(TWO, WEIGHTS)), make_tables(guided(TWO, WEIGHTS), rows=6)
    assert (len(plain.frames), len(padded.frames)) == (4, 6)
    assert padded.conditional.tolist() == [1, 0, 1, 0, 0, 0]
    np.testing.assert_array_equal(padded.covers, plain.covers)
    with pytest.raises(ValueError, match="4 rows do not fit into 3"):
        make_tables(guided(TWO, WEIGHTS), rows=3)


def test_rows_take_their_pose_where_they_are_conditional_and_their_jobs_step_has_one():
    variant = guided(TWO, WEIGHTS)
    assert make_tables(variant).posed.tolist() == [1, 0, 1, 0]
    assert make_tables(variant, posed=()).posed.tolist() == [0] * 4
    some = make_tables(variant, (0, 2), 3, posed=(2,), rows=9)
    assert some.posed.tolist() == [0] * 4 + [1, 0, 1, 0] + [0]
    assert some.conditional.tolist() == [1, 0] * 4 + [0]


def test_a_step_is_one_row_of_sixteen_bytes():
    steps = euler_steps(karras_sigmas(3, 0.002, 700.0))
    numbers = step_numbers(steps)
    assert numbers[1].nbytes == 16
    assert numbers[1].tolist() == pytest.approx(
        [getattr(steps[1], n) for n in ("timestep", "scale", "keep", "push")]
    )


def test_sizes_that_are_no_multiple_of_the_pack_take_the_narrow_kernel():
    wide, narrow = (launches.to_pictures(8, pixels, np.float16) for pixels in (576 * 1024, 9 * 9))
    assert (wide.kernel, wide.blocks) == ("to_pictures", 8 * 576 * 1024 // 8 // 256)
    assert (narrow.kernel, narrow.blocks) == ("to_pictures_narrow", 8)


def test_tables_of_several_jobs_are_each_ones_own_moved():
    one, both = make_tables(guided(TWO, WEIGHTS)), make_tables(guided(TWO, WEIGHTS), (0, 2), 3)
    assert both.jobs.tolist() == [0] * 4 + [2] * 4
    np.testing.assert_array_equal(both.frames, np.concatenate([one.frames, one.frames + 8]))
    np.testing.assert_array_equal(both.conditional, np.tile(one.conditional, 2))
    assert both.first.tolist() == [0, 4, 6, 10, 12, 12, 12, 12, 12, 16, 18, 22, 24]
    moved = both.covers[12:]
    np.testing.assert_array_equal(moved["prediction"], one.covers["prediction"] + 4 * 3)
    np.testing.assert_array_equal(moved["weight"], one.covers["weight"])
