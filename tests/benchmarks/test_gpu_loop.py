"""The GPU's loop benchmark on the CPU, with small networks: what it measures, in which order, and what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gpu_loop
import numpy as np
import pytest
import torch
import typer
from gpu_loop import SHAPES, Loops, Shape, idle_between, parts_of
from torch_model import TorchLoop, random_model, write_bundle

from mimicmotion_trt import Animator
from mimicmotion_trt.training.checkpoints import image_statistics


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """The folder of the bundle."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def loops(configs, work):
    """Of three frames in two of 25 steps, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # networks so small that threads only wait for each other
    yield Loops(Shape(configs, (64, 64), 3, timed=2), work)
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_ours_is_the_plain_loop_and_every_figure_is_there(loops):
    rows = {}
    for part in (loops.plain, loops.ours):
        for row, figures in part():
            rows.setdefault(row, {}).update(figures)
    assert list(rows) == ["plain", "ours", "10 steps"]  # two jobs: only where all steps are timed
    assert rows["ours"]["rel_l2"] < 1e-4
    for row in ("ours", "10 steps"):
        assert rows[row]["faster"] == pytest.approx(rows["plain"]["video_s"] / rows[row]["video_s"])
    for row in ("plain", "ours"):
        parts = rows[row]["encode_s"] + 25 * rows[row]["step_s"] + rows[row]["decode_s"]
        assert rows[row]["video_s"] == pytest.approx(parts)
    assert rows["ours"]["of_matmul"] == pytest.approx(rows["ours"]["tflops"] / rows["ours"]["matmul_tflops"])


def test_both_loops_decode_alike(loops, configs, work):
    model = random_model(configs)
    plain = TorchLoop(model, image_statistics(model.feature_extractor, model.image_encoder))
    latents = np.random.default_rng(0).normal(size=(3, 4, 8, 8)).astype(np.float32)
    folder = write_bundle(work / "configs", configs, "cpu", half=False, size=(64, 64), segment=3)
    with Animator.load(folder, threads=1) as animator:
        difference = animator.decode(latents, 2).astype(int) - plain.decode(latents, 2)
    assert np.abs(difference).max() <= 1


@pytest.mark.slow
def test_the_networks_that_reuse_features_are_added_to_the_bundle(loops):
    ((row, figures),) = loops.reuse()
    assert row == "reuse"
    assert figures["video_s"] > 0


def test_what_is_worth_most_comes_first_and_the_profiler_last(monkeypatch, tmp_path):
    loops = {name: Loops(SHAPES[name], tmp_path) for name in ("mimicmotion-16", "small")}
    names = [(group, part) for group, part, _ in parts_of(loops, compiled=False)]
    assert names == [
        ("mimicmotion-16", "plain"), ("mimicmotion-16", "ours"), ("small", "plain"), ("small", "ours"),
        ("mimicmotion-16", "reuse"), ("small", "reuse"),
    ]  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    names = [part for _, part, _ in parts_of(loops, compiled=True)]
    assert names[6:8] == ["ours, compiled", "plain, compiled"]
    assert names[-2:] == ["idle", "idle"]


def test_a_given_bundle_is_ours_without_reuse_and_without_errors(loops, tmp_path):
    given = Loops(loops.shape, tmp_path, bundle=tmp_path)
    assert [part for _, part, _ in parts_of({"small": given}, compiled=False)] == ["plain", "ours"]


def test_svd_xt_is_the_work_of_the_published_marks():
    shape = SHAPES["svd-xt"]
    assert (shape.size, shape.frames, shape.timed, shape.exact.steps) == ((1024, 576), 25, 25, 25)
    assert shape.exact.guidance != (1.0, 1.0)


def test_idle_is_what_nothing_covers_from_step_to_step():
    spans = [
        ("copy", 0, 1),
        ("blend_step", 3, 4),
        ("unet", 4, 6),
        ("copy", 5, 7),
        ("blend_step", 8, 9),
        ("x", 20, 30),
    ]
    assert idle_between(spans, "blend_step") == pytest.approx(1 / 5)  # of 4 to 9, 7 to 8
    assert idle_between(spans[:4], "blend_step") is None
    assert idle_between([], "blend_step") is None


def test_an_unknown_shape_is_refused():
    with pytest.raises(typer.BadParameter, match="mimicmotion-16"):
        gpu_loop.main(shape=["huge"])


@pytest.mark.slow
def test_the_command_on_small_networks(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(SHAPES, "small", replace(SHAPES["small"], frames=3, timed=2))
    gpu_loop.main(shape=["small"], results=tmp_path, as_json=True)
    (written,) = tmp_path.glob("gpu-loop-small-*.json")
    assert capsys.readouterr().out == written.read_text()
    assert written.with_suffix(".png").exists()


def test_gpu_benchmarks_and_tests_need_no_pyav():
    """They are imported without it, as on a bare GPU machine."""
    code = "import sys; sys.modules['av'] = None; import gpu_kernels; from mimicmotion_trt import Animator"
    folder = str(Path(gpu_loop.__file__).parent)
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": folder})
