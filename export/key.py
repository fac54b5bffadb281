"""What a bundle is made from, as one hash: the same key is the same bundle."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import asdict
from pathlib import Path

from ..engines.bundle import hash_file
from ..errors import CheckpointError
from ..networks import POSE_CHUNK
from ..settings import Settings
from .explain import explained
from .options import Options
from .target import gpu_name

SOURCES = (
    "engines.spec",
    "training.checkpoints",
    "training.networks",
    "export.attention",
    "export.build",
    "export.builder",
    "export.comparison",
    "export.dialect",
    "export.evidence",
    "export.half",
    "export.networks",
    "export.plan_cases",
    "export.profiles",
    "export.proof",
    "export.quantize",
    "export.rewrite",
    "export.scripting",
    "export.target",
    "export.tensor_cores",
    "export.tensorrt_build",
    "export.tracing",
    "export.trajectory",
    "export.work",
)
"""Modules whose change makes other engines of the same weights, or judges them otherwise."""


def build_key(folder: Path, checkpoint: Path, options: Options) -> str:
    """Hash of all that a bundle is made from: weights, configs, options, and the code that exports.

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
    parts = ("vae", "image_encoder", "scheduler", "feature_extractor")
    with explained(CheckpointError, "base", f"base {folder} cannot be read"):
        files = [
            folder / "unet" / "config.json",
            *(p for part in parts for p in sorted((folder / part).glob("*.*"))),
        ]
        configs = {str(p.relative_to(folder)): hash_file(p) for p in files if p.is_file()}
    entries = {
        "options": asdict(options),
        "base": configs,
        "checkpoint": weights,
        "library": library_version(options.backend) if options.compiles else None,
        "gpu": gpu_name() if options.backend == "tensorrt" else None,
        "chunks": (POSE_CHUNK, Settings().decode_chunk) if options.compiles else None,
        "code": {name: hash_file(_source(name)) for name in SOURCES},
    }
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def library_version(flavour: str) -> str:
    """The version of the library that compiles; another one compiles again. Raises `BundleError`."""
    from ..engines.tensorrt_library import open_library

    return open_library(flavour).version


def _source(module: str) -> Path:
    found = importlib.util.find_spec(f"mimicmotion_trt.{module}")
    assert found is not None
    return Path(str(found.origin))
