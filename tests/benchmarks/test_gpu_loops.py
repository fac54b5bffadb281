"""The loops of gpu_check on small networks: the plain one, and ours on the stand-in for CUDA and on the CPU."""

from __future__ import annotations

import importlib
from dataclasses import replace
from functools import partial
from typing import Any

import pytest


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of the loops' parts; nothing is timed twice."""
    module = importlib.import_module("gpu_real")
    monkeypatch.setattr(module, "ALTERNATIONS", 1)
    monkeypatch.setattr(module, "seconds_of", partial(module.seconds_of, series=1))
    monkeypatch.setattr(module, "PLAIN_VIDEOS", {})
    return module


@pytest.fixture(scope="module")
def place() -> Any:
    """The module of the places."""
    return importlib.import_module("gpu_place")


def small(real: Any, place: Any, frames: int, **devices: Any) -> Any:
    """The parts on the CPU, and two steps instead of 25."""
    import torch

    scale = replace(importlib.import_module("gpu_networks").SMALL, timed=1)
    loops = real.RealLoops(place.Place(torch.device("cpu"), **devices), scale, frames)
    loops.exact = real.Settings(steps=2, guidance=(2.0, 2.0), segment=frames, overlap=2)
    loops.fast = real.Settings(
        steps=3, guidance=(2.0, 2.0), segment=frames, overlap=2, guidance_interval=(0.3, 20.0)
    )
    return loops


@pytest.mark.parametrize("host", ["float32"], indirect=True)
def test_every_optimisation_keeps_the_latents(host, stand_in, real, place):
    device = stand_in(host)
    parts = small(real, place, 3, device=device, decoding=device).parts()
    figures = {}
    for name in ("plain", "hoisted", "fold", "program", "graph", "rows-2"):
        for told in parts[name]():
            figures |= told
    errors = {name: value for name, value in figures.items() if name.endswith("_rel_l2")}
    assert set(errors) == {f"{n}_rel_l2" for n in ("plain", "hoisted", "fold", "program", "graph", "rows_2")}
    assert errors.pop("plain_rel_l2") == errors.pop("hoisted_rel_l2") == 0  # the same operations
    assert all(0 < error < 1e-5 for error in errors.values()), errors
    assert figures["graph_unet_ms"] > 0
    assert figures["graph_outside_unet"] < 1
    assert not any(name.endswith(("_idle", "_tflops", "_gib")) for name in figures)  # only a GPU has these


@pytest.mark.parametrize("host", ["float32"], indirect=True)
def test_whole_videos(host, stand_in, real, place):
    device = stand_in(host)
    parts = small(real, place, 3, device=device, decoding=device).parts()
    figures = {}
    for name in ("plain-video", "ours-video", "reuse-video"):
        for told in parts[name]():
            figures |= told
    assert set(figures) == {f"video_{name}_s" for name in ("plain", "ours", "overlapped", "options", "reuse")}
    assert "to_pictures" in device.told
    assert device.recorded > 0


@pytest.fixture
def watched(real, place, monkeypatch) -> list[str]:
    """What happens to memory, in order: `asked` how much is in use, which grows, or something is made or closed."""
    happened: list[str] = []

    def used_gib(self: Any) -> float:
        happened.append("asked")
        return float(happened.count("asked"))

    def noted(owner: Any, name: str, what: str) -> None:
        work = getattr(owner, name)

        def run(*given: Any, **named: Any) -> Any:
            happened.append(what)
            return work(*given, **named)

        monkeypatch.setattr(owner, name, run)

    monkeypatch.setattr(place.Place, "used_gib", used_gib)
    noted(real.RealLoops, "_plain_loop", "plain")
    noted(real.Ours, "close", "closed")
    return happened


def test_memory_is_asked_for_before_the_plain_loop_takes_some(real, place, watched):
    (told,) = small(real, place, 3).parts()["program"]()
    assert told["program_used_gib"] == 1
    assert watched == ["asked", "plain", "closed"]


def test_memory_of_videos_is_asked_for_while_they_are_made(real, place, watched):
    """After every chunk of both jobs, with the loop still there; the most counts."""
    parts = small(real, place, 9).parts()
    (told,) = parts["plain-video"]()
    assert told["video_plain_used_gib"] == 1
    assert watched == ["plain", "asked"]
    watched.clear()
    figures = {name: value for told in parts["ours-video"]() for name, value in told.items()}
    # Two chunks a job, in a run before and in the one that is timed.
    assert [figures[f"video_{name}_used_gib"] for name in ("ours", "overlapped", "options")] == [4, 12, 20]
    assert watched == [*["asked"] * 12, "closed", *["asked"] * 8, "closed"]


