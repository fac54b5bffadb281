"""What each network is calibrated on and judged by: its answers in PyTorch, recorded before it is rewritten."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..engines import EngineSpec, ImageStatistics
from .options import Options
from .plan_cases import record_plan_cases
from .profiles import make_profiles
from .proof import Case, originals, record_cases
from .target import runs_here
from .trajectory import clip_shape, record_trajectory

CALIBRATION = ((1, 8), (2, 6))
"""(seed, steps) of the denoisings that float8 is calibrated on; the proof judges it on another."""


@dataclass
class Evidence:
    """Of one network."""

    cases: list[Case]
    """At several shapes; of the U-Net also along a denoising."""
    calibration: list[Case] = field(default_factory=list)
    """Where it is quantized."""
    own: list[Case] = field(default_factory=list)
    """At the shapes of its plan, where that runs here."""


def record_evidence(
    model: Any,
    image: ImageStatistics,
    specs: Mapping[str, EngineSpec],
    options: Options,
    defaults: Mapping[str, Any],
    names: Iterable[str],
) -> dict[str, Evidence]:
    """What the networks `names` answer; `defaults` are the bundle's settings."""
    functions, plans = originals(model), options.compiles and runs_here(options)
    weights = sum(tensor.numel() for tensor in model.unet.parameters())
    small = clip_shape(weights, options.sizes[0], defaults["segment"])

    def denoise(size: tuple[int, int], frames: int, steps: int = 5, seed: int = 0) -> list[Case]:
        return record_trajectory(model, image, defaults, size, frames, steps=steps, seed=seed)

    found = {}
    for name in names:
        found[name] = evidence = Evidence(record_cases(name, specs[name], functions[name]))
        if name == "unet":
            evidence.cases += denoise(*small)
            for seed, steps in CALIBRATION if options.precision == "fp8" else ():
                evidence.calibration += denoise(*small, steps, seed)
        if plans:
            profiles = make_profiles(name, specs[name], options)
            evidence.own = record_plan_cases(name, specs[name], functions[name], profiles, denoise)
    return found
