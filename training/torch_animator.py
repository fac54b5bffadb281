"""The runtime's animator on PyTorch modules: what is validated is what will be served."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..animator import Animator
from ..denoise.kernels import clip_pixels, to_signed
from ..engines import Array, Call, EngineSpec, ImageStatistics
from ..engines.torch_backend import fill
from ..limits import Limits
from ..networks import ModelInfo, Networks
from .checkpoints import PREPROCESSOR, image_statistics, load_image_encoder, load_vae, read_config
from .networks import PoseNet, UNet, model_specs

Picture = NDArray[np.uint8]
Float = NDArray[np.float32]


class Encoders:
    """The frozen networks that turn pictures into latents and tokens, and latents into pictures."""

    def __init__(self, vae: Any, image_encoder: Any, statistics: ImageStatistics) -> None:
        self.vae, self.image_encoder, self.statistics = vae, image_encoder, statistics
        self.scaling_factor = float(vae.config["scaling_factor"])
        self.device = next(vae.parameters()).device

    @classmethod
    def load(cls, base: Path, device: torch.device) -> Encoders:
        """Those of a base folder, on a device; raises `CheckpointError`."""
        image_encoder: Any = load_image_encoder(base).to(device)
        statistics = image_statistics(read_config(base / PREPROCESSOR), image_encoder)
        return cls(load_vae(base).to(device), image_encoder, statistics)

    def latent_weights(self) -> list[Tensor]:
        """The weights that latents depend on."""
        state: dict[str, Tensor] = self.vae.state_dict()
        return [state[name] for name in sorted(state) if not name.startswith("decoder.")]

    @torch.inference_mode()
    def latents(self, pictures: Picture, chunk: int = 8) -> Float:
        """The posterior's mode [F,4,h,w], not scaled, of pictures uint8 [F,H,W,3]."""
        parts = [
            self.mode(torch.from_numpy(to_signed(pictures[i : i + chunk])).to(self.device))
            for i in range(0, len(pictures), chunk)
        ]
        return torch.cat(parts).cpu().numpy()

    @torch.no_grad()
    def mode(self, images: Tensor) -> Tensor:
        """The posterior's mode [B,4,h,w], not scaled, of images [B,3,H,W] in [-1, 1]; always float32."""
        with torch.autocast(images.device.type, enabled=False):
            return self.vae.encode(images.float()).latent_dist.mode()  # type: ignore[no-any-return]

    @torch.inference_mode()
    def embed(self, picture: Picture) -> Float:
        """The token [1,D] of a picture uint8 [H,W,3]."""
        pixels = torch.from_numpy(clip_pixels(to_signed(picture), self.statistics)).to(self.device)
        return self.image_encoder(pixels).image_embeds.cpu().numpy()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class ModuleEngine:
    """A PyTorch function of tensors in the spec's order as an engine; its arrays are the host's."""

    function: Callable[..., Any]
    spec: EngineSpec
    device: torch.device
    gpu: None = None

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Call:
        """See `Engine.bind`."""
        self.spec.check(inputs, outputs)
        given = [torch.from_numpy(inputs[tensor.name]) for tensor in self.spec.inputs]
        into = [torch.from_numpy(outputs[tensor.name]) for tensor in self.spec.outputs]

        @torch.no_grad()  # not inference mode, in which `export.float16` could not see operators one by one
        def call() -> None:
            fill(into, self.function(*(tensor.to(self.device) for tensor in given)))

        return call

    def close(self) -> None:
        """The function belongs to its owner."""


def network_functions(unet: UNet, pose_net: PoseNet, encoders: Encoders) -> dict[str, Callable[..., Tensor]]:
    """The five networks as PyTorch and diffusers compute them, with the engines' inputs in order or by name."""
    vae, image_encoder = encoders.vae, encoders.image_encoder

    def run_unet(
        latents: Tensor, timestep: Tensor, embedding: Tensor, time_ids: Tensor, pose: Tensor
    ) -> Tensor:
        return unet(latents, timestep, embedding, time_ids, pose)[0]  # type: ignore[no-any-return]

    return {
        "unet": run_unet,
        "pose_net": lambda pose: pose_net(pose),
        "vae_encoder": lambda image: encoders.mode(image),
        "vae_decoder": lambda latents: vae.decode(latents, num_frames=len(latents)).sample,
        "image_encoder": lambda pixels: image_encoder(pixels).image_embeds[:, None],
    }


def torch_animator(
    unet: UNet, pose_net: PoseNet, encoders: Encoders, size: tuple[int, int], defaults: Mapping[str, Any]
) -> Animator:
    """An animator on these modules, in eval mode; `size` is (width, height), `defaults` as in a manifest."""
    functions = network_functions(unet, pose_net, encoders)
    device = next(unet.parameters()).device
    specs = model_specs(unet, encoders.statistics.size)
    model = ModelInfo((size,), encoders.scaling_factor, encoders.statistics, defaults)
    networks = Networks(model, lambda name: ModuleEngine(functions[name], specs[name], device))
    return Animator(networks, name="training", limits=Limits())
