"""TensorRT and TensorRT-RTX on this machine's GPU: whichever is installed, on the golden networks.

The golden networks are built for this GPU, run against the reference, refitted with other weights, run with their
weights in the host's memory, and asked for their layers. TensorRT-RTX offers no code for data-centre GPUs; whether
a plan for other GPUs loads there is asked first, and the answer is a figure, no failure.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gpu_golden import BOUNDS, CASES, CHECKPOINT, golden_bundle, golden_errors, relative_error, run_case
from gpu_place import Figures, Part, named

from mimicmotion_trt import Animator
from mimicmotion_trt.engines import Bundle, open_engine
from mimicmotion_trt.engines.cuda import Gpu
from mimicmotion_trt.engines.plan import FLAVOURS
from mimicmotion_trt.engines.tensorrt_library import EXTRAS, open_library
from mimicmotion_trt.errors import BundleError, MimicMotionError
from mimicmotion_trt.export.options import PlanOptions

FLOAT8 = 89
"""The first compute capability that multiplies in float8."""


@dataclass(frozen=True)
class Flavour:
    """One of the two libraries, and what its plans on this GPU are built for."""

    name: str
    capability: str
    """Of the GPU: `SM90`."""
    work: Path

    @property
    def own(self) -> tuple[str, ...]:
        """The capability that TensorRT-RTX is asked for; none where it is not asked, or offers no such one."""
        if self.name != "tensorrt-rtx":
            return ()
        offered = hasattr(open_library(self.name).api.ComputeCapability, self.capability)
        return (self.capability,) if offered else ()

    def built(self, kind: str, precision: str = "fp16", **more: Any) -> Path:
        """A golden bundle, built once; `kind` names its folder."""
        plan = replace(more.pop("plan", PlanOptions()), capabilities=self.own)
        folder = self.work / f"golden-{self.name}-{kind}"
        return golden_bundle(folder, self.name, precision, plan=plan, **more)

    def parts(self) -> Mapping[str, Part]:
        """What is tried, each on its own."""
        parts: dict[str, Part] = {"golden": self.golden, "layers": self.layers, "streaming": self.streaming}
        if self.name == "tensorrt" or self.own:
            parts["refit"] = self.refit
        if int(self.capability[2:]) >= FLOAT8:
            parts["fp8"] = self.fp8
        if self.name == "tensorrt-rtx":
            guarded = {name: partial(self.where_it_runs, part) for name, part in parts.items()}
            parts = {"portable": self.portable, **guarded}
        return {f"{self.name} {name}": partial(named, self.name, part) for name, part in parts.items()}

    def portable(self) -> Iterator[Figures]:
        """Whether a plan for the usual GPUs, built without regard to this one, loads here."""
        yield {"portable_loads": loads(self.built_portable()), "offers_this_gpu": bool(self.own)}

    def built_portable(self) -> Path:
        """The golden networks for the usual GPUs."""
        return golden_bundle(self.work / f"golden-{self.name}-portable", self.name, "fp16")

    def where_it_runs(self, part: Part) -> Iterator[Figures]:
        """A part of a library that offers code for this GPU, or whose portable plan loads; else why there is none."""
        answer = "yes" if self.own else loads(self.built_portable())
        if answer == "yes":
            yield from part()
        else:
            yield {"runs_here": answer}

    def golden(self) -> Iterator[Figures]:
        """The reference's runs, in captured graphs."""
        yield {f"{case}_fp16": error for case, error in golden_errors(self.built("fp16"), "fp16").items()}

    def fp8(self) -> Iterator[Figures]:
        """The same with a U-Net that multiplies in float8."""
        yield {f"{case}_fp8": error for case, error in golden_errors(self.built("fp8", "fp8"), "fp8").items()}

    def layers(self) -> Iterator[Figures]:
        """What the U-Net's plan has after all fusions."""
        engine: Any = open_engine(Bundle.load(self.built("fp16")), "unet")
        try:
            found = engine.layers()
        finally:
            engine.close()
        yield {"layers": found.count, "layers_in_float32": len(found.wide), "kinds": dict(found.kinds)}

    def streaming(self) -> Iterator[Figures]:
        """The U-Net with all weights that can be streamed in the host's memory, against the same at home."""
        bundle = Bundle.load(self.built("streaming", plan=PlanOptions(weight_streaming=True)))
        answers = [prediction_of(bundle, budget) for budget in (None, 0)]
        error = relative_error(answers[1], answers[0])
        if not error <= BOUNDS["fp16"]:
            raise AssertionError(f"with streamed weights the U-Net answers otherwise: {error:.1e}")
        yield {"streamed_rel_l2": error}

    def refit(self) -> Iterator[Figures]:
        """A bundle of other weights whose plans are those of the first, against PyTorch on these weights."""
        other, open_for = changed_checkpoint(self.work / "other.pth"), PlanOptions(refit=True)
        former = self.built("refit", plan=open_for)
        taken = self.built("refitted", plan=open_for, checkpoint=other, refit_from=former)
        torch = golden_bundle(self.work / "golden-torch-other", "torch", "fp32", checkpoint=other)
        before, after, expected = (latents_of(bundle) for bundle in (former, taken, torch))
        error, moved = relative_error(after, expected), relative_error(before, expected)
        if not error <= min(BOUNDS["fp16"], moved / 2):
            raise AssertionError(
                f"refitted plans are {error:.1e} off, and those of the old weights {moved:.1e}"
            )
        yield {"refitted_rel_l2": error, "not_refitted_rel_l2": moved}


