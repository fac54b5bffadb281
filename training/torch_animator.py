"""The runtime's animator on PyTorch modules: what is validated is what will be served."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..animator import Animator
from ..engines import Array, Call, EngineSpec, ImageStatistics, network_specs
from ..limits import Limits
from ..networks import Networks
from .encoders import Encoders
from .networks import PoseNet, UNet


class TorchEngine:
    """A PyTorch function as an engine; it may live on any device, its arrays are the caller's."""

    def __init__(self, function: Callable[..., Tensor], spec: EngineSpec, device: torch.device) -> None:
        self._function, self._spec, self._device = function, spec, device

    @property
    def spec(self) -> EngineSpec:
        """Its tensors."""
        return self._spec

    @property
    def gpu(self) -> None:
        """It runs on the CPU."""
        return None

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Call:
        """See `Engine.bind`."""
        self._spec.check(inputs, outputs)
        given = {name: torch.from_numpy(array) for name, array in inputs.items()}
        (result,) = (torch.from_numpy(array) for array in outputs.values())

        @torch.inference_mode()
        def call() -> None:
            moved = {name: tensor.to(self._device) for name, tensor in given.items()}
            result.copy_(self._function(**moved))

        return call

    def close(self) -> None:
        """The module belongs to its owner."""


@dataclass(frozen=True)
class TrainedModel:
    """What a manifest says of a bundle, of networks that are still being trained; see `networks.ModelInfo`."""

    sizes: tuple[tuple[int, int], ...]
    scaling_factor: float
    image: ImageStatistics
    defaults: Mapping[str, Any]
    rows: tuple[int, ...] = (1,)
    reuses: bool = False
    build: str = ""
    note: str = ""


def torch_animator(
    unet: UNet, pose_net: PoseNet, encoders: Encoders, size: tuple[int, int], defaults: Mapping[str, Any]
) -> Animator:
    """An animator on these modules, in eval mode; `size` is (width, height), `defaults` as in a manifest."""
    device = next(unet.parameters()).device
    specs = network_specs(
        pose_channels=unet.config["block_out_channels"][0],
        token_width=unet.config["cross_attention_dim"],
        image_size=encoders.statistics.size,
    )
    functions = torch_functions(unet, pose_net, encoders)
    model = TrainedModel((size,), encoders.scaling_factor, encoders.statistics, defaults)
    networks = Networks(model, lambda name: TorchEngine(functions[name], specs[name], device))
    return Animator(networks, name="training", limits=Limits(reuse_bytes=1))


def torch_functions(unet: nn.Module, pose_net: nn.Module, encoders: Encoders) -> dict[str, Any]:
    """The five networks with the engines' inputs and outputs (`engines.network_specs`)."""

    def run_unet(
        latents: Tensor, timestep: Tensor, embedding: Tensor, time_ids: Tensor, pose: Tensor
    ) -> Tensor:
        prediction: Tensor = unet(latents, timestep, embedding, time_ids, pose)[0]
        return prediction

    def decode(latents: Tensor) -> Tensor:
        frames: Tensor = encoders.vae.decode(latents, num_frames=len(latents)).sample
        return frames

    def embed(pixels: Tensor) -> Tensor:
        token: Tensor = encoders.image_encoder(pixels).image_embeds[:, None]
        return token

    return {
        "unet": run_unet,
        "pose_net": lambda pose: pose_net(pose),
        "vae_encoder": lambda image: encoders.mode(image),
        "vae_decoder": decode,
        "image_encoder": embed,
    }
