"""What a bundle is made from: the base's files and configs, the checkpoint, the code that exports, as one key."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..engines import ImageStatistics
from ..engines.bundle import hash_file
from ..engines.tensorrt_library import open_library
from ..errors import CheckpointError, MimicMotionError
from ..networks import POSE_CHUNK
from ..settings import Settings
from .options import Options
from .tensorrt_build import gpu_name

FURTHER_CODE = ("engines.spec", "training.checkpoints", "training.networks")
"""Modules outside `export` that decide on the networks and their tensors."""
THREE = "Expected three finite numbers each, those of image_std positive."


@contextlib.contextmanager
def explained(kind: type[MimicMotionError], field: str, what: str) -> Iterator[None]:
    """Turn an OSError into an error of the input `field`."""
    try:
        yield
    except OSError as error:
        raise kind(
            f"{what}: {error}.", remedy="Check the name, the permissions and the free space.", field=field
        ) from error


def find_base(base: str | Path) -> Path:
    """The base's folder. PyTorch is loaded only where it has to be downloaded, not to find nothing to do."""
    with explained(CheckpointError, "base", f"base {base} cannot be read"):
        if Path(base).is_dir():
            return Path(base)
        from ..training.checkpoints import resolve_base

        found: Path = resolve_base(base)
        return found


def build_key(folder: Path, checkpoint: Path, options: Options) -> str:
    """Hash of all that a bundle is made from: weights, configs, options, and the code that exports and judges.

    Of plans also the library that compiles and, where it compiles for the GPU that is there, that GPU.
    """
    with explained(CheckpointError, "checkpoint", f"checkpoint {checkpoint} cannot be read"):
        if not checkpoint.is_file():
            wrong = "is a folder" if checkpoint.is_dir() else "does not exist"
            raise CheckpointError(
                f"checkpoint {checkpoint} {wrong}.",
                remedy="Give MimicMotion's file, .pth or .safetensors.",
                field="checkpoint",
            )
        weights = hash_file(checkpoint)
    with explained(CheckpointError, "base", f"base {folder} cannot be read"):
        parts = ("vae", "image_encoder", "scheduler", "feature_extractor")
        files = [folder / "unet" / "config.json", *(p for part in parts for p in (folder / part).glob("*.*"))]
        base = {str(path.relative_to(folder)): hash_file(path) for path in files if path.is_file()}
    entries = {
        "options": asdict(options),
        "base": base,
        "checkpoint": weights,
        "library": open_library(options.backend).version if options.compiles else None,
        "gpu": gpu_name() if options.backend == "tensorrt" else None,
        "chunks": (POSE_CHUNK, Settings().decode_chunk) if options.compiles else None,
        "code": hash_code(code_files()),
    }
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def code_files() -> list[Path]:
    """The sources whose change makes other engines of the same weights, or judges them otherwise."""
    specs = (importlib.util.find_spec(f"mimicmotion_trt.{module}") for module in FURTHER_CODE)
    return [*Path(__file__).parent.glob("*.py"), *(Path(str(spec.origin)) for spec in specs if spec)]


def hash_code(files: Iterable[Path]) -> str:
    """One hash of some sources, wherever they are installed."""
    return hashlib.sha256("".join(sorted(map(hash_file, files))).encode()).hexdigest()


def check_scheduler(config: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` unless the base's scheduler is the one that the runtime implements."""
    wanted = {
        "_class_name": "EulerDiscreteScheduler",
        "prediction_type": "v_prediction",
        "timestep_type": "continuous",
        "use_karras_sigmas": True,
    }
    wrong = {key: config.get(key) for key, value in wanted.items() if config.get(key) != value}
    low, high = (config.get(key) for key in ("sigma_min", "sigma_max"))
    ordered = isinstance(low, int | float) and isinstance(high, int | float) and 0 < low < high
    if wrong or not ordered:
        raise CheckpointError(
            f"the base's scheduler is not SVD's ({wrong or 'sigma_min, sigma_max'}).",
            remedy=f"Expected {wanted} with 0 < sigma_min < sigma_max.",
            field="base",
        )


def check_scaling_factor(value: Any) -> None:
    """Raise `CheckpointError` unless latents can be divided by the VAE's scaling factor."""
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise CheckpointError(
            f"vae/config.json: scaling_factor is {value!r}.",
            remedy="Expected a positive number, 0.18215 for SVD.",
            field="base",
        )


def image_statistics(config: Mapping[str, Any], encoder: Any) -> ImageStatistics:
    """CLIP's input size, and its normalisation from `preprocessor_config.json`; raises `CheckpointError`."""
    try:
        mean, std = (tuple(float(v) for v in config[key]) for key in ("image_mean", "image_std"))
        red, green, blue = mean
        r, g, b = std
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(
            "preprocessor_config.json lacks image_mean or image_std.", remedy=THREE, field="base"
        ) from None
    try:
        return ImageStatistics(int(encoder.config.image_size), (red, green, blue), (r, g, b))
    except ValueError:
        raise CheckpointError(
            f"preprocessor_config.json: image_mean is {list(mean)}, image_std {list(std)}.",
            remedy=THREE,
            field="base",
        ) from None
