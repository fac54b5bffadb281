"""The stages of training by the names that configs give them."""

from __future__ import annotations

from .base import TrainingStage
from .decoder import DecoderStage, JointStage
from .image_encoder import ImageEncoderStage
from .landmarks import LandmarkStage
from .motion import MotionStage
from .vae import VaeStage

STAGES: dict[str, type[TrainingStage]] = {
    "landmarks": LandmarkStage,
    "vae": VaeStage,
    "image_encoder": ImageEncoderStage,
    "motion": MotionStage,
    "decoder": DecoderStage,
    "together": JointStage,
}
