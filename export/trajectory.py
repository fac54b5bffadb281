"""The U-Net's calls along a denoising by the runtime's own loop, of a drawn person, by the bundle's own settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from torch import Tensor

from ..engines import ImageStatistics
from ..pose import draw_poses
from ..settings import SIZE_MULTIPLE
from ..training.synthetic import make_clip
from ..training.torch_animator import Encoders, torch_animator
from .proof import Case

CELLS = (SIZE_MULTIPLE // 8) ** 2
"""Latent cells that are one at the U-Net's deepest level."""
FEWEST_CELLS = 4 * CELLS
"""Latent cells of a frame. With fewer, norms at the deepest level of a narrow network are over a few numbers, or
one, and magnify rounding: errors in float16 are then 8e-3 at 2 deepest cells and 0.3 at 1, instead of 3e-3."""
MOST_CELLS = 384
"""Latent cells of a frame: 128x192 pixels."""
MOST_FRAMES = 8
MOST_WORK = 8e11
"""Weights x frames x cells of a call. 1.5 billion weights get 4 frames of 64x128, which take minutes on a CPU."""
CANVAS = 512
"""Of poses, where the settings name none."""
INPUTS = ("latents", "timestep", "embedding", "time_ids", "pose")


def record_trajectory(
    model: Any,
    image: ImageStatistics,
    defaults: Mapping[str, Any],
    size: tuple[int, int],
    frames: int,
    *,
    steps: int = 5,
    seed: int = 0,
) -> list[Case]:
    """What the U-Net is asked, and what it answers, from noise to a picture: a case for each row of each step.

    `defaults` are the bundle's: sigmas, schedule, guidance, noise and segment are theirs. The steps are not, so
    that any number of them finds its range covered. `size` is (width, height), and the clip is one segment of
    `frames` frames. Person, dance and noise are drawn from `seed`.
    """
    width, height = size
    encoders = Encoders(model.vae, model.image_encoder, image)
    animator = torch_animator(model.unet, model.pose_net, encoders, (width, height), defaults)
    settings = replace(
        animator.settings(), steps=steps, seed=seed, segment=frames, reuse_interval=1, size=None,
        overlap=min(animator.settings().overlap, frames - 1),
    )  # fmt: skip
    clip = make_clip(seed, frames - 1, height, width)
    canvas = defaults.get("canvas") or CANVAS
    poses = [draw_poses(some, height, width, canvas) for some in (clip.reference_pose, clip.observed)]
    cases: list[Case] = []

    def keep(_: Any, given: tuple[Tensor, ...], answer: tuple[Tensor, ...]) -> None:
        inputs = dict(zip(INPUTS, given, strict=True))
        cases.append(Case({name: value.clone() for name, value in inputs.items()}, (answer[0].clone(),)))

    hook = model.unet.register_forward_hook(keep)
    try:
        animator.sample(clip.reference, np.concatenate(poses), settings)
    finally:
        hook.remove()
        animator.close()
    return cases


def clip_shape(weights: int, size: tuple[int, int], segment: int) -> tuple[tuple[int, int], int]:
    """(width, height) of the size most like `size` in shape that the limits above allow, and the frames of a clip.

    It is larger than `size` where that has too few cells.
    """
    most = min(MOST_CELLS, MOST_WORK / weights / 4)
    whole = [side // SIZE_MULTIPLE for side in size]
    within = [range(1, max(sides, FEWEST_CELLS // CELLS) + 1) for sides in whole]
    fitting = [
        (wide, high) for wide, high in product(*within) if FEWEST_CELLS <= wide * high * CELLS <= most
    ] or [(1, 2), (2, 1)]  # so many weights are no narrow network

    def unlike(sides: tuple[int, int]) -> tuple[float, int]:
        return abs(math.log(sides[0] * whole[1] / sides[1] / whole[0])), -sides[0] * sides[1]

    wide, high = min(fitting, key=unlike)
    frames = min(segment, MOST_FRAMES, int(MOST_WORK / weights / (wide * high * CELLS)))
    return (wide * SIZE_MULTIPLE, high * SIZE_MULTIPLE), max(frames, 2)
