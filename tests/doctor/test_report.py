"""The doctor on machines that are not here: their NVML is a stand-in, the bundle and the processor are real."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from mimicmotion_trt import BundleError, SettingsError
from mimicmotion_trt.bundles import SEARCH_VARIABLE
from mimicmotion_trt.doctor import Question
from mimicmotion_trt.doctor.machine import Host, peak_flops, read_gpus
from mimicmotion_trt.engines import Bundle

from .stand_in_nvml import BOTH, H100, HOST, RTX, Card, Library, look, printed, said


def test_without_a_driver_the_cpu_is_enough(bundle):
    report = look(Library(driver=""), bundle)
    (cpu,) = report.outlooks
    assert (cpu.runs, cpu.device, cpu.frames, cpu.size) == (True, "CPU", 15, (64, 128))
    assert cpu.seconds is not None
    text = printed(report)
    assert "no NVIDIA driver" in text
    assert "mimicmotion-trt[gpu]" in text
    assert "r580" in text


def test_the_first_lines_say_what_runs_and_what_to_do(bundle):
    first, second = printed(look(Library(H100), bundle)).splitlines()[:2]
    assert first.startswith("it runs here on the CPU: 15 frames of 64x128, 3 steps in about ")
    assert second == "Use it: mimicmotion-trt animate person.jpg dance.mp4 -o out.mp4 --bundle it"


def test_what_does_not_run_has_no_time():
    """Of a GPU without the library the speed is known, and nothing runs on it."""
    report = look(Library(H100), question=Question((576, 1024), 71))
    (line,) = [line for line in printed(report).splitlines() if line.startswith(" MimicMotion 1.1 ")]
    assert report.outlooks[-1].seconds is not None
    assert (" no " in line, line.split()[-1]) == (True, "–")


def test_without_nvidia_ml_py(bundle, monkeypatch):
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("importlib.import_module", missing)
    report = read_gpus()
    assert "nvidia-ml-py" in report.problem
    assert report.found == ()


def test_a_driver_too_old_for_cuda_13(bundle):
    report = look(Library(H100, driver="570.86.15"), bundle)
    assert "older than r580" in report.gpus.problem
    assert report.outlooks[-1].remedy == "Update the driver."


def test_a_data_centre_gpu_and_a_bundle_for_the_cpu(bundle):
    cpu, gpu = look(Library(H100), bundle).outlooks
    assert cpu.runs
    assert not gpu.runs
    assert "built for onnxruntime" in gpu.problem
    assert "--backend tensorrt" in gpu.remedy
    assert gpu.choices[0].memory.weights < cpu.choices[0].memory.weights  # fp16


def of_torch(bundle: Path, folder: Path, precision: str = "fp32") -> Path:
    """A bundle whose manifest says that it is PyTorch's; the files are another's."""
    shutil.copytree(bundle, folder)
    changed = dataclasses.replace(Bundle.load(folder).manifest, backend="torch", precision=precision)
    (folder / "manifest.json").write_text(changed.to_json())
    return folder


@pytest.mark.parametrize(
    ("packages", "gpu", "driver", "says"),
    [
        ({"torch": "2.12", "cuda-core": "1.2"}, H100, "580.65", ("", "")),
        (
            {"cuda-core": "1.2"},
            H100,
            "580.65",
            ("pip install 'mimicmotion-trt[torch]'", "pip install 'mimicmotion-trt[torch,cuda]'"),
        ),
        ({"torch": "2.12"}, H100, "580.65", ("", "pip install 'mimicmotion-trt[torch,cuda]'")),
        ({"torch": "2.12+cpu", "cuda-core": "1.2"}, H100, "580.65", ("", "2.12+cpu is the build for CPUs")),
        ({"torch": "2.12+cu130", "cuda-core": "1.2"}, H100, "570.86", ("", "older than r580")),
        (
            {"torch": "2.12", "cuda-core": "1.2"},
            dataclasses.replace(H100, capability=(7, 0)),
            "580.65",
            ("", "capability 7.0 is too old"),
        ),
    ],
)
def test_what_a_bundle_of_pytorch_needs(bundle, tmp_path, packages, gpu, driver, says):
    """On the CPU, and on a GPU."""
    folder = of_torch(bundle, tmp_path / "torch")
    host = dataclasses.replace(HOST, packages=packages)
    outlooks = look(Library(gpu, driver=driver), folder, host=host).outlooks
    assert [outlook.device for outlook in outlooks] == ["CPU", "NVIDIA H100 80GB HBM3"]
    for outlook, expected in zip(outlooks, says, strict=True):
        assert outlook.runs == (not expected)
        assert expected in said(outlook)


def test_a_bundle_of_pytorch_runs_in_its_own_precision(bundle, tmp_path):
    """Seconds are known of half precision only: the table has no other."""
    host = dataclasses.replace(HOST, packages={"torch": "2.12", "cuda-core": "1.2"})
    memory = {}
    for precision in ("fp32", "fp16"):
        folder = of_torch(bundle, tmp_path / precision, precision)
        cpu, gpu = look(Library(H100), folder, host=host).outlooks
        assert gpu.choices[0].memory.weights == cpu.choices[0].memory.weights
        assert (gpu.seconds is None) == (precision == "fp32")
        memory[precision] = gpu.choices[0].memory
    assert memory["fp32"].activations == 2 * memory["fp16"].activations


@pytest.mark.parametrize("precision", ["fp16", "fp8"])
def test_onnx_runtime_computes_half_precision_in_float32(bundle, tmp_path, precision):
    """On the CPU it widens weights and activations; rebuilt for a GPU they are of two bytes."""
    folder = Path(shutil.copytree(bundle, tmp_path / precision))
    manifest = dataclasses.replace(Bundle.load(folder).manifest, precision=precision)
    (folder / "manifest.json").write_text(manifest.to_json())
    files = sum(file.bytes for network in manifest.networks.values() for file in network.files)
    (whole, _), (cpu, gpu) = (
        [outlook.choices[0].memory for outlook in look(Library(H100), of).outlooks] for of in (bundle, folder)
    )
    assert cpu.weights == pytest.approx(2 * files, abs=8)
    assert gpu.weights == pytest.approx(files, abs=8)
    assert cpu.activations == whole.activations


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


@pytest.mark.parametrize(
    ("name", "capability", "options"),
    [
        ("NVIDIA GeForce RTX 4090", (8, 9), "--backend tensorrt-rtx --capability SM89"),
        (
            "NVIDIA GeForce RTX 2080 Ti",
            (7, 5),
            "--backend tensorrt-rtx --capability SM75",
        ),  # none of the usual
        ("NVIDIA GeForce GTX 1660", (7, 5), "--backend tensorrt"),  # no RTX GPU, and TensorRT has Turing
        ("Tesla T4", (7, 5), "--backend tensorrt"),
    ],
)
def test_the_backend_of_a_gpu_is_by_its_name(name, capability, options):
    library = Library(dataclasses.replace(RTX, name=name, capability=capability))
    outlook = look(library, host=BOTH).outlooks[-1]
    assert outlook.problem == "not built yet."
    assert outlook.remedy.endswith(options)


def test_too_little_memory():
    report = look(Library(dataclasses.replace(H100, free_gib=6)), question=Question((576, 1024)))
    outlook = report.outlooks[-1]
    assert (outlook.seconds, outlook.needs) == (None, "")
    assert "more memory than is free" in printed(report)


def test_a_gpu_too_old_for_tensorrt():
    outlook = look(Library(Card("Tesla V100-SXM2-16GB", (7, 0), 16, 5120, 1530))).outlooks[-1]
    assert "7.0 is too old" in outlook.problem
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
    assert peak_flops(name, capability) == (tflops * 1e12, "data sheet")


def test_a_gpu_that_the_table_does_not_know():
    """CUDA cores x clock x operations a clock; a laptop's is not the desktop's of that name."""
    peak, source = peak_flops("NVIDIA GeForce RTX 4090 Laptop GPU", (8, 9), 76 * 128, 2040)
    assert peak == pytest.approx(76 * 2040e6 * 512)
    assert "clock" in source
    assert peak_flops("NVIDIA Something", (13, 0), 12_800, 2000) == (None, "unknown")
    silent = Card("NVIDIA Something", (8, 9), 24, 16384, clock=0)  # its driver does not tell
    assert look(Library(silent)).gpus.found[0].throughput is None


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


def test_a_bundle_of_another_version_is_said_and_the_others_looked_at(bundle, tmp_path, monkeypatch):
    """Its settings are the bundle's fault, those of the command line are not."""
    (tmp_path / "whole").symlink_to(bundle)
    raw = json.loads((bundle / "manifest.json").read_text())
    for name, defaults in (("newer", {"segment": 8, "sharpness": 2}), ("without", {"steps": 2})):
        shutil.copytree(bundle, tmp_path / name)
        (tmp_path / name / "manifest.json").write_text(json.dumps({**raw, "defaults": defaults}))
    monkeypatch.setenv(SEARCH_VARIABLE, str(tmp_path))
    report = look(Library(driver=""))
    newer, without = report.damaged
    assert str(tmp_path / "newer") in newer
    assert "unknown setting 'sharpness'" in newer
    assert "Update mimicmotion-trt" in newer
    assert f"{tmp_path / 'without'}: its settings are not this version's: there is no segment" in without
    assert any(outlook.bundle == bundle.name for outlook in report.outlooks)
    with pytest.raises(BundleError, match="newer: its settings"):
        look(Library(driver=""), tmp_path / "newer")
    with pytest.raises(SettingsError, match="multiples of 64"):
        look(Library(driver=""), question=Question((64, 65)))


