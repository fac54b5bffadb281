"""From a base folder and a checkpoint to a bundle, all or nothing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..engines import NETWORKS, Bundle, ImageStatistics, Manifest, Network, network_specs
from ..engines.bundle import MANIFEST, describe_file, hash_file
from ..errors import (
    BundleError,
    CheckpointError,
    ExportError,
    MimicMotionError,
    OutputError,
    SettingsError,
)
from ..settings import Settings

BACKENDS = ("onnxruntime",)
BOUND = 3e-4
"""Largest relative L2 error of a float32 engine against PyTorch."""
Report = Callable[[str, int, int], None]
"""(what is being done, steps done, steps in all)."""


@dataclass(frozen=True)
class Options:
    """How a bundle is built; raises `SettingsError` when built with values that make no sense."""

    backend: str = "onnxruntime"
    precision: str = "fp32"
    sizes: tuple[tuple[int, int], ...] = ((576, 1024), (1024, 576))
    segment: int = 72
    rows: tuple[int, ...] = (1, 2, 4)
    note: str = ""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Further Settings that the model wants."""

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise SettingsError(
                f"backend {self.backend!r} cannot be built by this version.",
                remedy=f"Choose {' or '.join(BACKENDS)}.",
                field="backend",
            )
        if self.precision != "fp32":
            raise SettingsError(
                f"precision {self.precision!r} cannot be built for {self.backend}.",
                remedy="Use fp32: ONNX Runtime computes float16 slower than float32 on CPUs.",
                field="precision",
            )
        if not self.sizes or not self.rows or any(not 1 <= rows <= 64 for rows in self.rows):
            raise SettingsError(
                "a bundle needs at least one size, and batches of 1 to 64 rows.", field="batch"
            )
        for size in self.sizes:
            Settings(size=size)
        if Settings.from_dict({"segment": self.segment, "overlap": 1, **self.defaults}).segment is None:
            raise SettingsError(
                "a bundle needs a segment.", remedy="Give 72 or 16.", field="settings.segment"
            )
        Settings.from_dict(self.model_defaults)

    @property
    def model_defaults(self) -> dict[str, Any]:
        """Settings that the model wants; the overlap among them where the usual one does not fit the segment."""
        segment = self.defaults.get("segment", self.segment)
        overlap = {"overlap": segment - 1} if segment <= Settings().overlap else {}
        return {"segment": segment, **overlap, **self.defaults}


