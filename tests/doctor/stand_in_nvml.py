"""NVML and hosts for the doctor, and bundles of plans as far as their manifests say."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from mimicmotion_trt.doctor import Question, Report, examine, show
from mimicmotion_trt.doctor.gpus import Nvml
from mimicmotion_trt.doctor.host import Host
from mimicmotion_trt.engines import Bundle, EnginePlan, Profile

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


PACKAGES = {"onnxruntime": "1.31.1", "cuda-core": "1.2.2", "tensorrt-cu13": "11.4.0.106"}
HOST = Host("A processor", 8, 64 * GIB, 60 * GIB, PACKAGES)


def look(library: Library, bundle: Path | str = "", question: Question | None = None) -> Report:
    report = examine(str(bundle), question, nvml=Nvml(library), host=HOST)
    assert library.open == 0
    json.dumps(report.to_dict())
    return report


def told(report: Report) -> str:
    console = Console(file=io.StringIO(), width=200, markup=False)
    show(report, console, every_choice=True)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def plans(bundle: Path, folder: Path, plan: EnginePlan, **changes: Any) -> Path:
    """A bundle whose U-Net is a plan, as far as its manifest says; the files are another's."""
    shutil.copytree(bundle, folder)
    manifest = Bundle.load(folder).manifest
    networks = {**manifest.networks, "unet": dataclasses.replace(manifest.networks["unet"], plan=plan)}
    backend = plan.library.partition(" ")[0]
    told = "--backend tensorrt-rtx --size 64x128 --capability SM86"
    changes = {"precision": "fp16", "options": told, **changes}
    changed = dataclasses.replace(manifest, backend=backend, networks=networks, **changes)
    (folder / "manifest.json").write_text(changed.to_json())
    return folder


def profiles(*rows_and_frames: tuple[int, int]) -> tuple[Profile, ...]:
    """Of 64x128."""
    just = ({"rows": r, "frames": f, "latent_height": 16, "latent_width": 8} for r, f in rows_and_frames)
    return tuple(Profile({name: (n, n, n) for name, n in dims.items()}) for dims in just)


BOTH = dataclasses.replace(HOST, packages={**PACKAGES, "tensorrt-rtx-cu13": "1.7.1.116"})
"""A host with both flavours."""
