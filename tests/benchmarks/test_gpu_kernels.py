"""The kernels' benchmark on the kernels of g++: what is timed, and how."""

from __future__ import annotations

import math

import gpu_kernels
import numpy as np
import pytest
from gpu_kernels import CASES, Amount, parts_of, time_case

SMALL = Amount(frames=20, height=2, width=4, channels=8, pictures=1, repeats=3)


@pytest.mark.parametrize("host", ["float16"], indirect=True)
def test_a_kernel_is_timed_beside_a_copy_in_graphs_of_many_launches(host, stand_in):
    device = stand_in(host)
    for name, make in CASES.items():
        told = time_case(device, make(device, host.dtype, SMALL), SMALL.repeats)
        assert told["of_copy"] == pytest.approx(told["gb_s"] / told["copy_gb_s"])
        assert device.told.count(name) == 3 * 5  # once before the capture, then four replays
    assert device.recorded == 2 * len(CASES)


@pytest.mark.parametrize("host", ["float16"], indirect=True)
def test_every_kernel_has_a_row_for_both_dtypes_and_its_device_is_closed(host, stand_in):
    opened = []

    def open_device(dtype):
        opened.append(stand_in(host))
        return opened[-1]

    parts = parts_of(open_device, SMALL)
    assert [group for group, _, _ in parts] == ["float16"] * len(CASES) + ["float32"] * len(CASES)
    rows = [row for group, _, part in parts if group == "float16" for row, _ in part()]
    assert rows == list(CASES)
    assert all(device.told[-1] == "closed" for device in opened)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_is_timed_fits_into_no_cache(name, dtype):
    class Sizes:
        """Takes no memory, and knows what would have been taken."""

        def empty(self, shape, dtype):
            return math.prod(shape) * np.dtype(dtype).itemsize

        def upload(self, values, array):
            assert values.nbytes == array

    case = CASES[name](Sizes(), np.dtype(dtype), Amount())
    assert case.moved >= 250e6
    assert case.arrays[-1] <= case.moved <= 4 * sum(case.arrays)


def test_without_a_gpu_the_reason_is_told(monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(SystemExit):
        gpu_kernels.main()
    assert capsys.readouterr().err.startswith("error: ")
