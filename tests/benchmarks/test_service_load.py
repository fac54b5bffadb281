"""The storm's judgement, on storms that need not rage."""

from __future__ import annotations

import pytest
from service_load import Job, Storm, first_in_first_out, judge

ALONE = {"short": 1.0, "middle": 2.0, "long": 60.0}


def storm(memory: list[float], **faults: int) -> Storm:
    """A long job, and then ten short ones that were served before it."""
    jobs = [Job("long", 0.0, 0.1, 80.0, "l")]
    jobs += [Job("short", i, i + 0.1, i + 2.1, "s") for i in range(10)]
    found = Storm(jobs=jobs, memory=memory)
    found.faults.update(faults)
    return found


def test_first_in_first_out_has_short_jobs_wait_for_the_long_one():
    assert first_in_first_out(storm([]).jobs, ALONE) == pytest.approx([61.0] * 10)


@pytest.mark.parametrize(
    ("found", "finished", "leak", "broken"),
    [
        (storm([100.0] * 40), ["a", "b", ""], False, []),
        (storm([100.0] * 40, EngineLost=1), ["a", "b", ""], False, ["none lost"]),
        (storm([100.0] * 40), ["a", "b", "a"], False, ["none twice"]),
        (storm([100.0 + i for i in range(40)]), ["a", "b", ""], False, ["memory is flat"]),
        (storm([100.0 + i for i in range(40)]), ["a", "b", ""], True, []),
        (storm([100.0] * 40), ["a", "b", ""], True, ["memory is flat"]),
    ],
)
def test_what_does_not_hold_is_named(found, finished, leak, broken):
    assert judge(found, finished, ALONE, leak=leak)["broken"] == broken
