"""The doctor on machines that are not here: their NVML is a stand-in, the bundle and the processor are real."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from mimicmotion_trt import BundleError, SettingsError
from mimicmotion_trt.bundles import SEARCH_VARIABLE
from mimicmotion_trt.doctor import Question, Report, examine, show
from mimicmotion_trt.engines import Bundle, Plan, Profile
from mimicmotion_trt.gpus import Nvml, peak_flops
from mimicmotion_trt.host import Host, time_product

GIB = 2**30
H100 = {"name": "NVIDIA H100 80GB HBM3", "capability": (9, 0), "gib": 80, "cores": 16896, "clock": 1980}
RTX = {"name": "NVIDIA GeForce RTX 4090", "capability": (8, 9), "gib": 24, "cores": 16384, "clock": 3105}


class NvmlError(Exception):
    """What the library raises."""


class Library:
    """The functions of pynvml that are asked, for the GPUs given."""

    NVMLError = NvmlError
    NVML_CLOCK_SM = 1

    def __init__(self, *gpus: dict[str, Any], driver: str = "580.65.06") -> None:
        self.gpus, self.driver, self.open = gpus, driver, 0

    def nvmlInit(self) -> None:  # noqa: N802
        if not self.driver:
            raise NvmlError("NVML Shared Library Not Found")
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def __getattr__(self, name: str) -> Any:
        answers = {
            "nvmlSystemGetDriverVersion": lambda: self.driver,
            "nvmlSystemGetCudaDriverVersion_v2": lambda: 13000,
            "nvmlDeviceGetCount": lambda: len(self.gpus),
            "nvmlDeviceGetHandleByIndex": lambda index: self.gpus[index],
            "nvmlDeviceGetName": lambda gpu: gpu["name"],
            "nvmlDeviceGetCudaComputeCapability": lambda gpu: gpu["capability"],
            "nvmlDeviceGetNumGpuCores": lambda gpu: gpu["cores"],
            "nvmlDeviceGetMaxClockInfo": lambda gpu, kind: gpu["clock"],
            "nvmlDeviceGetMigMode": self._mig_mode,
            "nvmlDeviceGetMaxMigDeviceCount": lambda gpu: 7,
            "nvmlDeviceGetMigDeviceHandleByIndex": self._instance,
            "nvmlDeviceGetAttributes": lambda gpu: SimpleNamespace(multiprocessorCount=gpu["processors"]),
            "nvmlDeviceGetMemoryInfo": lambda gpu: SimpleNamespace(
                total=gpu["gib"] * GIB, free=gpu.get("free", gpu["gib"] - 1) * GIB
            ),
        }
        if name not in answers:
            raise AttributeError(name)
        return answers[name]

    def _mig_mode(self, gpu: dict[str, Any]) -> list[int]:
        if "parts" not in gpu:
            raise NvmlError("Not Supported")
        return [1, 1]

    def _instance(self, gpu: dict[str, Any], index: int) -> dict[str, Any]:
        if index >= len(gpu["parts"]):
            raise NvmlError("Not Found")
        part: dict[str, Any] = gpu["parts"][index]
        return part


HOST = Host("A processor", 8, 64 * GIB, 60 * GIB, {"onnxruntime": "1.31.1", "tensorrt-cu13": "11.4"})


@pytest.fixture(autouse=True)
def nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor is measured in one test only."""
    monkeypatch.setattr("mimicmotion_trt.doctor.time_engine", lambda *_: None)
    monkeypatch.setattr("mimicmotion_trt.doctor.time_product", lambda: time_product(seconds=0, side=16))
    monkeypatch.delenv(SEARCH_VARIABLE, raising=False)


def look(library: Library, bundle: Path | str = "", question: Question | None = None) -> Report:
    report = examine(str(bundle), question, nvml=Nvml(library), host=HOST)
    assert library.open == 0
    json.dumps(report.to_dict())
    return report


def told(report: Report) -> str:
    console = Console(file=io.StringIO(), width=200, markup=False)
    show(report, console, every_choice=True)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_without_a_driver_the_cpu_is_enough(bundle):
    report = look(Library(driver=""), bundle)
    (cpu,) = report.outlooks
    assert (cpu.runs, cpu.device, cpu.frames, cpu.size) == (True, "CPU", 15, (64, 128))
    assert cpu.seconds is not None
    text = told(report)
    assert "no NVIDIA driver" in text
    assert "mimicmotion-trt[gpu]" in text
    assert "r580" in text


def test_without_nvidia_ml_py(bundle, monkeypatch):
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("importlib.import_module", missing)
    report = Nvml().read()
    assert "nvidia-ml-py" in report.problem
    assert report.found == ()


def test_a_driver_too_old_for_cuda_13(bundle):
    report = look(Library(H100, driver="570.86.15"), bundle)
    assert "older than r580" in report.gpus.problem
    assert "update" in report.outlooks[-1].says


