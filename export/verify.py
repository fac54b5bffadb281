"""Proof that an engine computes what its PyTorch original does, on inputs of the kind that it will see.

`record_evidence` keeps what the originals compute before they are rewritten: at several shapes, of the U-Net also
along a denoising, and where a plan's GPU is here at the shapes of the plan. `compare_engine` runs an engine on such
cases, bound as the runtime binds it, in polygraphy's comparison.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata
from polygraphy.comparator import Comparator, IterationResult, RunResults
from polygraphy.logger import G_LOGGER
from torch import Tensor

from ..engines import Accuracy, Array, Engine, EngineSpec, ImageStatistics, Profile
from ..errors import ExportError
from ..pose import draw_poses
from ..settings import SIZE_MULTIPLE
from ..training.checkpoints import image_statistics
from ..training.synthetic import make_clip
from ..training.torch_animator import Encoders, network_functions, torch_animator
from .options import Options
from .stats import Shape, input_shapes
from .tensorrt_build import make_profiles, runs_here

Inputs = dict[str, Tensor]
# One frame and several, one row and several, both orientations. Not 8x8: see `LEAST_LATENTS`.
SHAPES: tuple[Shape, ...] = ((1, 1, 8, 16), (2, 5, 16, 8), (3, 4, 8, 24))
STEPS = 5
"""Of the denoising that the U-Net is compared on."""
CALIBRATION = ((1, 8), (2, 6))
"""(seed, steps) of the denoisings that float8 is calibrated on; it is compared on another."""

DEEPEST = (SIZE_MULTIPLE // 8) ** 2
"""Latent positions that are one at the U-Net's deepest level."""
LEAST_LATENTS = 4 * DEEPEST
"""Latent positions of a frame. With fewer, norms at the deepest level of a narrow network are over a few numbers, or
one, and magnify rounding: errors in float16 are then 8e-3 at 2 deepest positions and 0.3 at 1, instead of 3e-3."""
MOST_LATENTS = 384
"""Latent positions of a frame: 128x192 pixels."""
MOST_FRAMES = 8
MOST_WORK = 8e11
"""Weights x frames x latent positions of a call. 1.5 billion weights get 4 frames of 64x128: minutes on a CPU."""
MOST_TOKENS = 2**18
"""Rows x frames x latent positions that PyTorch computes for one plan, all profiles together: 16 frames of 576x1024
in one row are 147456. Larger profiles are left to what ONNX Runtime says of the graph."""
CANVAS = 512
"""Of poses, where the settings name none."""
UNET_INPUTS = ("latents", "timestep", "embedding", "time_ids", "pose")


@dataclass(frozen=True)
class Case:
    """Inputs of one call and what the original computed."""

    inputs: Inputs
    outputs: tuple[Tensor, ...]


@dataclass
class Evidence:
    """The cases of one network."""

    cases: list[Case]
    """At several shapes; of the U-Net also along a denoising."""
    calibration: list[Case] = field(default_factory=list)
    """Where it is quantized."""
    of_plan: list[Case] = field(default_factory=list)
    """At the shapes of its plan, where that runs here."""


# --- what PyTorch computes -------------------------------------------------------------------------------


def record_evidence(
    model: Any,
    image: ImageStatistics,
    specs: Mapping[str, EngineSpec],
    options: Options,
    defaults: Mapping[str, Any],
    names: Iterable[str],
) -> dict[str, Evidence]:
    """What the networks `names` compute; `defaults` are the bundle's settings."""
    functions, plans_run = originals(model), options.compiles and runs_here(options)
    weights = sum(tensor.numel() for tensor in model.unet.parameters())
    small = clip_shape(weights, options.sizes[0], defaults["segment"])

    def denoise(size: tuple[int, int], frames: int, steps: int, seed: int = 0) -> list[Case]:
        return record_trajectory(model, image, defaults, size, frames, steps=steps, seed=seed)

    found = {}
    for name in names:
        examples = [example_inputs(name, specs[name], shape, seed) for seed, shape in enumerate(SHAPES)]
        found[name] = evidence = Evidence([record_case(functions[name], inputs) for inputs in examples])
        if name == "unet":
            evidence.cases += denoise(*small, STEPS)
            for seed, steps in CALIBRATION if options.precision == "fp8" else ():
                evidence.calibration += denoise(*small, steps, seed)
        if plans_run:
            profiles = make_profiles(name, specs[name], options)
            evidence.of_plan = record_plan_cases(name, specs[name], functions[name], profiles, denoise)
    return found


