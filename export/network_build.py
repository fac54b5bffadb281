"""The networks of a model to the files of a bundle: exported, proven and, where the backend compiles, compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import onnx
import onnxruntime
import polygraphy
import torch
import transformers
from torch import nn

from ..engines import (
    FEATURE_CACHE_NETWORKS,
    Bundle,
    Engine,
    EnginePlan,
    EngineSpec,
    File,
    Manifest,
    Network,
    Placement,
)
from ..engines.bundle import describe_file
from ..engines.onnxruntime_backend import OnnxRuntimeEngine
from ..engines.tensorrt_backend import open_engine
from ..engines.tensorrt_library import open_library
from ..engines.torch_backend import TorchEngine
from ..engines.weight_table import SUFFIX, WeightTable, write_table
from ..training.checkpoints import image_statistics, load_model
from ..training.networks import model_specs
from .float16 import tensor_core_engine, to_float16
from .networks import check_scaling_factor, check_scheduler, engine_form
from .options import Options
from .output_folder import Workspace
from .quantize import quantize
from .stats import fit_flops, graph_stats, program_stats
from .tensorrt_build import compile_plan, make_profiles, plan_name, refit_plan
from .tracing import ONNXRUNTIME, STANDARD, trace_onnx, trace_torchscript
from .verify import Evidence, call_arrays, cast_inputs, compare_engine, example_inputs, record_evidence
from .weight_origins import held_weights, onnx_table, torch_table

BOUNDS = {"fp32": 3e-4, "fp16": 5e-3, "fp8": 0.3}
"""Largest relative L2 error of an engine against float32 PyTorch; fp8 of the U-Net alone."""
Report = Callable[[str, int, int], None]
"""(what is being done, steps done, steps in all)."""


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
    step, total = 0, len(options.networks) + 1

    def report_step(what: str) -> None:
        report(what, step, total)

    report_step("loading the checkpoint")
    model: Any = load_model(folder, checkpoint)
    check_scheduler(model.scheduler)
    check_scaling_factor(model.vae.config["scaling_factor"])
    image = image_statistics(model.feature_extractor, model.image_encoder)
    specs = {
        name: model_specs(model.unet, image.size, dtype, deep_cache=options.deep_cache)[name]
        for name in options.networks
        for dtype in ["float16" if options.halves(name) else "float32"]
    }
    if options.compiles:  # a shape that cannot be compiled fails before anything is exported
        make_profiles("unet", specs["unet"], options)
    report("recording what PyTorch computes", 1, total)
    defaults = model_defaults(model, options)
    missing = [name for name in options.networks if name not in workspace.finished]
    evidence = record_evidence(model, image, specs, options, defaults, missing)
    networks = dict(workspace.finished)
    for name in missing:
        if name in FEATURE_CACHE_NETWORKS:  # the U-Net's weights were given up: once more from the files
            model = load_model(folder, checkpoint)
        step = options.networks.index(name) + 1
        report_step(f"exporting {name}")
        build = NetworkBuild(name, specs[name], options, key, workspace, report_step, former)
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


def model_defaults(model: Any, options: Options) -> dict[str, Any]:
    """Settings that the model wants, the base's range of sigmas among them."""
    sigmas = {name: float(model.scheduler[name]) for name in ("sigma_min", "sigma_max")}
    return {**sigmas, **options.model_defaults}


def library_versions(networks: Mapping[str, Network]) -> dict[str, str]:
    """The versions of what exported, compared and compiled the networks."""
    modules = (torch, diffusers, transformers, onnxruntime, polygraphy)
    compilers = {network.plan.library for network in networks.values() if network.plan}
    return {
        **{module.__name__: module.__version__ for module in modules},
        **{name: version for name, _, version in (library.partition(" ") for library in compilers)},
    }