def test_a_data_centre_gpu_and_a_bundle_for_the_cpu(bundle):
    cpu, gpu = look(Library(H100), bundle).outlooks
    assert cpu.runs
    assert not gpu.runs
    assert "built for onnxruntime" in gpu.says
    assert "--backend tensorrt" in gpu.says
    assert gpu.choices[0].memory.weights < cpu.choices[0].memory.weights  # fp16


@pytest.mark.parametrize("there", [True, False])
def test_a_bundle_of_pytorch_runs_wherever_pytorch_is(bundle, tmp_path, there):
    folder = tmp_path / "torch"
    shutil.copytree(bundle, folder)
    changed = dataclasses.replace(Bundle.load(folder).manifest, backend="torch")
    (folder / "manifest.json").write_text(changed.to_json())
    host = dataclasses.replace(HOST, packages={"torch": "2.12"} if there else {})
    report = examine(str(folder), nvml=Nvml(Library(H100)), host=host)
    assert [(outlook.device, outlook.runs) for outlook in report.outlooks] == [
        ("CPU", there), ("NVIDIA H100 80GB HBM3", there),
    ]  # fmt: skip
    for outlook in report.outlooks:
        assert outlook.says == ("" if there else "pip install 'mimicmotion-trt[torch]'")
        assert outlook.seconds is not None


def test_the_full_size_model_on_an_h100():
    """Without a bundle named it is asked about, too."""
    report = look(Library(H100), question=Question((576, 1024), 71))
    outlook = report.outlooks[-1]
    assert outlook.bundle.startswith("MimicMotion")
    assert outlook.seconds == pytest.approx(1.16e16 / (989e12 * 0.28), rel=0.01)
    assert "28% of 989" in outlook.assumption
    assert "data sheet" in outlook.assumption


def test_two_gpus_of_two_kinds():
    report = look(Library(H100, RTX))
    assert [gpu.flavour for gpu in report.gpus.found] == ["tensorrt", "tensorrt-rtx"]
    text = " ".join(report.advice)
    assert "mimicmotion-trt[rtx]" in text  # the other is there
    assert "mimicmotion-trt[gpu]" not in text
    assert "2 GPUs" in text


def test_too_little_memory():
    report = look(Library(H100 | {"free": 6}), question=Question((576, 1024)))
    outlook = report.outlooks[-1]
    assert outlook.seconds is None
    assert "memory" in outlook.says
    assert "more memory than is free" in told(report)


def test_the_instances_of_a_divided_gpu():
    parts = [{"gib": 40, "processors": 66}, {"gib": 20, "processors": 33}]
    gpus = look(Library(H100 | {"parts": parts})).gpus.found
    assert [gpu.memory_total for gpu in gpus] == [40 * GIB, 20 * GIB]
    assert all(gpu.mig for gpu in gpus)
    assert gpus[0].peak == pytest.approx(989e12 / 2)
    assert "50%" in gpus[0].peak_source


def test_a_gpu_too_old_for_tensorrt():
    old = {"name": "Tesla V100-SXM2-16GB", "capability": (7, 0), "gib": 16, "cores": 5120, "clock": 1530}
    outlook = look(Library(old)).outlooks[-1]
    assert "7.0 is too old" in outlook.says
    assert outlook.seconds is None
    assert "not known" in outlook.assumption


@pytest.mark.parametrize(
    ("name", "capability", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", (9, 0), 989),
        ("NVIDIA H100 PCIe", (9, 0), 756),
        ("NVIDIA A100-SXM4-80GB", (8, 0), 312),
        ("NVIDIA A10", (8, 6), 125),
        ("NVIDIA A10G", (8, 6), 70),
        ("NVIDIA L40S", (8, 9), 362),
        ("NVIDIA GeForce RTX 4080 SUPER", (8, 9), 104),
        ("NVIDIA RTX 6000 Ada Generation", (8, 9), 364),
        ("Tesla T4", (7, 5), 65),
    ],
)
def test_peaks_by_name(name, capability, tflops):
    assert peak_flops(name, capability, None, None) == (tflops * 1e12, "data sheet")


def test_a_gpu_that_the_table_does_not_know():
    """Multiprocessors x clock x operations a clock; a laptop's is not the desktop's of that name."""
    peak, source = peak_flops("NVIDIA GeForce RTX 4090 Laptop GPU", (8, 9), 76, 2040)
    assert peak == pytest.approx(76 * 2040e6 * 512)
    assert "clock" in source
    assert peak_flops("NVIDIA Something", (13, 0), 100, 2000) == (None, "unknown")


def test_a_damaged_bundle_is_said_and_the_others_looked_at(bundle, tmp_path, monkeypatch):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("{")
    (tmp_path / "whole").symlink_to(bundle)
    monkeypatch.setenv(SEARCH_VARIABLE, str(tmp_path))
    report = look(Library(driver=""))
    assert any("broken" in line for line in report.damaged)
    assert any(outlook.bundle == bundle.name for outlook in report.outlooks)
    with pytest.raises(BundleError, match="broken"):
        look(Library(driver=""), tmp_path / "broken")


