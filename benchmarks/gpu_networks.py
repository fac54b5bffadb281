"""The networks that `gpu_check.py` runs in loops, with random weights: of the real configuration, or small ones."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mimicmotion_trt.denoise import Conditions
from mimicmotion_trt.denoise.schedule import SIGMAS, initial_scale, karras_sigmas
from mimicmotion_trt.doctor.prediction import MIMICMOTION
from mimicmotion_trt.engines import EngineSpec, FlopModel, network_specs
from mimicmotion_trt.export.half import to_half
from mimicmotion_trt.export.networks import DecoderEngine, UNetEngine

GOLDEN = Path(__file__).parents[1] / "tests" / "data" / "golden"
STEPS = 25
"""Steps of a whole run."""


@dataclass(frozen=True)
class Scale:
    """How large the networks and the pictures are."""

    configs: Path
    """A folder in SVD's layout, of which only the configs are read."""
    cells: tuple[int, int]
    """(high, wide) of the latents."""
    dtype: torch.dtype
    timed: int
    """Steps that are timed together; a whole run is STEPS of the same work."""
    compiles: bool
    """Whether `torch.compile` is tried, which takes minutes."""
    work: FlopModel | None
    """Operations of the U-Net as exported; None: not counted."""

    @property
    def half(self) -> bool:
        """Whether networks multiply in float16."""
        return self.dtype is torch.float16

    def config(self, part: str) -> dict[str, Any]:
        """The values of `part`/config.json."""
        values = json.loads((self.configs / part / "config.json").read_text())
        return {key: value for key, value in values.items() if not key.startswith("_")}

    def specs(self) -> dict[str, EngineSpec]:
        """The engines' tensors."""
        unet = self.config("unet")
        return network_specs(
            pose_channels=unet["block_out_channels"][0],
            token_width=unet["cross_attention_dim"],
            image_size=224,
            dtype="float16" if self.half else "float32",
            cached_channels=unet["block_out_channels"][1],
        )


REAL = Scale(GOLDEN / "real-size", (72, 128), torch.float16, 3, True, MIMICMOTION.works["unet"])
SMALL = Scale(GOLDEN / "tiny" / "svd", (8, 16), torch.float32, 2, False, None)


@dataclass(frozen=True)
class Clip:
    """What is animated: random conditions, pose pictures, and latents at the first sigma."""

    conditions: Conditions
    poses: np.ndarray[Any, Any]
    """float32 [F,3,H,W] in [-1, 1]."""
    noise: np.ndarray[Any, Any]
    """float32 [F,4,h,w]."""

    @property
    def frames(self) -> int:
        """How many."""
        return len(self.noise)


def random_clip(scale: Scale, frames: int) -> Clip:
    """Of one seed; PoseNet's features are left empty, for the loops to compute."""
    chance, (high, wide) = np.random.default_rng(0), scale.cells
    unet = scale.config("unet")

    def drawn(*shape: int) -> Any:
        return chance.standard_normal(shape, np.float32)

    conditions = Conditions(
        embedding=drawn(1, unet["cross_attention_dim"]),
        image_latents=drawn(4, high, wide),
        pose=np.zeros(
            (frames, unet["block_out_channels"][0], high, wide), np.float16 if scale.half else np.float32
        ),
        time_ids=(6.0, 127.0, 0.02),
    )
    poses = chance.random((frames, 3, 8 * high, 8 * wide), np.float32) * 2 - 1
    sigma = np.float32(initial_scale(karras_sigmas(STEPS, *SIGMAS)))
    return Clip(conditions, poses, drawn(frames, 4, high, wide) * sigma)


class Networks:
    """Random networks of one seed on PyTorch's device: the same values whenever they are made."""

    def __init__(self, scale: Scale, device: torch.device) -> None:
        self._scale, self._device = scale, device

    def unet(self) -> Any:
        """As published."""
        from mimicmotion_trt.training.networks import UNet

        return self._made(lambda: UNet(**self._scale.config("unet")))

    def folded(self, form: type[UNetEngine] = UNetEngine) -> nn.Module:
        """As exported: cross-attention to the single token folded, blocks rewritten; or another of its forms."""
        module = form(self.unet().float())
        return (to_half(module, "unet") if self._scale.half else module).eval()

    def pose_net(self) -> Any:
        """As published."""
        from mimicmotion_trt.training.networks import PoseNet

        width = self._scale.config("unet")["block_out_channels"][0]
        return self._made(lambda: PoseNet(width))

    def vae(self) -> Any:
        """As published."""
        from diffusers import AutoencoderKLTemporalDecoder

        return self._made(lambda: AutoencoderKLTemporalDecoder(**self._scale.config("vae")))

    def decoder(self) -> nn.Module:
        """As exported."""
        module = DecoderEngine(self.vae().float())
        return (to_half(module, "vae_decoder") if self._scale.half else module).eval()

    def _made(self, make: Any) -> Any:
        torch.manual_seed(0)  # of biases, which keep what PyTorch gave them
        with self._device:
            module = make()
        draw_weights(module)
        nn.Module.to(module, self._scale.dtype)  # diffusers' own warns of layers that we have none of
        return module.eval().requires_grad_(False)


def draw_weights(module: nn.Module) -> None:
    """Normal weights of variance 1 / inputs, so that values keep their size; norms stay as they are."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, values in module.named_parameters():
            if values.dim() > 1 and "norm" not in name:
                values.normal_(std=1 / math.sqrt(values[0].numel()))
