"""What gpu_check makes of figures: reports that are resumed, targets, the picture."""

from __future__ import annotations

import datetime
import importlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from mimicmotion_trt.errors import EngineError


@pytest.fixture(scope="module")
def check() -> Any:
    """The script as a module."""
    return importlib.import_module("gpu_check")


@pytest.fixture(scope="module")
def targets() -> Any:
    """The module of the targets."""
    return importlib.import_module("gpu_targets")


@pytest.fixture
def machine(check, tmp_path) -> Any:
    """One without a GPU."""
    return check.Machine(None, "cpu", "there is no GPU here", "", tmp_path)


def run(check: Any, report: Any, saved: list[str] | None = None, **more: Any) -> Any:
    def save() -> None:
        if saved is not None:
            saved.append(json.dumps(report))

    return check.Run(report, save, Console(file=io.StringIO()), more.pop("name", "one run"), **more)


def stage(check: Any, needs_gpu: bool = False, **parts: Callable[[], Iterator[Any]]) -> Any:
    return check.Stage("something", lambda machine: parts, needs_gpu)


def counted(done: list[str], name: str, *figures: dict[str, float], error: Exception | None = None) -> Any:
    def part() -> Iterator[dict[str, float]]:
        done.append(name)
        yield from figures
        if error is not None:
            raise error

    return part


def test_a_part_that_fails_costs_neither_its_figures_nor_the_others(check, machine):
    report: Any = {"stages": {}}
    done: list[str] = []
    parts = {
        "one": counted(done, "one", {"a_s": 1.0}, error=EngineError("no memory", remedy="Take less.")),
        "two": counted(done, "two", {"b_s": 2.0}),
    }
    run(check, report).stage("loop", stage(check, **parts), machine)
    found = report["stages"]["loop"]
    assert found["figures"] == {"a_s": 1.0, "b_s": 2.0}
    assert found["state"] == "failed"
    assert found["why"].startswith("one: no memory")
    parts["one"] = counted(done, "one again", {"a_s": 3.0})
    run(check, report).stage("loop", stage(check, **parts), machine)
    assert done == ["one", "two", "one again"]
    assert report["stages"]["loop"]["state"] == "done"
    assert report["stages"]["loop"]["figures"]["a_s"] == 3.0
    assert "why" not in report["stages"]["loop"]


def test_what_is_ended_from_outside_leaves_what_it_had(check, machine):
    report: Any = {"stages": {}}
    saved: list[str] = []
    interrupted = counted([], "", {"a_s": 1.0}, error=KeyboardInterrupt())  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        run(check, report, saved).stage("loop", stage(check, one=interrupted), machine)
    left = json.loads(saved[-1])["stages"]["loop"]
    assert left["figures"] == {"a_s": 1.0}
    assert left["parts"]["one"]["why"] == "it was interrupted"


def test_after_the_minutes_given_no_part_begins(check, machine):
    report: Any = {"stages": {}}
    clock = iter(range(0, 1000, 50))
    parts = {name: counted([], name, {f"{name}_s": 1.0}) for name in ("one", "two", "three")}
    run(check, report, minutes=2.0, clock=lambda: next(clock)).stage("loop", stage(check, **parts), machine)
    states = {name: part["state"] for name, part in report["stages"]["loop"]["parts"].items()}
    assert states == {"one": "done", "two": "left", "three": "left"}


def test_after_a_lost_gpu_no_part_begins(check, machine):
    report: Any = {"stages": {}}
    done: list[str] = []
    lost = RuntimeError("CUDA error: an illegal memory access was encountered")
    parts = {
        "one": counted(done, "one", error=RuntimeError("CUDA out of memory")),
        "two": counted(done, "two", error=lost),
        "three": counted(done, "three"),
    }
    running = run(check, report)
    running.stage("loop", stage(check, **parts), machine)
    running.stage("other", stage(check, four=counted(done, "four")), machine)
    assert done == ["one", "two"]
    assert report["stages"]["loop"]["parts"]["three"]["why"].startswith("the GPU was lost")
    assert report["stages"]["other"]["state"] == "failed"


def test_without_a_gpu_a_stage_is_owed(check, machine):
    report: Any = {"stages": {}}
    run(check, report).stage("loop", stage(check, needs_gpu=True), machine)
    assert report["stages"]["loop"] == {"state": "owed", "why": "there is no GPU here"}


def test_a_stage_that_cannot_be_laid_out_is_told(check, machine):
    def refused(machine: Any) -> Any:
        raise EngineError("there is nothing to run", remedy="Install it.")

    report: Any = {"stages": {}}
    run(check, report).stage("loop", check.Stage("something", refused, False), machine)
    assert report["stages"]["loop"]["why"].startswith("there is nothing to run")