def build_bundle(
    base: str | Path,
    checkpoint: str | Path,
    output: str | Path,
    options: Options | None = None,
    *,
    report: Report = lambda what, done, total: None,
) -> tuple[Manifest, bool]:
    """Build a bundle in the folder `output`; returns its manifest and whether anything had to be built.

    A bundle of the same inputs that is there already, undamaged, is left alone. An interrupted or failed
    build leaves what was there before. Raises `CheckpointError`, `ExportError` or `OutputError`.
    """
    options = options or Options()
    output = Path(output)
    report("reading", 0, len(NETWORKS) + 1)
    folder = _base_folder(base)
    key = build_key(folder, Path(checkpoint), options)
    if (present := _present(output, key)) is not None:
        return present, False
    if output.exists() and not _is_replaceable(output):
        raise OutputError(
            f"{output} exists and is no bundle, or holds other files as well.",
            remedy="Choose another output folder.",
            field="output",
        )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise OutputError(f"{output} cannot be written: {error}", field="output") from error
    try:
        manifest = _build(folder, Path(checkpoint), partial, options, key, report)
        (partial / MANIFEST).write_text(manifest.to_json())
        partial.chmod(0o755)
        _replace(partial, output)
    except MimicMotionError:
        raise
    except Exception as error:  # of the libraries: a network that they cannot run or trace, a full disk
        raise ExportError(
            f"the bundle could not be built: {type(error).__name__}: {error}",
            remedy="Check that base and checkpoint belong together, and the free space.",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest, True


def _base_folder(base: str | Path) -> Path:
    """The base folder; PyTorch is loaded only where it has to be downloaded, not to find nothing to do."""
    if Path(base).is_dir():
        return Path(base)
    from ..training.checkpoints import resolve_base

    return resolve_base(base)


def build_key(folder: Path, checkpoint: Path, options: Options) -> str:
    """Hash of all that a bundle is made from: weights, configs, options, and the code that exports."""
    if not checkpoint.is_file():
        raise CheckpointError(f"checkpoint {checkpoint} does not exist.", field="checkpoint")
    code = [path for room in ("export", "training") for path in (_room(room)).glob("*.py")]
    exporters = {"rewrite.py", "attention.py", "networks.py", "tracing.py", "build.py", "work.py"}
    parts = ("vae", "image_encoder", "scheduler", "feature_extractor")
    files = [
        folder / "unet" / "config.json",
        *(p for part in parts for p in sorted((folder / part).glob("*.*"))),
    ]
    entries = {
        "options": asdict(options),
        "base": {str(p.relative_to(folder)): hash_file(p) for p in files if p.is_file()},
        "checkpoint": hash_file(checkpoint),
        "code": sorted(hash_file(path) for path in code if path.name in exporters),
    }
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def _room(name: str) -> Path:
    import importlib

    module = importlib.import_module(f"mimicmotion_trt.{name}")
    return Path(str(module.__file__)).parent


def _present(output: Path, key: str) -> Manifest | None:
    if not (output / MANIFEST).is_file():
        return None
    try:
        manifest = Bundle.load(output).manifest
    except BundleError:
        return None  # damaged: build it again
    return manifest if manifest.build == key else None


def _is_replaceable(output: Path) -> bool:
    """Whether a folder is empty or a bundle, whole or damaged, and nothing of anybody's is lost with it."""
    if not output.is_dir():
        return False
    names = {path.name for path in output.iterdir()}
    own = {name for name in names if name == MANIFEST or name.split(".")[0] in NETWORKS}
    return names == own and (not names or MANIFEST in names)


def _build(
    folder: Path, checkpoint: Path, partial: Path, options: Options, key: str, report: Report
) -> Manifest:
    from ..training.checkpoints import load_model
    from . import proof, tracing
    from .work import measure_work

    total = len(NETWORKS) + 1
    report("loading the checkpoint", 0, total)
    model = load_model(folder, checkpoint)
    check_scheduler(model.scheduler)
    image = image_statistics(model.feature_extractor, model.image_encoder)
    specs = network_specs(
        pose_channels=model.unet.config["block_out_channels"][0],
        token_width=model.unet.config["cross_attention_dim"],
        image_size=image.size,
    )
    report("recording what PyTorch answers", 1, total)
    originals, forms = proof.originals(model), proof.engine_forms(model)
    cases = {name: proof.record_cases(name, specs[name], originals[name]) for name in NETWORKS}
    networks: dict[str, Network] = {}
    for index, name in enumerate(NETWORKS):
        report(f"exporting {name}", index + 1, total)
        module, spec = forms[name](), specs[name]
        inputs = proof.example_inputs(name, spec, (2, 3, 16, 24), seed=0)
        files = tracing.trace(module, inputs, spec, partial / f"{name}.onnx")
        agreement = proof.compare(name, files[0], spec, cases[name], BOUND)
        work = measure_work(name, module, spec)
        networks[name] = Network(spec, tuple(describe_file(path) for path in files), agreement, work)
    report("done", total, total)
    return _manifest(model, networks, image, options, key)


def _manifest(
    model: Any, networks: Mapping[str, Network], image: ImageStatistics, options: Options, key: str
) -> Manifest:
    import diffusers
    import onnxruntime
    import torch
    import transformers

    defaults = {
        "sigma_min": float(model.scheduler["sigma_min"]),
        "sigma_max": float(model.scheduler["sigma_max"]),
        **options.model_defaults,
    }
    return Manifest(
        backend=options.backend,
        precision=options.precision,
        build=key,
        networks=networks,
        sizes=options.sizes,
        rows=tuple(sorted(set(options.rows))),
        scaling_factor=float(model.vae.config["scaling_factor"]),
        image=image,
        defaults=defaults,
        note=options.note,
        versions={m.__name__: m.__version__ for m in (torch, diffusers, transformers, onnxruntime)},
    )


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


def image_statistics(config: Mapping[str, Any], encoder: Any) -> ImageStatistics:
    """CLIP's input size and normalisation from `preprocessor_config.json`."""
    size = int(encoder.config.image_size)
    try:
        mean, std = (tuple(float(v) for v in config[key]) for key in ("image_mean", "image_std"))
        red, green, blue = mean
        r, g, b = std
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(
            "preprocessor_config.json lacks image_mean or image_std.", field="base"
        ) from None
    return ImageStatistics(size, (red, green, blue), (r, g, b))


def _replace(partial: Path, output: Path) -> None:
    """Put the finished folder in place; the one before is put back if that fails or is interrupted."""
    old = Path(tempfile.mkdtemp(prefix=f".{output.name}.old.", dir=output.parent))
    try:
        if output.exists():
            os.rename(output, old / "bundle")
        os.rename(partial, output)
    except BaseException:
        if (old / "bundle").exists() and not output.exists():
            os.rename(old / "bundle", output)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
