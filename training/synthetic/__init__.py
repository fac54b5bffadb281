"""Synthetic people: seeded clips of varied dancing figures with exact keypoints.

    clip = make_clip(seed=7, frames=16, height=128, width=64)

Train on the seeds of `TRAIN_SEEDS` and test on those of `TEST_SEEDS`: they share no character, room or dance.
"""

from .character import Character
from .clip import TEST_SEEDS, TRAIN_SEEDS, VALIDATION_SEEDS, SyntheticClip, iter_clips, make_clip

__all__ = [
    "TEST_SEEDS", "TRAIN_SEEDS", "VALIDATION_SEEDS", "Character", "SyntheticClip", "iter_clips", "make_clip"
]  # fmt: skip