def test_questions():
    assert Question.parse("64x128", None, 2.0) == Question((64, 128), 30)
    assert Question.parse("", None, None) == Question()
    for size, frames, seconds in (("64", None, None), ("", 0, None), ("", 3, 1.0), ("", None, -1.0)):
        with pytest.raises(SettingsError):
            Question.parse(size, frames, seconds)


def test_the_processor_is_measured_on_the_job_itself(bundle):
    from mimicmotion_trt import Settings, host
    from mimicmotion_trt.bundles import load_bundle

    speed = host.time_engine(load_bundle(bundle), Settings(segment=4, overlap=1, size=(64, 64)), 3, seconds=0)
    assert speed is not None
    assert speed.flops > 1e6
    assert "one row" in speed.source
    huge = Settings(segment=72, size=(2048, 2048))
    assert host.time_engine(load_bundle(bundle), huge, 71) is None


def test_this_host_is_read():
    read = Host.read()
    assert read.cores >= 1
    assert "onnxruntime" in read.packages
    assert read.memory_total is None or read.memory_total > GIB
    assert dataclasses.is_dataclass(read)


def plans(bundle: Path, folder: Path, plan: Plan, **changes: Any) -> Path:
    """A bundle whose U-Net is a plan, as far as its manifest says; the files are another's."""
    shutil.copytree(bundle, folder)
    manifest = Bundle.load(folder).manifest
    networks = {**manifest.networks, "unet": dataclasses.replace(manifest.networks["unet"], plan=plan)}
    backend = plan.library.partition(" ")[0]
    told = "--backend tensorrt-rtx --size 64x128 --capability SM86"
    changed = dataclasses.replace(manifest, backend=backend, networks=networks, options=told, **changes)
    (folder / "manifest.json").write_text(changed.to_json())
    return folder


def profiles(*rows_and_frames: tuple[int, int]) -> tuple[Profile, ...]:
    """Of 64x128."""
    just = ({"rows": r, "frames": f, "cells_high": 16, "cells_wide": 8} for r, f in rows_and_frames)
    return tuple(Profile({name: (n, n, n) for name, n in dims.items()}) for dims in just)


BOTH = dataclasses.replace(HOST, packages={"tensorrt-rtx-cu13": "1.7.1.116", "tensorrt-cu13": "11.4.0.106"})


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
    folder = plans(bundle, tmp_path / "plans", Plan(library, target, profiles((2, 16))))
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
    plan = Plan("tensorrt 11.4.0.106", target, profiles((2, 16)))
    folder = plans(bundle, tmp_path / "plans", plan)
    (outlook,) = examine(str(folder), nvml=Nvml(Library(gpu)), host=BOTH).outlooks
    assert outlook.runs == runs
    if not runs:
        assert f"compiled for {target}" in outlook.says
        assert "--backend tensorrt --size 64x128" in outlook.says
        assert "SM86" not in outlook.says  # TensorRT has no --capability


def test_a_clip_too_short_for_the_plans(bundle, tmp_path):
    plan = Plan("tensorrt-rtx 1.7.1.116", "SM89", profiles((1, 16), (2, 16)))
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


def test_plans_are_offered_what_they_were_compiled_for(bundle, tmp_path):
    plan = Plan("tensorrt-rtx 1.7.1.116", "SM89", profiles((1, 16), (2, 8)))
    folder = plans(bundle, tmp_path / "plans", plan)
    (outlook,) = examine(str(folder), Question(frames=40), nvml=Nvml(Library(RTX)), host=BOTH).outlooks
    assert outlook.runs
    assert [(choice.segment, choice.rows) for choice in outlook.choices] == [(16, 1), (8, 2)]


def test_weights_of_a_float8_bundle_are_as_large_as_its_files(bundle, tmp_path):
    plan = Plan("tensorrt-rtx 1.7.1.116", "SM89", profiles((2, 16)))
    folder = plans(bundle, tmp_path / "plans", plan, precision="fp8")
    size = sum(file.bytes for n in Bundle.load(folder).manifest.networks.values() for file in n.files)
    (outlook,) = examine(str(folder), nvml=Nvml(Library(RTX)), host=BOTH).outlooks
    assert outlook.choices[0].memory.weights == pytest.approx(size, abs=2)


def test_a_bundle_for_the_cpu_is_rebuilt_with_its_own_options(bundle):
    *_, gpu = look(Library(H100), bundle).outlooks
    assert "--backend tensorrt --size 64x128 --size 128x64 --segment 16" in gpu.says
    assert "--precision" not in gpu.says  # fp32 is not TensorRT's
    assert "--default 'canvas=512'" in gpu.says or "--default canvas=512" in gpu.says
