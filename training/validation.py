"""Sampling clips of people never trained on, and comparing them with the truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..animator import Animator
from ..media.sheet import contact_sheet
from .data.samples import Sample, drawn_poses, with_reference
from .metrics import border_jump, borders, hand_psnr, means, psnr, ssim

Picture = NDArray[np.uint8]


def validate_motion(
    animator: Animator, samples: Sequence[Sample], *, confidence_aware: bool = True
) -> tuple[dict[str, float | None], Picture]:
    """The measures of `evaluate.py` but for the VAE's, means over sampled clips, and a contact sheet.

    Sampled by the public `Animator`, with the settings that are its bundle's defaults and one seed per clip;
    poses are drawn as they were for training, and tell where the hands are.
    """
    scores: list[dict[str, float | None]] = []
    rows = []
    for seed, sample in enumerate(samples):
        settings = animator.settings(seed=seed)
        pictures, poses = with_reference(sample)
        assert settings.canvas is not None
        height, width = pictures.shape[1:3]
        drawn = drawn_poses(poses, height, width, settings.canvas, confidence_aware=confidence_aware)
        latents = animator.sample(sample["reference"], drawn, settings)
        video, truth = animator.decode(latents)[1:], sample["frames"]
        still = np.broadcast_to(sample["reference"], truth.shape)
        scores.append(
            {
                "psnr": psnr(video, truth),
                "ssim": ssim(video, truth),
                "psnr_repeat_reference": psnr(still, truth),
                "ssim_repeat_reference": ssim(still, truth),
                "hand_psnr": hand_psnr(video, truth, sample["observed"]),
                "border_jump": border_jump(video, truth, borders(settings, len(truth))),
            }
        )
        rows += [
            (f"clip {seed}: reference, then poses", [sample["reference"], *drawn[1:]]),
            ("truth", [sample["reference"], *truth]),
            (f"sampled, {scores[-1]['psnr']:.1f} dB", [sample["reference"], *video]),
        ]
    return means(scores), contact_sheet(rows)
