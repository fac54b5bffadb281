"""NVML and hosts for the doctor, and bundles of plans as far as their manifests say."""
# ruff: noqa: N802

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from mimicmotion_trt.doctor import Outlook, Question, Report, examine, show
from mimicmotion_trt.doctor.machine import Host, read_gpus
from mimicmotion_trt.engines import Bundle, EnginePlan, Profile

GIB = 2**30


@dataclass(frozen=True)
class Card:
    """A GPU as NVML describes it."""

    name: str
    capability: tuple[int, int]
    gib: float
    cores: int
    clock: int
    """MHz."""
    free_gib: float | None = None
    """All but 1 GiB if None."""


H100 = Card("NVIDIA H100 80GB HBM3", (9, 0), 80, 16896, 1980)
RTX = Card("NVIDIA GeForce RTX 4090", (8, 9), 24, 16384, 3105)


class NvmlError(Exception):
    """What the library raises."""


@dataclass(frozen=True)
class MemoryInfo:
    total: float
    free: float


class Library:
    """The functions of pynvml that are asked, for the cards given; without a driver they fail."""

    NVMLError = NvmlError
    NVML_CLOCK_SM = 1

    def __init__(self, *cards: Card, driver: str = "580.65.06") -> None:
        self.cards, self.driver, self.open = cards, driver, 0

    def nvmlInit(self) -> None:
        if not self.driver:
            raise NvmlError("NVML Shared Library Not Found")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return self.driver

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return 13000

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:
        return self.cards[index]

    def nvmlDeviceGetName(self, card: Card) -> str:
        return card.name

    def nvmlDeviceGetCudaComputeCapability(self, card: Card) -> tuple[int, int]:
        return card.capability

    def nvmlDeviceGetNumGpuCores(self, card: Card) -> int:
        return card.cores

    def nvmlDeviceGetMaxClockInfo(self, card: Card, kind: int) -> int:
        if not card.clock:
            raise NvmlError("Not Supported")
        return card.clock

    def nvmlDeviceGetMemoryInfo(self, card: Card) -> MemoryInfo:
        free = card.gib - 1 if card.free_gib is None else card.free_gib
        return MemoryInfo(card.gib * GIB, free * GIB)


PACKAGES = {"onnxruntime": "1.31.1", "cuda-core": "1.2.2", "tensorrt-cu13": "11.4.0.106"}
HOST = Host("A processor", 8, 64 * GIB, 60 * GIB, PACKAGES)
BOTH = dataclasses.replace(HOST, packages={**PACKAGES, "tensorrt-rtx-cu13": "1.7.1.116"})
"""A host with both flavours."""


def look(
    library: Library, bundle: Path | str = "", question: Question | None = None, host: Host = HOST
) -> Report:
    """What the doctor says of a machine with these GPUs."""
    report = examine(str(bundle), question, gpus=read_gpus(library), host=host)
    assert library.open == 0
    json.dumps(report.to_dict())
    return report


def said(outlook: Outlook) -> str:
    """Why a bundle does not run, and what to do."""
    return f"{outlook.problem} {outlook.remedy}".strip()


def printed(report: Report) -> str:
    console = Console(file=io.StringIO(), width=200, markup=False)
    show(report, console, asked="it")
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def plans(bundle: Path, folder: Path, plan: EnginePlan, **changes: Any) -> Path:
    """A bundle whose U-Net is a plan, as far as its manifest says; the files are another's."""
    shutil.copytree(bundle, folder)
    manifest = Bundle.load(folder).manifest
    networks = {**manifest.networks, "unet": dataclasses.replace(manifest.networks["unet"], plan=plan)}
    changes = {
        "backend": plan.library.partition(" ")[0],
        "precision": "fp16",
        "networks": networks,
        **changes,
    }
    (folder / "manifest.json").write_text(dataclasses.replace(manifest, **changes).to_json())
    return folder


def profiles(*rows_and_frames: tuple[int, int]) -> tuple[Profile, ...]:
    """Of 64x128."""
    just = ({"rows": r, "frames": f, "latent_height": 16, "latent_width": 8} for r, f in rows_and_frames)
    return tuple(Profile({name: (n, n, n) for name, n in dims.items()}) for dims in just)