def test_an_engine_that_does_not_load_is_said(bundle, tmp_path, monkeypatch):
    def fails(*_: object) -> None:
        raise BundleError("unet.onnx cannot be loaded.")

    monkeypatch.setattr("mimicmotion_trt.doctor.report.time_engine", fails)
    monkeypatch.setenv(SEARCH_VARIABLE, str(tmp_path))
    (tmp_path / "one").symlink_to(bundle)
    assert f"{tmp_path / 'one'}: unet.onnx cannot be loaded." in look(Library(driver="")).damaged


def test_features_that_no_network_reuses(bundle, deep_bundle, tmp_path):
    """The animator would refuse each job; with the networks fewer operations are counted."""
    outlooks = {}
    for name, built in (("lacking", bundle), ("deep", deep_bundle)):
        folder = Path(shutil.copytree(built, tmp_path / name))
        manifest = Bundle.load(folder).manifest
        wanting = dataclasses.replace(manifest, defaults={**manifest.defaults, "reuse_interval": 2})
        (folder / "manifest.json").write_text(wanting.to_json())
        (outlooks[name],) = look(Library(driver=""), folder).outlooks
    assert not outlooks["lacking"].runs
    assert "no engines that reuse cached features" in outlooks["lacking"].problem
    assert "rebuild it with --deep-cache" in outlooks["lacking"].remedy
    assert outlooks["deep"].runs
    lacking, deep = (outlooks[name].choices[0].cost.denoise for name in ("lacking", "deep"))
    assert deep < lacking


