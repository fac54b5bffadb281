"""From a base folder and a checkpoint to a bundle, all or nothing."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..engines import FEATURE_CACHE_NETWORKS, Bundle, ImageStatistics, Manifest, Network, network_specs
from ..engines.bundle import MANIFEST
from ..errors import (
    BundleError,
    CheckpointError,
    ExportError,
    MimicMotionError,
    OutputError,
    SettingsError,
)
from .builder import Builder, Report
from .explain import explained
from .key import build_key
from .options import Options
from .parts import Parts, make_partial
from .place import check_place, find_place, put
from .profiles import make_profiles
from .target import check_target

THREE = "Expected three finite numbers each, those of image_std positive."


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
    build leaves what was there before, and of plans the networks that it finished, in a hidden folder beside: the
    error, or the interrupt, then has a note that says so. Raises `CheckpointError`, `ExportError` or `OutputError`.
    """
    options = options or Options()
    with explained(OutputError, "output", f"{output} cannot be written"):
        output = find_place(output)
    report("reading", 0, len(options.networks) + 1)
    with explained(CheckpointError, "base", f"base {base} cannot be read"):
        folder = _base_folder(base)
    key = build_key(folder, Path(checkpoint), options)
    with explained(OutputError, "output", f"{output} cannot be written"):
        if (present := _present(output, key)) is not None:
            return present, False
        check_place(output)
    former = None if refit_from is None else _former(refit_from, options)
    check_target(options)
    with contextlib.ExitStack() as stack:
        with explained(OutputError, "output", f"{output} cannot be written"):
            output.parent.mkdir(parents=True, exist_ok=True)
            parts = stack.enter_context(Parts(output, key))  # of graphs it is no more than the lock
            partial, lock = make_partial(output)
            stack.callback(os.close, lock)
            stack.callback(shutil.rmtree, partial, ignore_errors=True)
        try:
            kept = parts if options.compiles else None
            manifest = _build(folder, Path(checkpoint), partial, options, key, report, kept, former)
        except MimicMotionError:
            raise
        except Exception as error:  # of the libraries: a network that they cannot run or trace, a full disk
            raise ExportError(
                f"the bundle could not be built: {type(error).__name__}: {error}",
                remedy="Check that base and checkpoint belong together, and the free space.",
            ) from error
        with explained(OutputError, "output", f"the finished bundle cannot be put at {output}"):
            parts.link(partial)
            (partial / MANIFEST).write_text(manifest.to_json())
            partial.chmod(0o755)
            put(partial, output)
        parts.clear()
    return manifest, True


def _former(folder: str | Path, options: Options) -> Bundle:
    """The bundle whose plans take other weights; raises `SettingsError` or `BundleError`."""
    if not options.plan.refit:
        raise SettingsError(
            "only plans that take other weights can be refitted.", remedy="Add --refit.", field="refit_from"
        )
    with explained(BundleError, "refit_from", f"{folder} cannot be read"):
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


def _present(output: Path, key: str) -> Manifest | None:
    if not (output / MANIFEST).is_file():
        return None
    try:
        manifest = Bundle.load(output).manifest
    except BundleError:
        return None  # damaged: build it again
    return manifest if manifest.build == key else None


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
    from .evidence import record_evidence
    from .proof import engine_forms

    total = len(options.networks) + 1
    report("loading the checkpoint", 0, total)
    model = load_model(folder, checkpoint)
    check_scheduler(model.scheduler)
    check_scaling_factor(model.vae)
    image = image_statistics(model.feature_extractor, model.image_encoder)
    specs = network_specs(
        pose_channels=model.unet.config["block_out_channels"][0],
        token_width=model.unet.config["cross_attention_dim"],
        image_size=image.size,
        dtype="float16" if options.half else "float32",
        cached_channels=model.unet.config["block_out_channels"][1] if options.deep_cache else None,
    )
    if options.compiles:  # shapes that cannot be compiled are told before anything is exported
        make_profiles("unet", specs["unet"], options)
    networks = {name: found for name in options.networks if parts and (found := parts.get(name))}
    report("recording what PyTorch answers", 1, total)
    forms, defaults = engine_forms(model), model_defaults(model, options)
    missing = [name for name in options.networks if name not in networks]
    evidence = record_evidence(model, image, specs, options, defaults, missing)
    for index, name in enumerate(options.networks):
        if name not in evidence:
            continue
        if (
            name in FEATURE_CACHE_NETWORKS
        ):  # the U-Net was rewritten and its weights given up: once more from the files
            forms = engine_forms(load_model(folder, checkpoint))
        report(f"exporting {name}", index + 1, total)
        place = parts.folder if parts else partial
        builder = Builder(options, key, place, former, report, index + 1, total)
        networks[name] = builder.build(name, forms[name](), specs[name], evidence.pop(name))
        if parts is not None:
            parts.put(name, networks[name])
    report("done", total, total)
    return _manifest(
        model, {name: networks[name] for name in options.networks}, image, options, key, defaults
    )


def _manifest(
    model: Any,
    networks: Mapping[str, Network],
    image: ImageStatistics,
    options: Options,
    key: str,
    defaults: Mapping[str, Any],
) -> Manifest:
    import diffusers
    import onnxruntime
    import polygraphy
    import torch
    import transformers

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
        options=options.arguments,
        versions={
            **{m.__name__: m.__version__ for m in (torch, diffusers, transformers, onnxruntime, polygraphy)},
            **dict(_compilers(networks)),
        },
    )


def model_defaults(model: Any, options: Options) -> dict[str, Any]:
    """Settings that the model wants, the base's range of sigmas among them."""
    sigmas = {name: float(model.scheduler[name]) for name in ("sigma_min", "sigma_max")}
    return {**sigmas, **options.model_defaults}


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
    """CLIP's input size and normalisation from `preprocessor_config.json`; raises `CheckpointError`."""
    size = int(encoder.config.image_size)
    try:
        mean, std = (tuple(float(v) for v in config[key]) for key in ("image_mean", "image_std"))
        red, green, blue = mean
        r, g, b = std
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(
            "preprocessor_config.json lacks image_mean or image_std.", remedy=THREE, field="base"
        ) from None
    if not all(map(math.isfinite, mean)) or not all(0 < value < math.inf for value in std):
        raise CheckpointError(
            f"preprocessor_config.json: image_mean is {list(mean)}, image_std {list(std)}.",
            remedy=THREE,
            field="base",
        )
    return ImageStatistics(size, (red, green, blue), (r, g, b))


def check_scaling_factor(vae: Any) -> None:
    """Raise `CheckpointError` unless latents can be divided by the VAE's scaling factor."""
    value = vae.config["scaling_factor"]
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise CheckpointError(
            f"vae/config.json: scaling_factor is {value!r}.",
            remedy="Expected a positive number, 0.18215 for SVD.",
            field="base",
        )
