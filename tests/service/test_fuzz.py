"""Mutated files, uploads and wire messages: a sample in every run, all of them on demand (see fuzz.py)."""

from __future__ import annotations

import pytest

from .fuzz import fuzz_files, fuzz_messages


@pytest.mark.parametrize(
    "count", [200, pytest.param(50_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
@pytest.mark.parametrize("fuzz", [fuzz_files, fuzz_messages])
def test_whatever_is_sent_ends_as_the_callers_error_or_well(fuzz, count):
    outcomes, findings = fuzz(range(count))
    assert findings == []
    assert outcomes.total() == count
    assert len(outcomes) >= 3, "not all in one way"