def test_the_newest_report_of_the_same_machine_is_resumed(check, tmp_path):
    path, report = check.opened(tmp_path, "NVIDIA L4", resume=True)
    assert report["stages"] == {}
    for date, versions in (("2026-01-01", report["versions"]), ("2026-01-02", {}), ("2025-12-31", {})):
        old = report | {"versions": versions, "stages": {"decode": {"state": "done"}}, "targets": []}
        (tmp_path / f"gpu-check-nvidia-l4-{date}.json").write_text(json.dumps(old))
    found, resumed = check.opened(tmp_path, "NVIDIA L4", resume=True)
    assert found == tmp_path / "gpu-check-nvidia-l4-2026-01-01.json"  # the newer one is of other versions
    assert resumed["stages"] == {"decode": {"state": "done"}}
    assert check.opened(tmp_path, "NVIDIA L40", resume=True)[1]["stages"] == {}
    assert check.opened(tmp_path, "NVIDIA L4", resume=False) == (path, report)


@pytest.mark.parametrize(
    ("before", "device", "after"),
    [(None, 0, None), (None, 2, "2"), ("3,5", 1, "5"), ("3,5", 0, "3"), ("3", 4, ""), ("", 0, "")],
)
def test_other_gpus_are_hidden(check, before, device, after):
    variables = {} if before is None else {"CUDA_VISIBLE_DEVICES": before}
    check.show_only(device, variables)
    assert variables.get("CUDA_VISIBLE_DEVICES") == after


LOOP = {
    "matmul_tflops": 800.0, "plain_s": 30.0, "graph_s": 20.0, "compiled_s": 10.0, "graph_unet_tflops": 300.0,
    "compiled_unet_tflops": 400.0, "video_plain_s": 33.0,
    "video_ours_s": 12.0, "video_overlapped_s": 11.0, "video_options_s": 6.6,
}  # fmt: skip


def judged(targets: Any, **figures: Any) -> dict[tuple[str, str], Any]:
    """Of figures of one run, by stage: the figure and the verdict of each stage's or loop's target."""
    return told_of(
        targets,
        {
            name.replace("_", "-"): {"figures": values, "runs": {"a run": values}}
            for name, values in figures.items()
        },
    )


def told_of(targets: Any, stages: Any) -> dict[tuple[str, str], Any]:
    found = {}
    for one in targets.judged({"stages": stages}):
        of = one["what"].split()[5] if one["stage"] == "gaps" else one["stage"]
        found[of, one["target"]] = (one["figure"], targets.verdict(one))
    return found


def test_targets_are_told_with_their_figures(targets):
    others = {
        "gaps": {"loop-16_gaps_idle": 0.02, "tensorrt-real_gaps_idle": 0.001},
        "kernels": {"float16_blend_step_share_of_copy": 0.7},
    }
    found = judged(targets, loop_16=LOOP, **others)
    assert found["loop-16", ">= 2"] == (pytest.approx(3.0), "met")  # two jobs that overlap
    assert found["loop-16", ">= 5"] == (pytest.approx(5.0), "met")
    assert found["loop-16", ">= 0.45"] == (pytest.approx(0.5), "met")
    assert found["loop-16", "< 0.01"] == (0.02, "NOT MET")
    assert found["tensorrt-real", "< 0.01"] == (0.001, "met")
    assert found["kernels", ">= 0.8"] == (0.7, "NOT MET")
    assert {verdict for (stage, _), (_, verdict) in found.items() if stage == "loop-72"} == {"not measured"}


def test_the_plain_loops_figures_are_never_taken_for_ours(targets):
    """A plain loop that is faster than ours is a target that is not met."""
    slower = LOOP | {"video_plain_s": 5.0, "plain_s": 4.0}
    found = judged(targets, loop_16=slower)
    assert found["loop-16", ">= 2"] == (pytest.approx(5 / 11), "NOT MET")
    alone = judged(targets, loop_16={"plain_s": 4.0, "video_plain_s": 5.0})
    assert alone["loop-16", ">= 2"] == (None, "not measured")


def test_the_fastest_way_decides(targets):
    """A plan's video, against the plain loop's beside it."""
    plan = {"video_plain_s": 32.0, "video_ours_s": 9.0, "video_overlapped_s": 8.0, "video_options_s": 8.0}
    found = judged(targets, loop_16=LOOP, tensorrt_real=plan, tensorrt_real_72=plan)
    assert found["tensorrt-real", ">= 2"] == (pytest.approx(4.0), "met")
    assert ("loop-16", ">= 2") not in found
    assert found["loop-16", ">= 5"] == (pytest.approx(5.0), "met")
    assert found["tensorrt-real-72", ">= 2"] == (pytest.approx(4.0), "met")


