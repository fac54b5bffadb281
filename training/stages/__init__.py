"""The stages of training, one a file; `open_stage` makes the one that a config names."""

from __future__ import annotations

from pathlib import Path

import torch

from ..config import Config
from .base import Stage
from .decoder import DecoderStage
from .image_encoder import ImageEncoderStage
from .joint import JointStage
from .motion import MotionStage
from .vae import VaeStage

STAGES: dict[str, type[Stage]] = {
    "vae": VaeStage,
    "image_encoder": ImageEncoderStage,
    "motion": MotionStage,
    "decoder": DecoderStage,
    "together": JointStage,
}


def open_stage(config: Config, device: torch.device, output: Path) -> Stage:
    """The stage `config.stage`, its networks on `device`; a random base and a cache of clips lie in `output`."""
    return STAGES[config.stage](config, device, output)
