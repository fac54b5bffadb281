"""Weights in the two files that ComfyUI's MimicMotion nodes read (kijai/ComfyUI-MimicMotionWrapper, `nodes.py`).

They load the U-Net on its own, from ComfyUI's `models/mimicmotion`, and PoseNet from the nodes' own `models`; VAE and
CLIP are SVD-XT 1.1's. Only a model of SVD's size fits: the nodes have its config.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .adapters import drop_prefix

FILES = {
    "unet.": "MimicMotionMergedUnet_1-1-fp16.safetensors",
    "pose_net.": "mimic_motion_pose_net.safetensors",
}
"""By the keys' prefix, which the files lack."""


def save_comfyui(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write both files, float16, from flat `unet.*` and `pose_net.*`."""
    from safetensors.torch import save_file

    folder.mkdir()
    for prefix, name in FILES.items():
        own = drop_prefix(weights, prefix)
        half = {key: value.detach().to("cpu", torch.float16).contiguous() for key, value in own.items()}
        save_file(half, folder / name)
