"""From a base folder and a checkpoint to a bundle, all or nothing."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..engines import (
    DEEP_CACHE,
    NETWORKS,
    Bundle,
    EngineSpec,
    ImageStatistics,
    Manifest,
    Network,
    Plan,
    Work,
    network_specs,
)
from ..engines.bundle import MANIFEST, describe_file, hash_file
from ..errors import (
    BundleError,
    CheckpointError,
    ExportError,
    MimicMotionError,
    OutputError,
    SettingsError,
)
from .dialect import ONNXRUNTIME, STANDARD
from .options import Options
from .parts import Parts

BOUNDS = {"fp32": 3e-4, "fp16": 5e-3, "fp8": 0.3}
"""Largest relative L2 error of an engine against float32 PyTorch; fp8 of the U-Net alone."""
CALIBRATION = ((1, 8), (2, 6))
"""(seed, steps) of the denoisings that float8 is calibrated on; the proof judges it on another."""
EXPORTERS = frozenset(
    (
        "rewrite",
        "scripting",
        "quantize",
        "attention",
        "networks",
        "tracing",
        "build",
        "work",
        "half",
        "dialect",
        "profiles",
        "tensorrt_build",
    )
)
"""Modules whose change makes other engines of the same weights."""
Report = Callable[[str, int, int], None]
"""(what is being done, steps done, steps in all)."""


def build_bundle(
    base: str | Path,
    checkpoint: str | Path,
    output: str | Path,
    options: Options | None = None,
    *,
    refit_from: str | Path | None = None,
    report: Report = lambda what, done, total: None,
) -> tuple[Manifest, bool]:
    """Build a bundle in the folder `output`; returns its manifest and whether anything had to be built.

    With `refit_from`, a bundle of the same options but other weights, nothing is compiled: its plans take these.
    A bundle of the same inputs that is there already, undamaged, is left alone. An interrupted or failed
    build leaves what was there before. Raises `CheckpointError`, `ExportError` or `OutputError`.
    """
    options = options or Options()
    output = Path(output)
    report("reading", 0, len(options.networks) + 1)
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
    former = None if refit_from is None else _former(refit_from, options)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise OutputError(f"{output} cannot be written: {error}", field="output") from error
    try:
        parts = Parts(output, key) if options.compiles else None
        manifest = _build(folder, Path(checkpoint), partial, options, key, report, parts, former)
        if parts is not None:
            parts.move(partial)
        (partial / MANIFEST).write_text(manifest.to_json())
        partial.chmod(0o755)
        _replace(partial, output)
        if parts is not None:
            parts.clear()
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


def _former(folder: str | Path, options: Options) -> Bundle:
    """The bundle whose plans take other weights; raises `SettingsError` or `BundleError`."""
    if not options.plan.refit:
        raise SettingsError(
            "only plans that take other weights can be refitted.", remedy="Add --refit.", field="refit_from"
        )
    former = Bundle.load(folder)
    if (
        not set(options.networks) <= set(former.manifest.networks)
        or former.manifest.backend != options.backend
    ):
        raise SettingsError(
            f"{folder} is a bundle for {former.manifest.backend} of {', '.join(former.manifest.networks)}.",
            remedy="Give one that was built with the same options.",
            field="refit_from",
        )
    return former


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
    parts = ("vae", "image_encoder", "scheduler", "feature_extractor")
    files = [
        folder / "unet" / "config.json",
        *(p for part in parts for p in sorted((folder / part).glob("*.*"))),
    ]
    entries = {
        "options": asdict(options),
        "base": {str(p.relative_to(folder)): hash_file(p) for p in files if p.is_file()},
        "checkpoint": hash_file(checkpoint),
        "library": library_version(options.backend) if options.compiles else None,
        "code": sorted(hash_file(path) for path in code if path.stem in EXPORTERS),
    }
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def library_version(flavour: str) -> str:
    """The version of the library that compiles; another one compiles again. Raises `BundleError`."""
    from ..engines.tensorrt_library import open_library

    return open_library(flavour).version


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
    own = {name for name in names if name == MANIFEST or re.split("[.-]", name)[0] in NETWORKS + DEEP_CACHE}
    return names == own and (not names or MANIFEST in names)


def _build(
    folder: Path,
    checkpoint: Path,
    partial: Path,
    options: Options,
    key: str,
    report: Report,
    parts: Parts | None,
    former: Bundle | None,
) -> Manifest:
    from ..training.checkpoints import load_model
    from . import proof

    total = len(options.networks) + 1
    if options.precision == "fp8" and options.backend == "tensorrt":
        from .quantize import check_capability
        from .tensorrt_build import gpu_name

        check_capability(gpu_name())
    report("loading the checkpoint", 0, total)
    model = load_model(folder, checkpoint)
    check_scheduler(model.scheduler)
    image = image_statistics(model.feature_extractor, model.image_encoder)
    specs = network_specs(
        pose_channels=model.unet.config["block_out_channels"][0],
        token_width=model.unet.config["cross_attention_dim"],
        image_size=image.size,
        dtype="float16" if options.half else "float32",
        deep_channels=model.unet.config["block_out_channels"][1] if options.deep_cache else None,
    )
    networks = {name: found for name in options.networks if parts and (found := parts.get(name))}
    report("recording what PyTorch answers", 1, total)
    originals, forms = proof.originals(model), proof.engine_forms(model)
    cases = {
        name: proof.record_cases(name, specs[name], originals[name])
        for name in options.networks
        if name not in networks
    }
    if "unet" in cases:
        cases["unet"] += proof.record_trajectory(model, specs["unet"], originals)
    calibration = {
        "unet": [
            case
            for seed, steps in (CALIBRATION if options.precision == "fp8" and "unet" in cases else ())
            for case in proof.record_trajectory(model, specs["unet"], originals, steps, seed)
        ]
    }
    for index, name in enumerate(options.networks):
        if name in networks:
            continue
        if name in DEEP_CACHE:  # the U-Net was rewritten and its weights given up: once more from the files
            forms = proof.engine_forms(load_model(folder, checkpoint))
        report(f"exporting {name}", index + 1, total)
        place = parts.folder if parts else partial
        builder = _Builder(options, key, place, former, report, index + 1, total)
        networks[name] = builder.build(
            name, forms[name](), specs[name], cases.pop(name), calibration.pop(name, [])
        )
        if parts is not None:
            parts.put(name, networks[name])
    report("done", total, total)
    return _manifest(model, {name: networks[name] for name in options.networks}, image, options, key)


class _Builder:
    """Turns one network at a time into files of a folder."""

    def __init__(
        self,
        options: Options,
        key: str,
        folder: Path,
        former: Bundle | None,
        report: Report,
        step: int,
        total: int,
    ) -> None:
        self._options, self._key, self._folder, self._former = options, key, folder, former
        self._report: Callable[[str], None] = lambda what: report(what, step, total)

    def build(
        self, name: str, module: Any, spec: EngineSpec, cases: list[Any], calibration: list[Any]
    ) -> Network:
        """Export, prove and, where the backend compiles, compile; the module's weights are given up.

        With `calibration` the network is quantized.
        """
        import onnx

        from . import half, proof, quantize, tracing
        from .graph_audit import audit_graph
        from .work import measure_work

        options = self._options
        work = measure_work(name, module, spec)
        shape = (2, 3, 16, 24)
        if options.half:
            module, shape = half.to_half(module, name), (2, 2, 8, 16)
        inputs = proof.cast_inputs(proof.example_inputs(name, spec, shape, seed=0), spec)
        if options.backend == "torch":
            return self._script(name, module, inputs, spec, cases, work)
        dialect = STANDARD if options.half else ONNXRUNTIME
        files = tracing.trace(module, inputs, spec, self._folder / f"{name}.onnx", dialect)
        module.to("meta")
        if calibration:
            self._report(f"calibrating {name}")
            quantize.quantize(files, [proof.call_arrays(case, spec) for case in calibration], options.margin)
        self._report(f"comparing {name} with PyTorch")
        precision = "fp8" if calibration else "fp16" if options.half else "fp32"
        agreement = proof.compare(name, files[0], spec, cases, BOUNDS[precision])
        audit, plan = audit_graph(onnx.load(str(files[0]), load_external_data=False)), None
        if options.compiles:
            files, plan = self._compile(name, files, spec)
        return Network(spec, tuple(describe_file(path) for path in files), agreement, work, audit, plan)

    def _script(
        self, name: str, module: Any, inputs: Any, spec: EngineSpec, cases: list[Any], work: Work
    ) -> Network:
        """A TorchScript file, proven by the engine that will run it."""
        from ..engines.torch_backend import TorchEngine
        from . import proof, scripting

        path = scripting.script(module, inputs, spec, self._folder / f"{name}.ts")
        module.to("meta")
        self._report(f"comparing {name} with PyTorch")
        engine = TorchEngine(path, spec, "cpu", None)
        audit = scripting.audit_program(engine.program)
        agreement = proof.compare_engine(name, engine, cases, BOUNDS[str(self._options.precision)])
        return Network(spec, (describe_file(path),), agreement, work, audit)

    def _compile(self, name: str, graph: list[Path], spec: EngineSpec) -> tuple[list[Path], Plan]:
        from ..engines.tensorrt_library import open_library
        from .profiles import make_profiles
        from .tensorrt_build import compile_plan, plan_name, refit_plan

        library = open_library(self._options.backend)
        profiles = make_profiles(name, spec, self._options)
        unnamed = self._folder / f"{name}.plan"
        if self._former is not None:
            self._report(f"refitting {name}")
            former = (self._former.engine_path(name), self._former.manifest.networks[name].plan)
            plan = refit_plan(library, graph[0], spec, profiles, self._options.plan, former, unnamed)
        else:
            plan = compile_plan(
                library,
                graph[0],
                spec,
                profiles,
                self._options.plan,
                unnamed,
                lambda share: self._report(f"compiling {name}, {share:.0%}"),
            )
        for path in graph:
            path.unlink()
        return [unnamed.replace(self._folder / plan_name(name, self._key, plan))], plan


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
        precision=str(options.precision),
        build=key,
        networks=networks,
        sizes=options.sizes,
        rows=tuple(sorted(set(options.rows))),
        scaling_factor=float(model.vae.config["scaling_factor"]),
        image=image,
        defaults=defaults,
        note=options.note,
        versions={
            **{m.__name__: m.__version__ for m in (torch, diffusers, transformers, onnxruntime)},
            **dict(_compilers(networks)),
        },
    )


def _compilers(networks: Mapping[str, Network]) -> set[tuple[str, str]]:
    """What compiled the plans: (flavour, version)."""
    libraries = {network.plan.library for network in networks.values() if network.plan}
    return {(name, version) for name, _, version in (library.partition(" ") for library in libraries)}


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
