"""Whether bundles run on GPUs that are not here, by what their manifests say that they were compiled for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mimicmotion_trt.doctor import Question
from mimicmotion_trt.engines import Bundle, EnginePlan

from .stand_in_nvml import BOTH, H100, HOST, RTX, Card, Library, look, plans, printed, profiles, said


@pytest.mark.parametrize(
    ("target", "library", "size", "says"),
    [
        ("SM86 SM89", "tensorrt-rtx 1.7.1.116", (64, 128), ""),
        (
            "SM86",
            "tensorrt-rtx 1.7.1.116",
            (64, 128),
            "compiled for SM86, not for NVIDIA GeForce RTX 4090 SM89",
        ),
        ("SM86", "tensorrt-rtx 1.7.1.116", (64, 128), "--backend tensorrt-rtx --capability SM89"),
        ("SM89", "tensorrt-rtx 1.6.1.120", (64, 128), "compiled by tensorrt-rtx 1.6.1.120"),
        ("SM89", "tensorrt-rtx 1.7.1.116", (192, 128), "rebuild it with --size 192x128"),
    ],
)
def test_a_bundle_of_plans_runs_where_it_was_compiled_for(bundle, tmp_path, target, library, size, says):
    folder = plans(bundle, tmp_path / "plans", EnginePlan(library, target, profiles((2, 16))))
    (outlook,) = look(Library(RTX), folder, Question(size=size), BOTH).outlooks
    assert outlook.runs == (not says)
    assert says in said(outlook)


@pytest.mark.parametrize(
    ("gpu", "target", "runs"),
    [
        (RTX, "NVIDIA GeForce RTX 4090 SM89", True),  # TensorRT's own plans run on GeForce, too
        (RTX, "NVIDIA L40S SM89", False),
        (H100, "NVIDIA H100 80GB HBM3 SM90", True),
        (H100, "NVIDIA H200 SM90", False),
    ],
)
def test_a_plan_of_tensorrt_is_for_one_model_of_gpu(bundle, tmp_path, gpu: Card, target, runs):
    folder = plans(bundle, tmp_path / "plans", EnginePlan("tensorrt 11.4.0.106", target, profiles((2, 16))))
    (outlook,) = look(Library(gpu), folder, host=BOTH).outlooks
    assert outlook.runs == runs
    if not runs:
        assert f"compiled for {target}" in outlook.problem
        assert "--backend tensorrt;" in outlook.remedy  # TensorRT has no --capability


@pytest.mark.parametrize("frames", [15, 7, 3])
def test_a_clip_too_short_for_the_plans_costs_as_much_as_the_clip_it_is_padded_to(bundle, tmp_path, frames):
    """Segments of 16 and 6: 3 frames and the reference picture's own are run as 6; of 8 frames the overlap of 6 has
    no room in segments of 6, so they are run as 16."""
    plan = EnginePlan("tensorrt-rtx 1.7.1.116", "SM89", profiles((1, 16), (2, 16), (1, 6)))
    folder = plans(bundle, tmp_path / "plans", plan)
    (outlook,) = look(Library(RTX), folder, Question(frames=frames), BOTH).outlooks
    (whole,) = look(Library(RTX), folder, Question(frames=5 if frames == 3 else 15), BOTH).outlooks
    assert outlook.runs
    assert outlook.choices[0].segment == (6 if frames == 3 else 16)
    assert outlook.choices[0].cost.denoise == whole.choices[0].cost.denoise


def test_plans_are_offered_what_they_were_compiled_for(bundle, tmp_path):
    plan = EnginePlan("tensorrt-rtx 1.7.1.116", "SM89", profiles((1, 16), (2, 8)))
    folder = plans(bundle, tmp_path / "plans", plan)
    (outlook,) = look(Library(RTX), folder, Question(frames=40), BOTH).outlooks
    assert outlook.runs
    assert [(choice.segment, choice.rows) for choice in outlook.choices] == [(16, 1), (8, 2)]


def test_weights_of_a_float8_bundle_are_as_large_as_its_files(bundle, tmp_path):
    plan = EnginePlan("tensorrt-rtx 1.7.1.116", "SM89", profiles((2, 16)))
    folder = plans(bundle, tmp_path / "plans", plan, precision="fp8")
    (outlook,) = look(Library(RTX), folder, host=BOTH).outlooks
    assert outlook.choices[0].memory.weights == pytest.approx(bytes_of(folder), abs=2)


def test_a_bundle_for_the_cpu_has_to_be_built_for_a_gpu(bundle):
    *_, gpu = look(Library(H100), bundle).outlooks
    assert gpu.problem == "built for onnxruntime, not for NVIDIA H100 80GB HBM3 SM90."
    assert "--backend tensorrt;" in gpu.remedy


@pytest.mark.parametrize("cards", [(), (H100,)])
def test_a_bundle_of_plans_without_its_gpu_has_to_be_built_for_what_is_there(bundle, tmp_path, cards):
    """Where there is no GPU at all, for the CPU."""
    folder = plans(
        bundle, tmp_path / "plans", EnginePlan("tensorrt-rtx 1.7.1.116", "SM89", profiles((2, 16)))
    )
    report = look(Library(*cards, driver="580.65" if cards else ""), folder)
    (outlook,) = report.outlooks
    assert not outlook.runs
    assert "compiled for SM89" in outlook.problem
    assert f"--backend {'tensorrt' if cards else 'onnxruntime'};" in outlook.remedy
    assert "plans" in printed(report)
    if not cards:
        assert outlook.device == "CPU"
        assert "there is no GPU here" in outlook.problem
        assert outlook.seconds is not None
        weights = outlook.choices[0].memory.weights
        assert weights == pytest.approx(2 * bytes_of(folder), abs=8)  # float16 plans, float32 graphs


def bytes_of(folder: Path) -> int:
    networks = Bundle.load(folder).manifest.networks.values()
    return sum(file.bytes for network in networks for file in network.files)


def test_cuda_core_is_needed_too(bundle, tmp_path):
    folder = plans(
        bundle, tmp_path / "plans", EnginePlan("tensorrt-rtx 1.7.1.116", "SM89", profiles((2, 16)))
    )
    host = dataclasses.replace(HOST, packages={"tensorrt-rtx-cu13": "1.7.1.116"})
    (outlook,) = look(Library(RTX), folder, host=host).outlooks
    assert said(outlook) == "cuda-core is not installed. pip install 'mimicmotion-trt[rtx]'"


def test_weights_that_are_streamed_need_no_room(bundle, tmp_path):
    """Of a GPU whose free memory is the context's and a little more."""
    plan = EnginePlan("tensorrt-rtx 1.7.1.116", "SM89", profiles((2, 16)))
    kept = plans(bundle, tmp_path / "kept", plan)
    streamed = plans(bundle, tmp_path / "streamed", dataclasses.replace(plan, streamable=True))
    unet = Bundle.load(streamed).manifest.networks["unet"].files
    reports = {folder: look(Library(RTX), folder, host=BOTH) for folder in (kept, streamed)}
    all_of_it, less = (report.outlooks[0].choices[0].memory for report in reports.values())
    assert less.streamed == pytest.approx(sum(file.bytes for file in unet), abs=2)
    assert (all_of_it.streamed, all_of_it.weights) == (0, less.weights + less.streamed)
    assert less.total == all_of_it.total - less.streamed
    assert "streamed)" in printed(reports[streamed])
    assert "streamed)" not in printed(reports[kept])


def test_fewer_frames_are_decoded_at_a_time_where_the_usual_number_does_not_fit():
    """MimicMotion in 12.2 GiB: with 4 at a time the U-Net is the larger."""
    card = dataclasses.replace(RTX, free_gib=12.2)
    report = look(Library(card), question=Question((576, 1024), 71))
    outlook = report.outlooks[-1]
    assert outlook.needs == "--decode-chunk 4"
    chosen = next(choice for choice in outlook.choices if choice.fits)
    assert (chosen.segment, chosen.rows, chosen.decode_chunk) == (72, 1, 4)
    assert report.to_dict()["outlooks"][-1]["choices"][0]["decode_chunk"] == 8
    assert "It fits with --decode-chunk 4" in printed(report)
