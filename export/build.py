"""From a base folder and a checkpoint to a bundle, all or nothing."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..engines import FEATURE_CACHE_NETWORKS, Bundle, Manifest, Network, network_specs
from ..errors import BundleError, ExportError, MimicMotionError, OutputError, SettingsError
from .options import Options
from .output_folder import Workspace, check_output, find_present
from .sources import build_key, check_scaling_factor, check_scheduler, explained, find_base, image_statistics
from .tensorrt_build import check_target, make_profiles

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
    A bundle of the same inputs that is there already, undamaged, is left alone. An interrupted or failed build
    leaves what was there before, and keeps of plans the networks that are finished: the error, or the interrupt,
    then has a note that says so. Raises `CheckpointError`, `ExportError` or `OutputError`.
    """
    options, output, checkpoint = options or Options(), Path(os.path.abspath(output)), Path(checkpoint)
    report("reading", 0, len(options.networks) + 1)
    folder = find_base(base)
    key = build_key(folder, checkpoint, options)
    writing = functools.partial(explained, OutputError, "output", f"{output} cannot be written")
    with writing():
        if (present := find_present(output, key)) is not None:
            return present, False
        check_output(output)
    former = None if refit_from is None else _former_bundle(refit_from, options)
    check_target(options)
    with writing(), Workspace(output, key) as workspace:
        try:
            manifest = build_networks(folder, checkpoint, workspace, options, key, report, former)
        except MimicMotionError:
            raise
        except Exception as error:  # of the libraries: a network that they cannot run or trace, a full disk
            raise ExportError(
                f"the bundle could not be built: {type(error).__name__}: {error}",
                remedy="Check that base and checkpoint belong together, and the free space.",
            ) from error
        with writing():  # here already, so that the error gets the workspace's note
            workspace.publish(manifest)
    return manifest, True


def _former_bundle(folder: str | Path, options: Options) -> Bundle:
    """The bundle whose plans take other weights; raises `SettingsError` or `BundleError`."""
    if not options.plan.refit:
        raise SettingsError(
            "only plans that take other weights can be refitted.", remedy="Add --refit.", field="refit_from"
        )
    with explained(BundleError, "refit_from", f"{folder} cannot be read"):
        former = Bundle.load(folder)
    has = former.manifest
    if not set(options.networks) <= set(has.networks) or has.backend != options.backend:
        raise SettingsError(
            f"{folder} is a bundle for {has.backend} of {', '.join(has.networks)}.",
            remedy="Give one that was built with the same options.",
            field="refit_from",
        )
    return former


def build_networks(
    folder: Path,
    checkpoint: Path,
    workspace: Workspace,
    options: Options,
    key: str,
    report: Report,
    former: Bundle | None,
) -> Manifest:
    """Build the networks that the workspace does not hold yet; returns the manifest of all."""
    from ..training.checkpoints import load_model
    from .network_build import NetworkBuild
    from .networks import engine_form
    from .verify import record_evidence

    total = len(options.networks) + 1
    report("loading the checkpoint", 0, total)
    model: Any = load_model(folder, checkpoint)
    check_scheduler(model.scheduler)
    check_scaling_factor(model.vae.config["scaling_factor"])
    image = image_statistics(model.feature_extractor, model.image_encoder)
    widths = model.unet.config["block_out_channels"]
    specs = network_specs(
        pose_channels=widths[0],
        token_width=model.unet.config["cross_attention_dim"],
        image_size=image.size,
        dtype="float16" if options.half else "float32",
        cached_channels=widths[1] if options.deep_cache else None,
    )
    if options.compiles:  # a shape that cannot be compiled fails before anything is exported
        make_profiles("unet", specs["unet"], options)
    report("recording what PyTorch answers", 1, total)
    defaults = model_defaults(model, options)
    missing = [name for name in options.networks if name not in workspace.finished]
    evidence = record_evidence(model, image, specs, options, defaults, missing)
    networks = dict(workspace.finished)
    for name in missing:
        if name in FEATURE_CACHE_NETWORKS:  # the U-Net's weights were given up: once more from the files
            model = load_model(folder, checkpoint)
        step = options.networks.index(name) + 1
        report(f"exporting {name}", step, total)
        tell = functools.partial(_report_step, report, step, total)
        build = NetworkBuild(name, specs[name], options, key, workspace, tell, former)
        networks[name] = build.run(engine_form(name, model), evidence.pop(name))
        if options.compiles:
            workspace.keep(name, networks[name])
    report("done", total, total)
    return Manifest(
        backend=options.backend,
        precision=str(options.precision),
        build=key,
        networks={name: networks[name] for name in options.networks},
        sizes=options.sizes,
        rows=tuple(sorted(set(options.rows))),
        scaling_factor=float(model.vae.config["scaling_factor"]),
        image=image,
        defaults=defaults,
        note=options.note,
        options=options.arguments,
        versions=library_versions(networks),
    )


def _report_step(report: Report, step: int, total: int, what: str) -> None:
    report(what, step, total)


def model_defaults(model: Any, options: Options) -> dict[str, Any]:
    """Settings that the model wants, the base's range of sigmas among them."""
    sigmas = {name: float(model.scheduler[name]) for name in ("sigma_min", "sigma_max")}
    return {**sigmas, **options.model_defaults}


def library_versions(networks: Mapping[str, Network]) -> dict[str, str]:
    """The versions of what exported, judged and compiled the networks."""
    import diffusers
    import onnxruntime
    import polygraphy
    import torch
    import transformers

    modules = (torch, diffusers, transformers, onnxruntime, polygraphy)
    compilers = {network.plan.library for network in networks.values() if network.plan}
    return {
        **{module.__name__: module.__version__ for module in modules},
        **{name: version for name, _, version in (library.partition(" ") for library in compilers)},
    }