def test_figures_of_several_runs_meet_nothing(targets):
    plain, ours = {"video_plain_s": 33.0}, {"video_ours_s": 11.0}
    loop = {"figures": plain | ours, "runs": {"first": plain, "second": ours}}
    assert told_of(targets, {"loop-16": loop})["loop-16", ">= 2"] == (pytest.approx(3.0), "across runs")
    loop["runs"]["second"] = {"video_plain_s": 16.5, **ours}
    assert told_of(targets, {"loop-16": loop})["loop-16", ">= 2"] == (pytest.approx(1.5), "NOT MET")
    (told,) = (t for t in targets.judged({"stages": {"loop-16": loop}}) if t["figure"])
    assert (told["run"], told["met"]) == ("second", False)
    loop["runs"]["first"] |= {"video_ours_s": 10.0}  # a run that has both is not lost by a later one
    assert told_of(targets, {"loop-16": loop})["loop-16", ">= 2"] == (pytest.approx(3.3), "met")
    assert told_of(targets, {"loop-16": {"figures": plain | ours}})["loop-16", ">= 2"][1] == "across runs"


def test_what_ours_is_held_against_is_measured_again_beside_it(check, targets, machine):
    report: Any = {"stages": {}}
    done: list[str] = []
    parts = {
        "matmul": counted(done, "matmul", {"matmul_tflops": 800.0}),
        "plain-video": counted(done, "plain-video", {"video_plain_s": 30.0}),
        "graph": counted(done, "graph", {"graph_s": 20.0}),
        "ours-video": counted(done, "ours-video", error=EngineError("no memory", remedy="Take less.")),
    }
    run(check, report, name="first").stage("loop-16", stage(check, **parts), machine)
    assert done == list(parts)
    done.clear()
    parts |= {
        "plain-video": counted(done, "plain-video", {"video_plain_s": 24.0}),
        "ours-video": counted(done, "ours-video", {"video_ours_s": 10.0}),
    }
    resumed = run(check, report, name="second")
    for _ in range(2):  # what is done in this run stays
        resumed.stage("loop-16", stage(check, **parts), machine)
        assert done == ["matmul", "plain-video", "ours-video"]
    found = report["stages"]["loop-16"]
    assert found["parts"]["graph"]["run"] == "first"
    assert found["runs"] == {
        "first": {"matmul_tflops": 800.0, "video_plain_s": 30.0, "graph_s": 20.0},
        "second": {"matmul_tflops": 800.0, "video_plain_s": 24.0, "video_ours_s": 10.0},
    }
    assert told_of(targets, report["stages"])["loop-16", ">= 2"] == (pytest.approx(2.4), "met")
    run(check, report, name="third").stage("loop-16", stage(check, **parts), machine)
    assert len(done) == 3  # nothing is left, so that nothing is measured again


def test_a_run_is_one_process_on_one_card(check, monkeypatch):
    began = datetime.datetime(2026, 1, 2, 3, 4, 5)
    core = SimpleNamespace(Device=lambda index: SimpleNamespace(uuid=f"uuid-{index}"))
    monkeypatch.setitem(sys.modules, "cuda.core", core)
    assert check.run_name(None, began) == f"cpu 2026-01-02T03:04:05 {os.getpid()}"
    assert check.run_name(SimpleNamespace(index=3), began) == f"uuid-3 2026-01-02T03:04:05 {os.getpid()}"


def test_nothing_is_timed_after_the_profiler(check):
    """Which stays in the process; whatever order the stages are asked for in."""
    assert check.in_order(["gaps", "kernels", "loop-16"]) == ["kernels", "loop-16", "gaps"]
    assert check.in_order(None) == list(check.STAGES)
    assert list(check.STAGES)[-1] == "gaps"


def test_the_picture_has_every_stage_by_itself(tmp_path):
    drawing = importlib.import_module("gpu_plot")
    report = {
        "machine": "NVIDIA L4",
        "stages": {
            "loop-16": {"figures": LOOP},
            "loop-72": {"figures": {"plain_s": 90.0}},
            "cubins": {"figures": {"sm_90_s": 1.0}},
        },
    }
    seconds, tflops = drawing.bars(report)
    assert (seconds["loop-16"]["plain"], seconds["loop-72"]["plain"]) == (30.0, 90.0)
    assert tflops == {"loop-16": {"graph": 300.0, "compiled": 400.0}}
    assert set(seconds) == {"loop-16", "loop-72"}
    drawing.plot(report, tmp_path / "results" / "plot.png")
    assert (tmp_path / "results" / "plot.png").stat().st_size > 5000
    drawing.plot({"machine": "cpu", "stages": {}}, tmp_path / "none.png")
    assert not Path(tmp_path / "none.png").exists()
