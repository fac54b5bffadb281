"""Synthetic people: `make_clip(seed=7, frames=16, height=128, width=64)` draws one with exact keypoints."""

from .character import Character
from .clip import TEST_SEEDS, TRAIN_SEEDS, VALIDATION_SEEDS, SyntheticClip, iter_clips, make_clip

__all__ = [
    "TEST_SEEDS", "TRAIN_SEEDS", "VALIDATION_SEEDS", "Character", "SyntheticClip", "iter_clips", "make_clip"
]  # fmt: skip