def installed() -> list[str]:
    """The libraries that are here; raises `BundleError` if there is none."""
    found = [name for name, module in FLAVOURS.items() if importlib.util.find_spec(module)]
    if not found:
        extras = " or ".join(f"'mimicmotion-trt[{extra}]'" for extra in EXTRAS.values())
        raise BundleError("neither TensorRT nor TensorRT-RTX is installed.", remedy=f"pip install {extras}")
    return found


def tensorrt_parts(gpu: Gpu, work: Path) -> Mapping[str, Part]:
    """The parts of each library that is installed."""
    flavours = [Flavour(name, gpu.capability, work) for name in installed()]
    return {name: part for flavour in flavours for name, part in flavour.parts().items()}


def loads(bundle: Path) -> str:
    """`yes`, or why a bundle's plans do not load on this machine."""
    try:
        Animator.load(bundle).close()
    except MimicMotionError as error:
        return f"no: {error.message}"
    return "yes"


def prediction_of(bundle: Bundle, budget: int | None) -> Any:
    """The U-Net's answer to random inputs, with at most `budget` bytes of weights on the GPU; None: as fits best."""
    engine: Any = open_engine(bundle, "unet")
    try:
        engine.stream_weights(budget)
        chance = np.random.default_rng(0)
        sizes = {"rows": 1, "frames": 8, "latent_height": 8, "latent_width": 16}
        inputs, outputs = (
            {
                tensor.name: chance.normal(
                    size=[sizes[d] if isinstance(d, str) else d for d in tensor.shape]
                ).astype(tensor.dtype)
                for tensor in tensors
            }
            for tensors in (engine.spec.inputs, engine.spec.outputs)
        )
        engine.bind(inputs, outputs)()
        (answer,) = outputs.values()
        return answer.astype(np.float32)
    finally:
        engine.close()


def latents_of(bundle: Path) -> Any:
    """The last latents of one golden run."""
    with Animator.load(bundle) as animator:
        return run_case(animator, CASES[-1])


def changed_checkpoint(path: Path) -> Path:
    """The golden checkpoint with other weights in the U-Net, written once."""
    if not path.exists():
        import torch

        state = torch.load(CHECKPOINT, weights_only=True)
        changed = {key: value * 1.02 if key.startswith("unet.") else value for key, value in state.items()}
        beside = path.with_name(f".{path.name}")
        torch.save(changed, beside)
        beside.replace(path)
    return path
