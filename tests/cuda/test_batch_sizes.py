"""Batches of rows are chosen by timing each once; what was found is kept on disk, so that a job's bytes stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimicmotion_trt import EngineError, SettingsError
from mimicmotion_trt.cuda.batch_sizes import PAYS, BatchSizes, worthwhile
from mimicmotion_trt.engines import Bundle, Engine, Placement, open_engine
from mimicmotion_trt.errors import DeviceLost, OutOfMemory


@pytest.fixture(scope="module")
def unet(bundle) -> Iterator[Engine]:
    engine = open_engine(Bundle.load(bundle), "unet", Placement(threads=1))
    yield engine
    engine.close()


def clock(*seconds: float) -> Callable[[], float]:
    """Calls of a batch seem to take so long, three calls for each batch."""
    ticks = chain.from_iterable((0.0, took) for took in seconds for _ in range(3))
    times = accumulate(ticks)
    return lambda: next(times)


def test_a_larger_batch_has_to_pay():
    assert worthwhile({1: 1.0, 2: 1.9, 4: 3.8, 8: 4.0}) == (1, 8)
    assert worthwhile({1: 1.0, 2: 1.8, 4: 3.5}) == (1, 2)
    assert worthwhile({2: 1.0}) == (2,)
    assert worthwhile({1: 1.0, 2: float("inf")}) == (1,)


@given(st.dictionaries(st.integers(1, 64), st.floats(1e-3, 10), min_size=1))
def test_what_is_kept_pays_over_the_kept_one_before(seconds):
    seconds = dict(sorted(seconds.items()))
    kept = worthwhile(seconds)
    assert kept[0] == min(seconds)
    for before, after in pairwise(kept):
        assert seconds[after] / after <= (1 - PAYS) * seconds[before] / before * (1 + 1e-12)


def test_each_batch_is_timed_once_with_the_real_engine(stand_in, unet, tmp_path):
    device = stand_in(None)
    sizes = BatchSizes(device, unet, "build", cache=tmp_path, clock=clock(1.0, 1.5, 2.9))
    assert sizes.choose((1, 2, 4), 3, (8, 8)) == (1, 2)
    assert device.told.count("engine") == 3 * (1 + 3)  # a first call, then three that count
    assert sizes.choose((1, 2, 4), 3, (8, 8)) == (1, 2)
    assert sizes.timed == 1


def test_the_next_start_takes_what_was_found(stand_in, unet, tmp_path):
    BatchSizes(stand_in(None), unet, "build", cache=tmp_path, clock=clock(1.0, 1.5)).choose((1, 2), 3, (8, 8))
    again = BatchSizes(stand_in(None), unet, "build", cache=tmp_path, clock=clock())
    assert again.choose((1, 2), 3, (8, 8)) == (1, 2)
    assert again.timed == 0
    other = BatchSizes(stand_in(None), unet, "other build", cache=tmp_path, clock=clock(1.0, 2.0))
    assert other.choose((1, 2), 3, (8, 8)) == (1,)


@pytest.mark.parametrize("damage", ["", "[", "3", "[]", "[2]", "[1, 3]"])
def test_a_damaged_record_is_made_again(stand_in, unet, tmp_path, damage):
    BatchSizes(stand_in(None), unet, "b", cache=tmp_path, clock=clock(1.0, 1.5)).choose((1, 2), 3, (8, 8))
    (record,) = (tmp_path / "batch-sizes").glob("*.json")
    record.write_text(damage)
    sizes = BatchSizes(stand_in(None), unet, "b", cache=tmp_path, clock=clock(1.0, 1.5))
    assert sizes.choose((1, 2), 3, (8, 8)) == (1, 2)
    assert sizes.timed == 1


def test_no_tensor_of_a_batch_has_more_elements_than_32_bits_count(stand_in, unet, tmp_path):
    """SVD's 320 channels at 1024x576: a row of 72 frames fits, two do not."""

    class Real:
        spec = type("Spec", (), {"inputs": (type("Pose", (), {"name": "pose", "shape": (1, 1, 320, 1, 1)}),)})

    engine: Any = Real
    sizes = BatchSizes(stand_in(None), engine, "b", cache=tmp_path)
    assert sizes.choose((1, 2, 4), 72, (72, 128)) == (1,)
    for rows, slots, remedy in [((2, 4), 72, "--batch 1"), ((1, 2), 100, "shorter segment")]:
        with pytest.raises(SettingsError, match=r"2\*\*31") as caught:
            sizes.choose(rows, slots, (72, 128))
        assert remedy in caught.value.remedy


class Full:
    """Batches larger than `room` rows fail."""

    room, error = 1, EngineError("")

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        if shape[0] > self.room:
            raise self.error
        return super().empty(shape, dtype)  # type: ignore[misc]


def test_a_batch_without_room_is_left_out_until_the_next_start(stand_in, unet, tmp_path: Path):
    device = type("Device", (Full, stand_in), {})(None)
    device.error = OutOfMemory("100 MB of the GPU's memory cannot be had.")
    sizes = BatchSizes(device, unet, "b", cache=tmp_path, clock=clock(1.0))
    for _ in range(2):  # jobs of one process are alike
        assert sizes.choose((1, 2), 3, (8, 8)) == (1,)
    assert sizes.timed == 1
    device.room = 2
    again = BatchSizes(device, unet, "b", cache=tmp_path, clock=clock(1.0, 1.5))
    assert again.choose((1, 2), 3, (8, 8)) == (1, 2)


@pytest.mark.parametrize(
    ("error", "room"),
    [
        (EngineError("the engine failed.", remedy="Use fewer pixels if memory ran out."), 1),
        (DeviceLost("an illegal memory access was encountered."), 1),
        (OutOfMemory("1 MB of the GPU's memory cannot be had."), 0),  # not even for the smallest
    ],
)
def test_what_is_no_lack_of_room_for_a_larger_batch_is_told(stand_in, unet, tmp_path, error, room):
    device = type("Device", (Full, stand_in), {})(None)
    device.error, device.room = error, room
    with pytest.raises(type(error)) as caught:
        BatchSizes(device, unet, "b", cache=tmp_path, clock=clock(1.0)).choose((1, 2), 3, (8, 8))
    assert caught.value is error
    assert not (tmp_path / "batch-sizes").exists()
