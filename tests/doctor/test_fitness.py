"""Whether bundles run on GPUs that are not here, by what their manifests say that they were compiled for."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from mimicmotion_trt.doctor import Question, examine
from mimicmotion_trt.doctor.gpus import Nvml
from mimicmotion_trt.engines import Bundle, EnginePlan

from .stand_in_nvml import BOTH, H100, RTX, Library, look, plans, profiles, told


@pytest.mark.parametrize(
    ("target", "library", "size", "says"),
    [
        ("SM86 SM89", "tensorrt-rtx 1.7.1.116", (64, 128), ""),
        (
            "SM86",
            "tensorrt-rtx 1.7.1.116",
            (64, 128),
            "--backend tensorrt-rtx --size 64x128 --capability SM86",
        ),
        ("SM86", "tensorrt-rtx 1.7.1.116", (64, 128), "--capability SM89"),
        ("SM89", "tensorrt-rtx 1.6.1.120", (64, 128), "compiled by tensorrt-rtx 1.6.1.120"),
        ("SM89", "tensorrt-rtx 1.7.1.116", (192, 128), "rebuild it with --size 192x128"),
    ],
)
def test_a_bundle_of_plans_runs_where_it_was_compiled_for(bundle, tmp_path, target, library, size, says):
    folder = plans(bundle, tmp_path / "plans", EnginePlan(library, target, profiles((2, 16))))
    report = examine(str(folder), Question(size=size), nvml=Nvml(Library(RTX)), host=BOTH)
    (outlook,) = report.outlooks
    assert outlook.runs == (not says)
    assert says in outlook.says


@pytest.mark.parametrize(
    ("gpu", "target", "runs"),
    [
        (RTX, "NVIDIA GeForce RTX 4090 SM89", True),  # TensorRT's own plans run on GeForce, too
        (RTX, "NVIDIA L40S SM89", False),
        (H100, "NVIDIA H100 80GB HBM3 SM90", True),
        (H100, "NVIDIA H200 SM90", False),
        (H100 | {"parts": [{"gib": 40, "processors": 66}]}, "NVIDIA H100 80GB HBM3 MIG 3g.40gb SM90", True),
        (H100 | {"parts": [{"gib": 40, "processors": 66}]}, "NVIDIA H100 80GB HBM3 SM90", False),
    ],
)
def test_a_plan_of_tensorrt_is_for_one_model_of_gpu(bundle, tmp_path, gpu, target, runs):
    plan = EnginePlan("tensorrt 11.4.0.106", target, profiles((2, 16)))
    folder = plans(bundle, tmp_path / "plans", plan)
    (outlook,) = examine(str(folder), nvml=Nvml(Library(gpu)), host=BOTH).outlooks
    assert outlook.runs == runs
    if not runs:
        assert f"compiled for {target}" in outlook.says
        assert "--backend tensorrt --size 64x128" in outlook.says
        assert "SM86" not in outlook.says  # TensorRT has no --capability


def test_a_clip_too_short_for_the_plans(bundle, tmp_path):
    plan = EnginePlan("tensorrt-rtx 1.7.1.116", "SM89", profiles((1, 16), (2, 16)))
    folder = plans(bundle, tmp_path / "plans", plan)

    def ask(frames: int) -> Any:
        (outlook,) = examine(
            str(folder), Question(frames=frames), nvml=Nvml(Library(RTX)), host=BOTH
        ).outlooks
        return outlook

    assert ask(15).runs
    short = ask(3)
    assert not short.runs
    assert "fewer than the 16" in short.says
    assert "--frames 4" in short.says


def test_a_clip_whose_segment_is_no_longer_than_the_overlap(bundle, tmp_path):
    """Of a clip of 7 frames the segment is the shorter one that was compiled; the overlap is 6."""
    plan = EnginePlan("tensorrt-rtx 1.7.1.116", "SM89", profiles((1, 16), (1, 6)))
    folder = plans(bundle, tmp_path / "plans", plan)
    (outlook,) = examine(str(folder), Question(frames=7), nvml=Nvml(Library(RTX)), host=BOTH).outlooks
    assert not outlook.runs
    assert "overlap 6 is not smaller than the bundle's segment 6" in outlook.says


def test_plans_are_offered_what_they_were_compiled_for(bundle, tmp_path):
    plan = EnginePlan("tensorrt-rtx 1.7.1.116", "SM89", profiles((1, 16), (2, 8)))
    folder = plans(bundle, tmp_path / "plans", plan)
    (outlook,) = examine(str(folder), Question(frames=40), nvml=Nvml(Library(RTX)), host=BOTH).outlooks
    assert outlook.runs
    assert [(choice.segment, choice.rows) for choice in outlook.choices] == [(16, 1), (8, 2)]


def test_weights_of_a_float8_bundle_are_as_large_as_its_files(bundle, tmp_path):
    plan = EnginePlan("tensorrt-rtx 1.7.1.116", "SM89", profiles((2, 16)))
    folder = plans(bundle, tmp_path / "plans", plan, precision="fp8")
    size = sum(file.bytes for n in Bundle.load(folder).manifest.networks.values() for file in n.files)
    (outlook,) = examine(str(folder), nvml=Nvml(Library(RTX)), host=BOTH).outlooks
    assert outlook.choices[0].memory.weights == pytest.approx(size, abs=2)


def test_a_bundle_for_the_cpu_is_rebuilt_with_its_own_options(bundle):
    *_, gpu = look(Library(H100), bundle).outlooks
    assert "--backend tensorrt --size 64x128 --size 128x64 --segment 16" in gpu.says
    assert "--precision" not in gpu.says  # fp32 is not TensorRT's
    assert "--default 'canvas=512'" in gpu.says or "--default canvas=512" in gpu.says


@pytest.mark.parametrize("gpus", [(), (H100,)])
def test_a_bundle_of_plans_without_its_gpu_is_told_how_to_run(bundle, tmp_path, gpus):
    """Where there is no GPU at all, on the CPU."""
    folder = plans(
        bundle, tmp_path / "plans", EnginePlan("tensorrt-rtx 1.7.1.116", "SM89", profiles((2, 16)))
    )
    report = look(Library(*gpus, driver="580.65" if gpus else ""), folder)
    (outlook,) = report.outlooks
    assert not outlook.runs
    assert "compiled for SM89" in outlook.says
    backend = "tensorrt" if gpus else "onnxruntime"
    assert outlook.says.endswith(f"--output {folder}-{backend} --backend {backend} --size 64x128")
    assert "plans" in told(report)
    if not gpus:
        assert outlook.device == "CPU"
        assert "no GPU is found here" in outlook.says
        assert outlook.seconds is not None
        weights = outlook.choices[0].memory.weights
        assert weights == pytest.approx(2 * weights_of(folder), abs=8)  # float16 plans, float32 graphs


def weights_of(folder: Any) -> int:
    networks = Bundle.load(folder).manifest.networks.values()
    return sum(file.bytes for network in networks for file in network.files)


def test_cuda_core_is_needed_too(bundle, tmp_path):
    folder = plans(
        bundle, tmp_path / "plans", EnginePlan("tensorrt-rtx 1.7.1.116", "SM89", profiles((2, 16)))
    )
    host = dataclasses.replace(BOTH, packages={"tensorrt-rtx-cu13": "1.7.1.116"})
    (outlook,) = examine(str(folder), nvml=Nvml(Library(RTX)), host=host).outlooks
    assert outlook.says == "pip install 'mimicmotion-trt[rtx]'"


def test_weights_that_are_streamed_need_no_room(bundle, tmp_path):
    """Of a GPU whose free memory is the context's and a little more."""
    plan = EnginePlan("tensorrt-rtx 1.7.1.116", "SM89", profiles((2, 16)))
    streamable = dataclasses.replace(plan, streamable=True)
    kept = plans(bundle, tmp_path / "kept", plan)
    streamed = plans(bundle, tmp_path / "streamed", streamable)
    unet = Bundle.load(streamed).manifest.networks["unet"].files
    reports = {f: examine(str(f), nvml=Nvml(Library(RTX)), host=BOTH) for f in (kept, streamed)}
    all_of_it, less = (report.outlooks[0].choices[0].memory for report in reports.values())
    assert less.streamed == pytest.approx(sum(file.bytes for file in unet), abs=2)
    assert (all_of_it.streamed, all_of_it.weights) == (0, less.weights + less.streamed)
    assert less.total == all_of_it.total - less.streamed
    assert "streamed)" in told(reports[streamed])
    assert "streamed)" not in told(reports[kept])


def test_fewer_frames_are_decoded_at_a_time_where_the_usual_number_does_not_fit():
    """MimicMotion in 12.2 GiB: with 4 at a time the U-Net is the larger."""
    library = Library(RTX | {"free": 12.2})
    report = look(library, question=Question((576, 1024), 71))
    outlook = report.outlooks[-1]
    assert outlook.says.endswith("it fits with --decode-chunk 4")
    chosen = next(choice for choice in outlook.choices if choice.fits)
    assert (chosen.segment, chosen.rows, chosen.decode_chunk) == (72, 1, 4)
    assert report.to_dict()["outlooks"][-1]["choices"][0]["decode_chunk"] == 8
    assert "chunk" in told(report)
