"""One network at a time to the files of a bundle: exported, proven, compiled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..engines import Accuracy, Bundle, EnginePlan, EngineSpec, FlopModel, Network, Placement
from ..engines.bundle import describe_file
from ..engines.tensorrt_backend import open_engine
from ..engines.tensorrt_library import open_library
from .dialect import ONNXRUNTIME, STANDARD
from .options import Options
from .profiles import make_profiles
from .tensorrt_build import compile_plan, plan_name, refit_plan

if TYPE_CHECKING:
    from .evidence import Evidence

BOUNDS = {"fp32": 3e-4, "fp16": 5e-3, "fp8": 0.3}
"""Largest relative L2 error of an engine against float32 PyTorch; fp8 of the U-Net alone."""
Report = Callable[[str, int, int], None]
"""(what is being done, steps done, steps in all)."""


class Builder:
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
        self,
        name: str,
        module: Any,
        spec: EngineSpec,
        evidence: Evidence,
    ) -> Network:
        """Export, prove and, where the backend compiles, compile; the module's weights are given up.

        It is quantized where there is something to calibrate it on.
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
            return self._script(name, module, inputs, spec, evidence.cases, work)
        dialect = STANDARD if options.half else ONNXRUNTIME
        files = tracing.trace(module, inputs, spec, self._folder / f"{name}.onnx", dialect)
        agreements = [self._compare_half(name, module, spec, evidence.cases)] if options.half else []
        module.to("meta")
        if evidence.calibration:
            self._report(f"calibrating {name}")
            quantize.quantize(
                files, [proof.call_arrays(case, spec) for case in evidence.calibration], options.margin
            )
        self._report(f"comparing {name} with PyTorch")
        precision = "fp8" if evidence.calibration else "fp16" if options.half else "fp32"
        bound = BOUNDS[precision]
        agreements.append(proof.compare(name, files[0], spec, evidence.cases, bound))
        agreement = max(agreements, key=lambda agreement: agreement.rel_l2)
        audit, plan = audit_graph(onnx.load(str(files[0]), load_external_data=False)), None
        if options.compiles:
            compiled, plan = self._compile(name, files[0], spec)
            if evidence.own:
                self._report(f"comparing the plan of {name} with PyTorch")
                engine = open_engine(compiled, spec, Placement("cuda"), plan=plan)
                agreement = proof.compare_engine(name, engine, evidence.own, bound, options.backend)
            for path in files:
                path.unlink()
            files = [compiled.replace(self._folder / plan_name(name, self._key, plan))]
        return Network(spec, tuple(describe_file(path) for path in files), agreement, work, audit, plan)

    def _compare_half(self, name: str, module: Any, spec: EngineSpec, cases: list[Any]) -> Accuracy:
        """What is lost where each product is rounded to float16, which ONNX Runtime on a CPU does not do."""
        from . import proof
        from .tensor_cores import TensorCoreEngine

        self._report(f"comparing {name} in float16 with PyTorch")
        return proof.compare_engine(
            name, TensorCoreEngine(module, spec), cases, BOUNDS["fp16"], judge="float16"
        )

    def _script(
        self, name: str, module: Any, inputs: Any, spec: EngineSpec, cases: list[Any], work: FlopModel
    ) -> Network:
        """A TorchScript file, proven by the engine that will run it."""
        from ..engines.torch_backend import TorchEngine
        from . import proof, scripting

        path = scripting.script(module, inputs, spec, self._folder / f"{name}.ts")
        module.to("meta")
        self._report(f"comparing {name} with PyTorch")
        engine = TorchEngine(path, spec, "cpu", None)
        audit = scripting.audit_program(engine.program)
        agreement = proof.compare_engine(name, engine, cases, BOUNDS[str(self._options.precision)], "torch")
        return Network(spec, (describe_file(path),), agreement, work, audit)

    def _compile(self, name: str, graph: Path, spec: EngineSpec) -> tuple[Path, EnginePlan]:
        library = open_library(self._options.backend)
        profiles = make_profiles(name, spec, self._options)
        unnamed = self._folder / f"{name}.plan"
        if self._former is not None:
            self._report(f"refitting {name}")
            former = (self._former.engine_path(name), self._former.manifest.networks[name].plan)
            plan = refit_plan(library, graph, spec, profiles, self._options.plan, former, unnamed)
        else:
            plan = compile_plan(
                library,
                graph,
                spec,
                profiles,
                self._options.plan,
                unnamed,
                lambda share: self._report(f"compiling {name}, {share:.0%}"),
            )
        return unnamed, plan