def originals(model: Any) -> dict[str, Callable[..., Any]]:
    """The networks as PyTorch and diffusers compute them, with the engines' inputs by name."""
    cut = model.unet.up_blocks[-2]
    image = image_statistics(model.feature_extractor, model.image_encoder)
    encoders = Encoders(model.vae, model.image_encoder, image)
    functions = network_functions(model.unet, model.pose_net, encoders)

    def run_caching(**inputs: Tensor) -> tuple[Tensor, Tensor]:
        kept: list[Tensor] = []
        with cut.register_forward_hook(lambda _, __, output: kept.append(output)):
            prediction = functions["unet"](**inputs)
        return prediction, kept[0].reshape(*prediction.shape[:2], *kept[0].shape[1:])

    def run_shallow(cached_features: Tensor, **inputs: Tensor) -> Tensor:
        with cut.register_forward_hook(lambda *_: cached_features.flatten(0, 1)):
            return functions["unet"](**inputs)

    return {**functions, "unet_caching": run_caching, "unet_shallow": run_shallow}


def example_inputs(network: str, spec: EngineSpec, shape: Shape, seed: int) -> Inputs:
    """Inputs of one network at one shape, float32, seeded."""
    rows, generator = shape[0], torch.Generator().manual_seed(seed)
    shapes = input_shapes(spec, shape, batch=rows)
    inputs = {name: torch.randn(sizes, generator=generator) for name, sizes in shapes.items()}
    if network.startswith("unet"):
        inputs["timestep"] = torch.rand(rows, generator=generator) * 3.2 - 1.55  # 0.25 ln sigma
        inputs["time_ids"] = torch.tensor([[6.0, 127.0, 0.02 * row] for row in range(rows)])
    elif network in ("pose_net", "vae_encoder"):
        inputs = {name: value.tanh() for name, value in inputs.items()}  # pictures lie in [-1, 1]
    elif network == "vae_decoder":
        inputs = {name: value * 5.0 for name, value in inputs.items()}  # unit latents over the scaling factor
    return inputs


def record_case(original: Callable[..., Any], inputs: Inputs) -> Case:
    """A call of the original."""
    with torch.inference_mode():
        outputs = original(**inputs)
    return Case(inputs, outputs if isinstance(outputs, tuple) else (outputs,))