@dataclass
class NetworkBuild:
    """How one network is built."""

    name: str
    spec: EngineSpec
    options: Options
    key: str
    """Of the whole build: plans are named by it."""
    workspace: Workspace
    """Where the files are written."""
    report: Callable[[str], None]
    former: Bundle | None = None
    """A bundle whose plan takes the new weights instead of a compilation."""

    def run(self, module: nn.Module, evidence: Evidence) -> Network:
        """Build from an engine's module (`networks`), whose weights are given up."""
        flops, half = fit_flops(self.name, module, self.spec), self.options.halves(self.name)
        if half:
            module = to_float16(module, self.name)
        shape = (2, 2, 8, 16) if half else (2, 3, 16, 24)
        inputs = cast_inputs(example_inputs(self.name, self.spec, shape, seed=0), self.spec)
        layers: dict[str, tuple[int, ...]] = getattr(module, "layers", {})
        held = held_weights(module) if layers else {}
        bound = BOUNDS["fp8" if evidence.calibration else "fp16" if half else "fp32"]
        if self.options.backend == "torch":
            path = trace_torchscript(module, inputs, self.spec, self.workspace.bundle / f"{self.name}.ts")
            module.to("meta")
            self.report(f"comparing {self.name} with PyTorch")
            script = TorchEngine(path, self.spec, "cpu", None)
            counted = program_stats(script.program)
            accuracy = compare_engine(self.name, script, evidence.cases, bound, "torch")
            for_lora = self._for_lora(torch_table(layers, held))
            return Network(self.spec, (describe_file(path),), accuracy, flops, counted, for_lora=for_lora)
        dialect = STANDARD if half or self.options.compiles else ONNXRUNTIME
        files = trace_onnx(module, inputs, self.spec, self.workspace.bundle / f"{self.name}.onnx", dialect)
        accuracies = []
        if half:  # each product rounded to float16, which ONNX Runtime on a CPU does not do
            self.report(f"comparing {self.name} in float16 with PyTorch")
            engine: Engine = tensor_core_engine(module, self.spec)
            accuracies.append(compare_engine(self.name, engine, evidence.cases, BOUNDS["fp16"], "float16"))
        module.to("meta")
        if evidence.calibration:
            self.report(f"calibrating {self.name}")
            calls = [call_arrays(case, self.spec) for case in evidence.calibration]
            quantize(files, calls, self.options.margin)
        self.report(f"comparing {self.name} with PyTorch")
        engine = OnnxRuntimeEngine(files[0], self.spec, threads=None)
        accuracies.append(compare_engine(self.name, engine, evidence.cases, bound))
        accuracy = max(accuracies, key=lambda accuracy: accuracy.rel_l2)
        counted = graph_stats(onnx.load(str(files[0]), load_external_data=False))
        table = onnx_table(layers, held, files[0]) if layers else {}
        if not self.options.compiles:
            for_lora, engine_files = self._for_lora(table), tuple(map(describe_file, files))
            return Network(self.spec, engine_files, accuracy, flops, counted, for_lora=for_lora)
        compiled, plan = self._compile(files[0])
        if evidence.of_plan:
            self.report(f"comparing the plan of {self.name} with PyTorch")
            engine = open_engine(compiled, self.spec, Placement("cuda"), plan=plan)
            # TensorRT multiplies float32 as TF32, whose mantissa is float16's.
            bound = max(bound, BOUNDS["fp16"])
            accuracy = compare_engine(self.name, engine, evidence.of_plan, bound, self.options.backend)
        for_lora = self._for_lora(table, files) if plan.refittable else ()
        for path in files if not for_lora else ():
            path.unlink()
        compiled = compiled.replace(self.workspace.bundle / plan_name(self.name, self.key, plan))
        return Network(self.spec, (describe_file(compiled),), accuracy, flops, counted, plan, for_lora)

    def _for_lora(self, table: WeightTable, graph: Iterable[Path] = ()) -> tuple[File, ...]:
        """What a LoRA needs of this network, on the disk; nothing of a network that takes none."""
        if not table:
            return ()
        path = write_table(self.workspace.bundle / f"{self.name}{SUFFIX}", table)
        return tuple(map(describe_file, (path, *graph)))

    def _compile(self, graph: Path) -> tuple[Path, EnginePlan]:
        """The plan of a graph: compiled, or the former bundle's with the graph's weights."""
        library, output = open_library(self.options.backend), self.workspace.bundle / f"{self.name}.plan"
        profiles = make_profiles(self.name, self.spec, self.options)
        if self.former is not None:
            self.report(f"refitting {self.name}")
            old = (self.former.engine_path(self.name), self.former.manifest.networks[self.name].plan)
            return output, refit_plan(library, graph, self.spec, profiles, self.options.plan, old, output)

        def progress(share: float) -> None:
            self.report(f"compiling {self.name}, {share:.0%}")

        plan, timings = self.options.plan, self.workspace.timings
        return output, compile_plan(library, graph, self.spec, profiles, plan, output, progress, timings)
