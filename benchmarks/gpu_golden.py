"""The golden networks as bundles, and how far a run on one is from the reference's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from mimicmotion_trt import Animator, Settings
from mimicmotion_trt.export.build import build_bundle
from mimicmotion_trt.export.options import Options, PlanOptions

GOLDEN = Path(__file__).parents[1] / "tests" / "data" / "golden" / "tiny"
CHECKPOINT = GOLDEN / "mimicmotion.pth"
CASES = tuple(GOLDEN / f"{name}.npz" for name in ("augmented", "long", "single"))
"""Runs of the reference, all in segments of 8 frames."""
BOUNDS = {"fp32": 1e-3, "fp16": 0.02, "fp8": 0.5}
"""Largest relative L2 error of the last latents: of float32 in another order of sums, and rounded in every step."""


def golden_bundle(
    output: Path,
    backend: str,
    precision: str,
    *,
    plan: PlanOptions | None = None,
    checkpoint: Path = CHECKPOINT,
    refit_from: Path | None = None,
) -> Path:
    """A bundle of the golden networks in the folder `output`; nothing is built if it is there already."""
    options = Options(
        backend=backend,
        precision=precision,
        sizes=((64, 128), (128, 64)),
        segment=8,
        rows=(1, 2) if backend.startswith("tensorrt") else (1, 2, 4),  # minutes of compiling less
        defaults={"canvas": 512},
        plan=plan or PlanOptions(),
    )
    build_bundle(GOLDEN / "svd", checkpoint, output, options, refit_from=refit_from)
    return output


def golden_errors(bundle: Path, precision: str, *, graphs: bool = True) -> dict[str, float]:
    """The error of each golden run on a bundle; AssertionError for one out of bounds."""
    with Animator.load(bundle, graphs=graphs) as animator:
        errors = {case.stem: relative_error(run_case(animator, case), expected_of(case)) for case in CASES}
    for name, error in errors.items():
        if not error <= BOUNDS[precision]:
            raise AssertionError(f"the golden run {name} in {precision} is off by {error:.1e}")
    return errors


def settings_of(case: Path) -> Settings:
    """Of a golden run."""
    with np.load(case) as file:
        given = json.loads(str(file["settings"]))
    keys = ("segment", "overlap", "steps", "noise_aug", "guidance", "decode_chunk")
    return Settings(**{key: given[key] for key in keys})


def expected_of(case: Path) -> Any:
    """The reference's last latents."""
    with np.load(case) as file:
        return file["latents_after_step"][-1]


def run_case(animator: Animator, case: Path) -> Any:
    """Our last latents of a golden run."""
    settings = settings_of(case)
    with np.load(case) as file:
        run = {name: file[name] for name in ("pose_frames", "initial_latents", "image_noise")}
    return animator.sample(
        case.with_suffix(".png"),
        np.ascontiguousarray(run["pose_frames"].transpose(0, 2, 3, 1)),
        settings,
        initial_latents=run["initial_latents"][0],
        image_noise=run["image_noise"][0] if settings.noise_aug else None,
    )


def relative_error(found: Any, expected: Any) -> float:
    """Relative L2."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