def record_trajectory(
    model: Any,
    image: ImageStatistics,
    defaults: Mapping[str, Any],
    size: tuple[int, int],
    frames: int,
    *,
    steps: int = STEPS,
    seed: int = 0,
) -> list[Case]:
    """The U-Net's calls along a denoising by the runtime's own loop: a case for each row of each step.

    `defaults` are the bundle's: sigmas, schedule, guidance, noise and segment are theirs. The number of steps is
    not, so that few steps cover their whole range. `size` is (width, height), and the clip is one segment of
    `frames` frames. Person, dance and noise are drawn from `seed`.
    """
    width, height = size
    encoders = Encoders(model.vae, model.image_encoder, image)
    animator = torch_animator(model.unet, model.pose_net, encoders, size, defaults)
    settings = replace(
        animator.settings(), steps=steps, seed=seed, segment=frames, reuse_interval=1, size=None,
        overlap=min(animator.settings().overlap, frames - 1),
    )  # fmt: skip
    clip = make_clip(seed, frames - 1, height, width)
    canvas = defaults.get("canvas") or CANVAS
    poses = [draw_poses(some, height, width, canvas) for some in (clip.reference_pose, clip.observed)]
    cases: list[Case] = []

    def keep(_: Any, given: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
        inputs = {name: value.clone() for name, value in zip(UNET_INPUTS, given, strict=True)}
        cases.append(Case(inputs, (outputs[0].clone(),)))

    with closing(animator), model.unet.register_forward_hook(keep):
        animator.sample(clip.reference, np.concatenate(poses), settings)
    return cases


def clip_shape(weights: int, size: tuple[int, int], segment: int) -> tuple[tuple[int, int], int]:
    """(width, height) of the size most like `size` in shape that the limits above allow, and the frames of a clip.

    It is larger than `size` where that has too few latent positions.
    """
    most = min(MOST_LATENTS, MOST_WORK / weights / 4)
    whole = [side // SIZE_MULTIPLE for side in size]
    within = [range(1, max(sides, LEAST_LATENTS // DEEPEST) + 1) for sides in whole]
    fitting = [
        (wide, high) for wide, high in product(*within) if LEAST_LATENTS <= wide * high * DEEPEST <= most
    ] or [(1, 2), (2, 1)]  # so many weights are no narrow network

    def unlike(sides: tuple[int, int]) -> tuple[float, int]:
        return abs(math.log(sides[0] * whole[1] / sides[1] / whole[0])), -sides[0] * sides[1]

    wide, high = min(fitting, key=unlike)
    frames = min(segment, MOST_FRAMES, int(MOST_WORK / weights / (wide * high * DEEPEST)))
    return (wide * SIZE_MULTIPLE, high * SIZE_MULTIPLE), max(frames, 2)


def record_plan_cases(
    name: str,
    spec: EngineSpec,
    original: Callable[..., Any],
    profiles: Iterable[Profile],
    trajectory: Callable[[tuple[int, int], int, int], list[Case]],
) -> list[Case]:
    """Calls of the original at the usual shape of each profile, the smallest first, as far as a CPU computes them.

    The U-Net's rows are those of a denoising, from the first sigma to the last: `trajectory` records one of a size
    (width, height), a number of frames and of steps. Pictures that are a single position at the U-Net's deepest
    level are left out: norms there magnify rounding (`LEAST_LATENTS`).
    """
    cases, left = [], MOST_TOKENS
    for seed, shape in enumerate(sorted(map(usual_shape, profiles), key=math.prod)):
        rows, frames, height, width = shape
        if name.startswith("unet") and height * width <= DEEPEST:
            continue
        left -= math.prod(shape)
        if left < 0:
            break
        if name == "unet":
            cases.append(stack(trajectory((width * 8, height * 8), frames, rows), rows))
        else:
            cases.append(record_case(original, example_inputs(name, spec, shape, seed)))
    return cases


def usual_shape(profile: Profile) -> Shape:
    """The shape that a profile is the fastest at; 1 where a network has no such dimension."""
    sizes = {"rows": 1, "frames": 1, "height": 8, "width": 8} | profile.sizes(1)
    height, width = (sizes.get(f"latent_{side}", sizes[side] // 8) for side in ("height", "width"))
    return sizes["rows"], sizes["frames"], height, width


def stack(cases: list[Case], rows: int) -> Case:
    """One case of `rows` rows out of cases of one row each, spread over them evenly."""
    chosen = [cases[index * len(cases) // rows] for index in range(rows)]
    inputs = {name: torch.cat([case.inputs[name] for case in chosen]) for name in chosen[0].inputs}
    return Case(inputs, tuple(map(torch.cat, zip(*(case.outputs for case in chosen), strict=True))))


# --- an engine against it --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Deviation:
    """How far an output of an engine is from what was expected, whose L2 norm is `norm`."""

    max_abs: float
    rel_l2: float
    """The L2 norm of the difference over `norm`."""
    norm: float


def compare_engine(
    network: str, engine: Engine, cases: Sequence[Case], bound: float, runner: str = "onnxruntime"
) -> Accuracy:
    """Run an engine of the backend `runner` on every case, and close it.

    Raises `ExportError` if the worst relative error exceeds `bound`, or if every expected output is zero.
    """
    names = [tensor.name for tensor in engine.spec.outputs]
    expected = [dict(zip(names, map(Tensor.numpy, case.outputs), strict=True)) for case in cases]
    with closing(engine):
        calls = (call_arrays(case, engine.spec) for case in cases)
        found = compare_outputs(engine, runner, calls, expected)
    if not any(one.norm for one in found):
        raise ExportError(
            f"{network} computes nothing but zeros in PyTorch: no engine can be proven by that.",
            remedy="Give the checkpoint of a trained model.",
            field="checkpoint",
        )
    max_abs = float(np.max([one.max_abs for one in found]))  # np.max keeps a NaN
    rel_l2 = float(np.max([one.rel_l2 for one in found]))
    if not rel_l2 <= bound:  # nor is a NaN
        raise ExportError(
            f"{network} does not agree with PyTorch: relative L2 error {rel_l2:.2e} is over {bound:.0e} "
            f"(largest difference {max_abs:.2e}).",
            remedy="Check the checkpoint for values that overflow; please report it if they do not.",
        )
    return Accuracy(max_abs=max_abs, rel_l2=rel_l2, bound=bound, cases=len(cases), runner=runner)


def compare_outputs(
    engine: Engine, name: str, calls: Iterable[Mapping[str, Array]], expected: Sequence[Mapping[str, Array]]
) -> list[Deviation]:
    """The deviations of an engine called `name`, one for each output of each call.

    `calls` are read one by one, and an output is released once it is compared. Raises `EngineError` if the engine
    fails, `ExportError` if an output has another shape than was expected.
    """
    recorded = [IterationResult(dict(outputs), runtime=0.0, runner_name="PyTorch") for outputs in expected]

    def compare(wanted: IterationResult, found: IterationResult) -> dict[str, Deviation]:
        return {output: measure(output, wanted[output], found[output]) for output in wanted}

    with G_LOGGER.verbosity(), np.errstate(over="ignore", invalid="ignore"):  # our errors say what is wrong
        run = Comparator.run([EngineRunner(engine, name)], calls, streaming=True)
        runs = [RunResults([("PyTorch", recorded)]), run]
        (result,) = Comparator.compare_accuracy(runs, compare_func=compare)
    return [deviation for found in result["PyTorch", name] for deviation in found.values()]


class EngineRunner(BaseRunner):  # type: ignore[misc]
    """An engine of any backend as polygraphy's runner, bound as the runtime binds it; who opened it closes it."""

    def __init__(self, engine: Engine, name: str) -> None:
        super().__init__(name=name)
        self._engine = engine

    def get_input_metadata_impl(self) -> TensorMetadata:
        """Of the inputs; a free size is None."""
        metadata = TensorMetadata()
        for tensor in self._engine.spec.inputs:
            shape = [None if isinstance(dim, str) else dim for dim in tensor.shape]
            metadata.add(tensor.name, np.dtype(tensor.dtype), shape)
        return metadata

    def infer_impl(self, feed_dict: Mapping[str, Array]) -> dict[str, Array]:
        """One call, each output in an array of its own."""
        outputs = make_outputs(self._engine.spec, feed_dict)
        call = self._engine.bind(feed_dict, outputs)
        start = time.perf_counter()
        call()
        self.inference_time = time.perf_counter() - start  # polygraphy warns of runners that do not set it
        return outputs


def measure(name: str, expected: Array, output: Array) -> Deviation:
    """The deviation of one output, in float64."""
    if output.shape != expected.shape:
        raise ExportError(f"{name} has the shape {output.shape}, PyTorch's {expected.shape}.")
    difference = output.astype(np.float64) - expected
    norm = float(np.linalg.norm(expected))
    rel_l2 = float(np.linalg.norm(difference)) / max(norm, 1e-12)
    return Deviation(float(np.abs(difference).max()), rel_l2, norm)


def make_outputs(spec: EngineSpec, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Arrays for the outputs of a call; a latent position is 8x8 pixels."""
    sizes: dict[Any, int] = {}
    for tensor in spec.inputs:
        sizes |= zip(tensor.shape, inputs[tensor.name].shape, strict=True)
    for side in ("height", "width"):
        if side in sizes:
            sizes[f"latent_{side}"] = sizes[side] // 8
        elif f"latent_{side}" in sizes:
            sizes[side] = sizes[f"latent_{side}"] * 8
    return {tensor.name: np.empty(tensor.sized(sizes), tensor.dtype) for tensor in spec.outputs}


def call_arrays(case: Case, spec: EngineSpec) -> dict[str, Array]:
    """A case's inputs as an engine takes them."""
    inputs = cast_inputs(case.inputs, spec)
    return {name: np.ascontiguousarray(value.numpy()) for name, value in inputs.items()}


def cast_inputs(inputs: Inputs, spec: EngineSpec) -> Inputs:
    """The inputs in the dtypes of a spec."""
    return {tensor.name: inputs[tensor.name].to(getattr(torch, tensor.dtype)) for tensor in spec.inputs}
