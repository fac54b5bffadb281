"""One network to the files of a bundle: exported, proven and, where the backend compiles, compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from torch import nn

from ..engines import Accuracy, Bundle, EnginePlan, EngineSpec, FlopModel, Network, Placement
from ..engines.bundle import describe_file
from ..engines.onnxruntime_backend import OnnxRuntimeEngine
from ..engines.tensorrt_backend import open_engine
from ..engines.tensorrt_library import open_library
from ..engines.torch_backend import TorchEngine
from .float16 import TensorCoreEngine, to_float16
from .options import Options
from .output_folder import Workspace
from .quantize import quantize
from .stats import fit_flops, graph_stats, program_stats
from .tensorrt_build import compile_plan, make_profiles, plan_name, refit_plan
from .tracing import ONNXRUNTIME, STANDARD, trace_onnx, trace_torchscript
from .verify import Evidence, call_arrays, cast_inputs, compare_engine, example_inputs

BOUNDS = {"fp32": 3e-4, "fp16": 5e-3, "fp8": 0.3}
"""Largest relative L2 error of an engine against float32 PyTorch; fp8 of the U-Net alone."""


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
        flops = fit_flops(self.name, module, self.spec)
        if self.options.half:
            module = to_float16(module, self.name)
        shape = (2, 2, 8, 16) if self.options.half else (2, 3, 16, 24)
        inputs = cast_inputs(example_inputs(self.name, self.spec, shape, seed=0), self.spec)
        if self.options.backend == "torch":
            return self._script(module, inputs, evidence, flops)
        dialect = STANDARD if self.options.half else ONNXRUNTIME
        files = trace_onnx(module, inputs, self.spec, self.workspace.bundle / f"{self.name}.onnx", dialect)
        accuracies = [self._judge_float16(module, evidence)] if self.options.half else []
        module.to("meta")
        accuracies.append(self._judge_graph(files, evidence))
        accuracy = max(accuracies, key=lambda accuracy: accuracy.rel_l2)
        counted = graph_stats(onnx.load(str(files[0]), load_external_data=False))
        if not self.options.compiles:
            return Network(self.spec, tuple(map(describe_file, files)), accuracy, flops, counted)
        compiled, plan = self._compile(files[0])
        if evidence.of_plan:
            accuracy = self._judge_plan(compiled, plan, evidence)
        for path in files:
            path.unlink()
        compiled = compiled.replace(self.workspace.bundle / plan_name(self.name, self.key, plan))
        return Network(self.spec, (describe_file(compiled),), accuracy, flops, counted, plan)

    def _script(self, module: nn.Module, inputs: Any, evidence: Evidence, flops: FlopModel) -> Network:
        """A TorchScript file, proven by the engine that will run it."""
        path = trace_torchscript(module, inputs, self.spec, self.workspace.bundle / f"{self.name}.ts")
        module.to("meta")
        self.report(f"comparing {self.name} with PyTorch")
        engine = TorchEngine(path, self.spec, "cpu", None)
        counted = program_stats(engine.program)
        bound = BOUNDS[str(self.options.precision)]
        accuracy = compare_engine(self.name, engine, evidence.cases, bound, "torch")
        return Network(self.spec, (describe_file(path),), accuracy, flops, counted)

    def _bound(self, evidence: Evidence) -> float:
        return BOUNDS["fp8" if evidence.calibration else "fp16" if self.options.half else "fp32"]

    def _judge_float16(self, module: nn.Module, evidence: Evidence) -> Accuracy:
        """What is lost where each product is rounded to float16, which ONNX Runtime on a CPU does not do."""
        self.report(f"comparing {self.name} in float16 with PyTorch")
        engine = TensorCoreEngine(module, self.spec)
        return compare_engine(self.name, engine, evidence.cases, BOUNDS["fp16"], "float16")

    def _judge_graph(self, files: list[Path], evidence: Evidence) -> Accuracy:
        """What ONNX Runtime answers, after the graph is quantized where there are calls to calibrate it on."""
        if evidence.calibration:
            self.report(f"calibrating {self.name}")
            calls = [call_arrays(case, self.spec) for case in evidence.calibration]
            quantize(files, calls, self.options.margin)
        self.report(f"comparing {self.name} with PyTorch")
        engine = OnnxRuntimeEngine(files[0], self.spec, threads=None)
        return compare_engine(self.name, engine, evidence.cases, self._bound(evidence))

    def _judge_plan(self, path: Path, plan: EnginePlan, evidence: Evidence) -> Accuracy:
        """What the plan itself answers on this machine's GPU."""
        self.report(f"comparing the plan of {self.name} with PyTorch")
        engine = open_engine(path, self.spec, Placement("cuda"), plan=plan)
        judge = self.options.backend
        return compare_engine(self.name, engine, evidence.of_plan, self._bound(evidence), judge)

    def _compile(self, graph: Path) -> tuple[Path, EnginePlan]:
        """The plan of a graph: compiled, or the former bundle's with the graph's weights."""
        library, output = open_library(self.options.backend), self.workspace.bundle / f"{self.name}.plan"
        profiles = make_profiles(self.name, self.spec, self.options)
        if self.former is not None:
            self.report(f"refitting {self.name}")
            old = (self.former.engine_path(self.name), self.former.manifest.networks[self.name].plan)
            return output, refit_plan(library, graph, self.spec, profiles, self.options.plan, old, output)
        return output, compile_plan(
            library,
            graph,
            self.spec,
            profiles,
            self.options.plan,
            output,
            lambda share: self.report(f"compiling {self.name}, {share:.0%}"),
            self.workspace.timings,
        )
