"""What the doctor's tests share."""

from __future__ import annotations

import pytest

from mimicmotion_trt.bundles import SEARCH_VARIABLE
from mimicmotion_trt.doctor.machine import time_product


@pytest.fixture(autouse=True)
def nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor is measured in one test only, and bundles are looked for in the package only."""
    monkeypatch.setattr("mimicmotion_trt.doctor.report.time_engine", lambda *_: None)
    monkeypatch.setattr(
        "mimicmotion_trt.doctor.report.time_product", lambda: time_product(seconds=0, side=16)
    )
    monkeypatch.delenv(SEARCH_VARIABLE, raising=False)