def test_questions():
    assert Question.of((64, 128), None, 2.0) == Question((64, 128), 30)
    assert Question.of((64, 128), None, 2.0, fps=60) == Question((64, 128), 120)
    assert Question.of(None, None, None) == Question()
    assert Question.of(None, 1_000_000, None) == Question(frames=1_000_000)


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (((64, 65), None, None), "settings.size"),
        (((0, 0), None, None), "settings.size"),
        (((16384, 64), None, None), "settings.size"),
        ((None, 0, None), "settings.frames"),
        ((None, 1_000_000_000, None), "settings.frames"),  # plans of segments are arrays
        ((None, 3, 1.0), ""),
        ((None, None, -1.0), "seconds"),
        ((None, None, float("nan")), "seconds"),
        ((None, None, float("inf")), "seconds"),
        ((None, None, 1e9), "settings.frames"),
        ((None, None, None, 0), "jobs"),
        ((None, None, None, 10**9), "jobs"),
        ((None, 30, None, 1, 60.0), "fps"),
        ((None, None, 2.0, 1, 1e9), "settings.fps"),
    ],
)
def test_questions_about_what_is_no_animation(asked, field):
    with pytest.raises(SettingsError) as caught:
        Question.of(*asked)
    assert caught.value.field == field
    assert caught.value.remedy


def test_the_processor_is_measured_on_the_job_itself(bundle):
    from mimicmotion_trt import Settings
    from mimicmotion_trt.bundles import load_bundle
    from mimicmotion_trt.doctor import machine

    speed = machine.time_engine(
        load_bundle(bundle), Settings(segment=4, overlap=1, size=(64, 64)), 3, seconds=0
    )
    assert speed is not None
    assert speed.flops > 1e6
    assert "one row" in speed.source
    huge = Settings(segment=72, size=(2048, 2048))
    assert machine.time_engine(load_bundle(bundle), huge, 71) is None


def test_this_host_is_read():
    read = Host.read()
    assert read.cores >= 1
    assert "onnxruntime" in read.packages
    assert read.memory_total > read.memory_free > 0
    assert read.cpu
