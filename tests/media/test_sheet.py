"""Contact sheets show rows of evenly picked frames."""

import numpy as np
import pytest

from mimicmotion_trt.media.sheet import contact_sheet


def plain(value, height=64, width=36):
    return np.full((height, width, 3), value, np.uint8)


def shown(sheet):
    """Greys of the tiles along the lowest row of the sheet."""
    return sorted({int(p[0]) for p in sheet[-20] if p[0] == p[1] == p[2]})


def test_rows_hold_evenly_picked_frames():
    sheet = contact_sheet(
        [("reference", [plain(255)]), ("frames", [plain(100 + k) for k in range(25)])],
        columns=4,
        tile_height=80,
    )
    assert sheet.dtype == np.uint8
    assert shown(sheet) == [100, 108, 116, 124]
    assert (sheet == 255).all(axis=2).sum() == 80 * 45


@pytest.mark.parametrize(("count", "most"), [(1, 8), (8, 8), (100, 8), (9, 2)])
def test_first_and_last_frame_are_shown(count, most):
    picked = shown(
        contact_sheet([("frames", [plain(100 + k) for k in range(count)])], columns=most, tile_height=80)
    )
    assert (picked[0], picked[-1], len(picked)) == (100, 99 + count, min(count, most))


def test_odd_contents_do_not_crash():
    assert contact_sheet([]).ndim == 3
    assert contact_sheet([("nothing", [])]).ndim == 3
    assert (
        contact_sheet([("ünïcode and a very long label indeed", [plain(9, 7, 300), plain(9, 300, 7)])]).ndim
        == 3
    )
    assert contact_sheet([("one", [plain(1), plain(2), plain(3)])], columns=1).ndim == 3
    with pytest.raises(ValueError, match="columns"):
        contact_sheet([], columns=0)