def test_a_process_times_the_plain_video_once(real, place, watched):
    first, second = (list(small(real, place, 3).parts()["plain-video"]()) for _ in range(2))
    assert first == second
    assert watched.count("plain") == 1
    assert list(small(real, place, 4).parts()["plain-video"]()) != first


@pytest.mark.parametrize("host", ["float32"], indirect=True)
def test_features_are_reused_alike_on_both_devices(host, stand_in, real, place):
    latents = []
    for devices in ({}, {"device": stand_in(host)}):
        loops = small(real, place, 3, **devices)
        whole, outer = (
            loops.engine(loops._networks.folded(form), name)
            for name, form in (
                ("unet_caching", real.KeepingUNetEngine),
                ("unet_shallow", real.OuterUNetEngine),
            )
        )
        loop = loops._loop(whole, replace(loops.fast, guidance_interval=None, reuse_interval=2), outer)
        loop.start(loops._features())
        for step in loop.steps:
            loop.step(step)
        latents.append(loop.latents())
        loop.close()
    assert [step.whole for step in loop.steps] == [True, False, True]
    assert real.relative_error(*latents) < 1e-5


def test_further_answers_go_where_they_are_bound(place):
    import torch

    kept = torch.zeros(2)
    run = place.first_of(lambda x: (x + 1, x + 2), [kept])
    assert run(torch.ones(2)).tolist() == [2, 2]
    assert kept.tolist() == [3, 3]


def test_on_the_cpu_the_denoiser_is_ours(real, place):
    (told,) = small(real, place, 3).parts()["program"]()
    assert 0 < told["program_rel_l2"] < 1e-5


def test_the_video_of_ours_is_the_plain_ones(real, place):
    """Both loops' pictures, to a level of 255."""
    loops_of = importlib.import_module("gpu_loops")
    loops = small(real, place, 3)
    plain, vae = loops._plain_loop(), loops._networks.vae()
    plain.start()
    for step in loops._steps[:2]:
        plain.step(step)
    expected = plain.decode(vae).astype(int)
    decoding = loops_of.Decoding(loops.place, loops._scale, loops._networks.decoder())
    found = decoding(plain.latents()).astype(int)
    assert found.shape == (3, 64, 128, 3)
    assert abs(found - expected).max() <= 1


def test_rows_that_32_bits_do_not_count_are_not_tried(real, place):
    networks = importlib.import_module("gpu_networks")
    import torch

    names = {
        frames: set(real.RealLoops(place.Place(torch.device("cpu")), networks.REAL, frames).parts())
        for frames in (16, 72)
    }
    assert names[16] - names[72] == {"rows-2"}
    assert {"plain-compiled", "ours-video"} <= names[72]
    assert "gaps" not in names[16] | names[72]  # the profiler has a stage of its own


def test_what_no_kernel_covers_is_idle(place):
    assert place.uncovered([(0, 4), (1, 3), (6, 8)]) == pytest.approx(0.25)
    assert place.uncovered([(5, 6), (6, 7)]) == 0
    assert place.uncovered([(3, 3)]) == 0


@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.parametrize("host", ["float32"], indirect=True)
def test_gaps_are_of_what_the_profiler_saw(host, stand_in, real, place, monkeypatch):
    """Of nothing here, which is told; and on a profiler that has seen something."""
    monkeypatch.delenv("TEARDOWN_CUPTI", raising=False)
    monkeypatch.setattr(place.os, "environ", dict(place.os.environ))
    loops = small(real, place, 3, device=stand_in(host))
    engine = loops.engine(loops._networks.folded())
    with pytest.raises(RuntimeError, match="saw no kernels"):
        list(loops.gaps(engine))
    worked: list[int] = []

    def seen(work: Any, wait: Any) -> float:
        worked.append(work() is None)
        return 0.25

    monkeypatch.setattr(real, "idle_share", seen)
    assert list(loops.gaps(engine)) == [{"gaps_idle": 0.25}]
    assert len(worked) == 2  # once before the capture


def test_times_are_medians_after_a_first_round(place, monkeypatch):
    ticks = iter([0, 200, 201, 300, 305, 400, 402])
    monkeypatch.setattr(place.time, "perf_counter", lambda: next(ticks))
    done: list[int] = []
    assert place.seconds_of(lambda: done.append(1), lambda: None) == 2
    assert len(done) == 4


def test_the_decoder_is_timed(real, place):
    import torch

    networks = importlib.import_module("gpu_networks")
    parts = real.decode_parts(place.Place(torch.device("cpu")), networks.SMALL, frames=2)
    ((told,),) = (list(part()) for part in parts.values())
    assert told["eager_s_a_frame"] > 0
    assert place.matmul_tflops(place.Place(torch.device("cpu")), side=16, times=2) > 0
