"""The demo's reference picture is what its README says: a synthetic person kept from training."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mimicmotion_trt.media.picture import read_picture
from mimicmotion_trt.training.synthetic import TEST_SEEDS, make_clip

DEMO = Path(__file__).parents[2] / "demo"
CLIP, CHARACTER = 1_050_050, 1_000_082


def test_the_demo_picture_is_of_an_unseen_character():
    assert CLIP in TEST_SEEDS
    assert CHARACTER in TEST_SEEDS
    assert (
        f"make_clip({CLIP:_}, 1, 384, 256, character_seed={CHARACTER:_}" in (DEMO / "README.md").read_text()
    )
    clip = make_clip(CLIP, 1, 384, 256, character_seed=CHARACTER, blur=0.0, occlusion=False)
    difference = np.abs(read_picture(DEMO / "dancer.png").astype(int) - clip.reference)
    assert difference.mean() < 0.1  # other processors may round some pixels otherwise
