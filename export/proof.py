"""Proof that an engine computes what its PyTorch original does, on inputs of the kind that it will see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..engines import Accuracy, Array, Engine, EngineSpec
from ..engines.onnxruntime_backend import OnnxRuntimeEngine
from ..errors import ExportError
from .comparison import compare_answers

Inputs = dict[str, Tensor]

# (rows, frames, cells high, cells wide): one frame and several, one row and several, both orientations. Not 8x8,
# where norms at the deepest level are over a single cell: in a narrow network they are then two numbers a group
# or one, and magnify rounding (PyTorch itself is 1e-5 from float64 there).
SHAPES = ((1, 1, 8, 16), (2, 5, 16, 8), (3, 4, 8, 24))


@dataclass(frozen=True)
class Case:
    """Inputs of one call and what the original answered."""

    inputs: Inputs
    answers: tuple[Tensor, ...]


def example_inputs(network: str, spec: EngineSpec, shape: tuple[int, int, int, int], seed: int) -> Inputs:
    """Inputs of one network at one shape, float32, seeded."""
    rows, frames, high, wide = shape
    sizes = {"rows": rows, "frames": frames, "batch": rows, "latent_height": high, "latent_width": wide}
    sizes |= {"height": high * 8, "width": wide * 8}
    generator = torch.Generator().manual_seed(seed)
    inputs = {
        tensor.name: torch.randn(
            [sizes[d] if isinstance(d, str) else d for d in tensor.shape], generator=generator
        )
        for tensor in spec.inputs
    }
    if network.startswith("unet"):
        inputs["timestep"] = torch.rand(rows, generator=generator) * 3.2 - 1.55  # 0.25 ln sigma
        inputs["time_ids"] = torch.tensor([[6.0, 127.0, 0.02 * row] for row in range(rows)])
    elif network in ("pose_net", "vae_encoder"):
        inputs = {name: value.tanh() for name, value in inputs.items()}  # pictures lie in [-1, 1]
    elif network == "vae_decoder":
        inputs = {name: value * 5.0 for name, value in inputs.items()}  # unit latents over the scaling factor
    return inputs


def record_cases(network: str, spec: EngineSpec, original: Callable[..., Any]) -> list[Case]:
    """The original's answers at every shape."""
    return [
        record_case(original, example_inputs(network, spec, shape, seed)) for seed, shape in enumerate(SHAPES)
    ]


def record_case(original: Callable[..., Any], inputs: Inputs) -> Case:
    """The original's answer to some inputs."""
    with torch.inference_mode():
        answer = original(**inputs)
    return Case(inputs, answer if isinstance(answer, tuple) else (answer,))


def compare(network: str, path: Path, spec: EngineSpec, cases: Sequence[Case], bound: float) -> Accuracy:
    """Run the ONNX file on every case; raises `ExportError` if the worst relative error exceeds `bound`."""
    return compare_engine(network, OnnxRuntimeEngine(path, spec, threads=None), cases, bound)


def compare_engine(
    network: str, engine: Engine, cases: Sequence[Case], bound: float, judge: str = "onnxruntime"
) -> Accuracy:
    """The same with an engine of the backend `judge`, which is closed afterwards."""
    outputs = [tensor.name for tensor in engine.spec.outputs]
    expected = [
        dict(zip(outputs, (answer.numpy() for answer in case.answers), strict=True)) for case in cases
    ]
    with closing(engine):
        calls = (call_arrays(case, engine.spec) for case in cases)
        found = compare_answers(engine, judge, calls, expected, bound)
    if not any(one.norm for one in found):
        raise ExportError(
            f"{network} answers nothing but zeros in PyTorch: no engine can be proven by that.",
            remedy="Give the checkpoint of a trained model.",
            field="checkpoint",
        )
    max_abs, rel_l2 = (float(np.max([getattr(one, of) for one in found])) for of in ("max_abs", "rel_l2"))
    if not all(found):
        raise ExportError(
            f"{network} does not agree with PyTorch: relative L2 error {rel_l2:.2e} is over {bound:.0e} "
            f"(largest difference {max_abs:.2e}).",
            remedy="Check the checkpoint for values that overflow; please report it if they do not.",
        )
    return Accuracy(max_abs=max_abs, rel_l2=rel_l2, bound=bound, cases=len(cases), judge=judge)


def call_arrays(case: Case, spec: EngineSpec) -> dict[str, Array]:
    """A case's inputs as an engine takes them."""
    return {
        name: np.ascontiguousarray(value.numpy()) for name, value in cast_inputs(case.inputs, spec).items()
    }


def cast_inputs(inputs: Inputs, spec: EngineSpec) -> Inputs:
    """The inputs in the dtypes of a spec."""
    return {tensor.name: inputs[tensor.name].to(getattr(torch, tensor.dtype)) for tensor in spec.inputs}


def originals(model: Any) -> dict[str, Callable[..., Any]]:
    """The networks as PyTorch and diffusers compute them, with the engines' inputs."""
    unet, vae = model.unet, model.vae

    def run_unet(
        latents: Tensor, timestep: Tensor, embedding: Tensor, time_ids: Tensor, pose: Tensor
    ) -> Tensor:
        return unet(latents, timestep, embedding, time_ids, pose)[0]  # type: ignore[no-any-return]

    def run_keep(**inputs: Tensor) -> tuple[Tensor, Tensor]:
        kept: list[Tensor] = []
        hook = unet.up_blocks[-2].register_forward_hook(lambda _, __, answer: kept.append(answer))
        try:
            prediction = run_unet(**inputs)
        finally:
            hook.remove()
        return prediction, kept[0].reshape(*prediction.shape[:2], *kept[0].shape[1:])

    def run_outer(cached_features: Tensor, **inputs: Tensor) -> Tensor:
        hook = unet.up_blocks[-2].register_forward_hook(lambda *_: cached_features.flatten(0, 1))
        try:
            return run_unet(**inputs)
        finally:
            hook.remove()

    def run_pose_net(pose: Tensor) -> Tensor:
        return model.pose_net(pose)  # type: ignore[no-any-return]

    def run_encoder(image: Tensor) -> Tensor:
        return vae.encode(image).latent_dist.mode()  # type: ignore[no-any-return]

    def run_decoder(latents: Tensor) -> Tensor:
        return vae.decode(latents, num_frames=latents.shape[0]).sample  # type: ignore[no-any-return]

    def run_image_encoder(pixels: Tensor) -> Tensor:
        return model.image_encoder(pixels).image_embeds[:, None]  # type: ignore[no-any-return]

    return {
        "unet": run_unet,
        "pose_net": run_pose_net,
        "vae_encoder": run_encoder,
        "vae_decoder": run_decoder,
        "image_encoder": run_image_encoder,
        "unet_caching": run_keep,
        "unet_shallow": run_outer,
    }


def engine_forms(model: Any) -> dict[str, Callable[[], nn.Module]]:
    """Makers of the rewritten networks; they rewrite the model in place, so call them after `record_cases`."""
    from . import networks

    return {
        "unet": lambda: networks.UNetEngine(model.unet),
        "pose_net": lambda: networks.PoseNetEngine(model.pose_net),
        "vae_encoder": lambda: networks.EncoderEngine(model.vae),
        "vae_decoder": lambda: networks.DecoderEngine(model.vae),
        "image_encoder": lambda: networks.ImageEncoderEngine(model.image_encoder),
        "unet_caching": lambda: networks.KeepingUNetEngine(model.unet),
        "unet_shallow": lambda: networks.OuterUNetEngine(model.unet),
    }
