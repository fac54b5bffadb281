"""The plain PyTorch loop that ours is measured against, in the reference's order of work.

At every step, for every segment: PoseNet, then the U-Net once without and once with the conditions. The
predictions are fused over segments, guided, and one Euler step is made. Eager; latents are float32.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mimicmotion_trt.denoise.kernels import clip_pixels, to_signed
from mimicmotion_trt.denoise.schedule import karras_sigmas
from mimicmotion_trt.denoise.segments import cut_segments
from mimicmotion_trt.engines import ImageStatistics
from mimicmotion_trt.settings import Settings
from mimicmotion_trt.training.checkpoints import Model

Pictures = NDArray[np.uint8]


class TorchLoop:
    """MimicMotion in eager PyTorch on the device and in the dtype of a model's networks; settings are resolved."""

    def __init__(self, model: Model, image: ImageStatistics) -> None:
        self._model: Any = model
        self._image = image
        first = next(model.unet.parameters())
        self._device, self._dtype = first.device, first.dtype

    def __call__(
        self, picture: Pictures, pose_frames: Pictures, settings: Settings, noise: NDArray[np.float32]
    ) -> Pictures:
        """Frames uint8 [F,H,W,3]; picture [H,W,3], pose pictures [F,H,W,3], unit noise [F,4,h,w]."""
        return self.decode(self.sample(picture, pose_frames, settings, noise), settings.decode_chunk)

    @torch.inference_mode()
    def sample(
        self, picture: Pictures, pose_frames: Pictures, settings: Settings, noise: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Latents float32 [F,4,h,w] after all steps, without noise on the picture."""
        model = self._model
        image = self._given(to_signed(picture)[None])
        pixels = self._given(clip_pixels(to_signed(picture), self._image))
        embedding = model.image_encoder(pixels).image_embeds[:, None]
        image_latents = model.vae.encode(image).latent_dist.mode()
        poses = self._given(to_signed(pose_frames))
        start = torch.from_numpy(noise).to(self._device)
        latents = self._denoise(poses, embedding, image_latents, settings, start)
        found: NDArray[np.float32] = latents.cpu().numpy()
        return found

    def _given(self, values: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(values).to(self._device, self._dtype)

    def _denoise(
        self, poses: Tensor, embedding: Tensor, image_latents: Tensor, settings: Settings, noise: Tensor
    ) -> Tensor:
        assert settings.segment
        assert settings.sigma_min
        assert settings.sigma_max
        frames, device = len(poses), self._device
        plan = torch.from_numpy(cut_segments(frames, settings.segment, settings.overlap)).to(device)
        length = plan.shape[1]
        u = 2 * (torch.arange(length, device=device) + 0.5) / length
        weight = torch.minimum(u, 2 - u)[:, None, None, None]
        guidance = torch.linspace(*settings.guidance, frames, device=device)[:, None, None, None]
        ids = torch.tensor(
            [[settings.conditioning_fps - 1, settings.motion_bucket, settings.noise_aug]], device=device
        )
        sigmas = karras_sigmas(settings.steps, settings.sigma_min, settings.sigma_max)
        latents = noise * math.sqrt(float(sigmas[0]) ** 2 + 1)
        for sigma, following in zip(map(float, sigmas[:-1]), map(float, sigmas[1:]), strict=True):
            scaled = latents / math.sqrt(sigma**2 + 1)
            predictions = [torch.zeros_like(latents), torch.zeros_like(latents)]
            total = torch.zeros(frames, 1, 1, 1, device=device)
            for segment in plan:
                total[segment] += weight
                for branch in (0, 1):
                    output = self._predict(
                        scaled, segment, branch, sigma, ids, embedding, image_latents, poses
                    )
                    predictions[branch][segment] += weight * output
            without, given = (prediction / total for prediction in predictions)
            v = without + guidance * (given - without)
            x0 = -v * (sigma / math.sqrt(sigma**2 + 1)) + latents / (sigma**2 + 1)
            latents = latents + (latents - x0) / sigma * (following - sigma)
        return latents

    def _predict(
        self,
        scaled: Tensor,
        segment: Tensor,
        branch: int,
        sigma: float,
        ids: Tensor,
        embedding: Tensor,
        image_latents: Tensor,
        poses: Tensor,
    ) -> Tensor:
        """The U-Net's answer [N,4,h,w] for one segment and branch; PoseNet runs with the conditional one."""
        pose = self._model.pose_net(poses[segment])[None] if branch else None
        image = image_latents.expand(len(segment), -1, -1, -1) * branch
        output: Tensor = self._model.unet(
            torch.cat([scaled[segment].to(self._dtype), image], dim=1)[None],
            torch.tensor([0.25 * math.log(sigma)], device=self._device),
            embedding * branch,
            ids,
            pose,
        )[0][0]
        return output.float()

    @torch.inference_mode()
    def decode(self, latents: NDArray[np.float32], chunk: int) -> Pictures:
        """Frames uint8 [F,H,W,3] of latents [F,4,h,w], `chunk` at a time."""
        vae = self._model.vae
        parts = [
            vae.decode(part.to(self._dtype) / vae.config.scaling_factor, num_frames=len(part)).sample.float()
            for part in torch.split(torch.from_numpy(latents).to(self._device), chunk)
        ]
        pictures = (torch.cat(parts) * 0.5 + 0.5).clamp(0, 1) * 255
        found: Pictures = pictures.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
        return found
