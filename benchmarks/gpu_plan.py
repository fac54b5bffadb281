"""The real U-Net as a plan of TensorRT or TensorRT-RTX: exported, compiled, and run in the loops of `gpu_real.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from gpu_loops import Ours
from gpu_networks import Networks, Scale, random_clip
from gpu_place import Figures, Part, Place, tidied
from gpu_real import RealLoops
from gpu_tensorrt import Flavour, installed

from mimicmotion_trt.cuda.launches import open_device
from mimicmotion_trt.engines import Engine, Placement
from mimicmotion_trt.engines.cuda import Gpu
from mimicmotion_trt.engines.plan import read_plan
from mimicmotion_trt.engines.tensorrt_library import open_library
from mimicmotion_trt.errors import BundleError
from mimicmotion_trt.export.options import Options, PlanOptions
from mimicmotion_trt.export.profiles import make_profiles


@dataclass(frozen=True)
class RealPlan:
    """The U-Net of a scale as a plan for this GPU, in files that are kept between calls."""

    place: Place
    scale: Scale
    frames: int
    flavour: str
    capabilities: tuple[str, ...]
    work: Path

    @property
    def graph(self) -> Path:
        """The ONNX file for any number of frames, its weights beside it."""
        return self.work / "unet" / "unet.onnx"

    @property
    def plan(self) -> Path:
        """The plan, what it is for beside it."""
        return self.graph.with_name(f"{self.flavour}-{self.frames}.plan")

    def parts(self) -> Mapping[str, Part]:
        """Export and compile, which take minutes and are done once; then a step and whole videos."""
        loops = RealLoops(self.place, self.scale, self.frames)
        parts: dict[str, Part] = {
            "export": self.export,
            "compile": self.compile,
            "matmul": loops.matmul,
            "step": self.step,
            "plain-video": loops.plain_video,
            "video": self.video,
        }
        return tidied(self.place, parts)

    def export(self) -> Iterator[Figures]:
        """The graph, written beside and renamed."""
        from mimicmotion_trt.export import proof, tracing
        from mimicmotion_trt.export.dialect import STANDARD

        if not self.graph.exists():
            spec, beside = (
                self.scale.specs()["unet"],
                self.graph.parent.with_name(f".{self.graph.parent.name}"),
            )
            beside.mkdir(parents=True, exist_ok=True)
            inputs = proof.cast_inputs(proof.example_inputs("unet", spec, (2, 2, 8, 16), seed=0), spec)
            given = {name: values.to(self.place.torch) for name, values in inputs.items()}
            module = Networks(self.scale, self.place.torch).folded()
            tracing.trace(module, given, spec, beside / self.graph.name, STANDARD)
            beside.replace(self.graph.parent)
        yield {"graph_gb": sum(path.stat().st_size for path in self.graph.parent.glob("unet.*")) / 1e9}

    def compile(self) -> Iterator[Figures]:
        """The plan for one row."""
        from mimicmotion_trt.export.tensorrt_build import compile_plan

        about = self.plan.with_suffix(".json")
        if not about.exists():
            options = self.options()
            library, spec = open_library(self.flavour), self.scale.specs()["unet"]
            profiles = make_profiles("unet", spec, options)
            made = compile_plan(library, self.graph, spec, profiles, options.plan, self.plan)
            about.write_text(json.dumps(asdict(made)))
        yield {"plan_gb": self.plan.stat().st_size / 1e9}

    def options(self) -> Options:
        """What the plan is built with."""
        high, wide = self.scale.cells
        return Options(
            backend=self.flavour,
            precision="fp16",
            sizes=((8 * wide, 8 * high),),
            segment=self.frames,
            rows=(1,),
            plan=PlanOptions(capabilities=self.capabilities),
        )

    def step(self) -> Iterator[Figures]:
        """The captured step on the plan, against the plain PyTorch loop."""
        with self.opened() as (engine, loops):
            clip = random_clip(self.scale, self.frames)
            with closing(Ours(loops.place, self.scale, engine, clip, loops.exact, (1,), graphs=True)) as loop:
                yield from loops.steps_of(loop, "tensorrt", graphs=True)

    def video(self) -> Iterator[Figures]:
        """Whole videos with the plan as the U-Net and everything else as in the loops on PyTorch."""
        with self.opened() as (engine, loops):
            yield from loops.videos(engine)

    def gaps(self) -> Iterator[Figures]:
        """How much of the captured step the GPU is idle; the plan is made if it is not there."""
        for _ in (*self.export(), *self.compile()):
            pass
        with self.opened() as (engine, loops):
            yield from loops.gaps(engine)

    @contextmanager
    def opened(self) -> Iterator[tuple[Engine, RealLoops]]:
        """The plan, and the loops on its stream."""
        engine = self.engine()
        gpu = engine.gpu
        place = (
            self.place if gpu is None else replace(self.place, gpu=gpu, device=open_device(gpu, "float16"))
        )
        try:
            yield engine, RealLoops(place, self.scale, self.frames)
        finally:
            engine.close()

    def engine(self) -> Engine:
        """The plan on the GPU."""
        from mimicmotion_trt.engines.tensorrt_backend import open_engine as open_plan

        plan = read_plan(json.loads(self.plan.with_suffix(".json").read_text()))
        device = f"cuda:{self.place.torch.index or 0}"
        spec = self.scale.specs()["unet"]
        return open_plan(self.plan, spec, Placement(device), plan=plan)


def real_plan(place: Place, scale: Scale, frames: int, gpu: Gpu, work: Path) -> RealPlan:
    """Of TensorRT, or of TensorRT-RTX where that alone is installed; raises `BundleError` if not for this GPU."""
    for name in installed():
        own = Flavour(name, gpu.capability, work).own
        if own or name == "tensorrt":
            return RealPlan(place, scale, frames, name, own, work)
    raise BundleError(
        f"TensorRT-RTX offers no code for {gpu.capability}.", remedy="pip install 'mimicmotion-trt[gpu]'"
    )
