"""What the networks are asked and what their answers cost: EDM's preconditioning and weights, and the losses.

Karras et al. 2022 ("EDM", table 1) with sigma_data = 1 and SVD's v-prediction (Blattmann et al. 2023,
appendix D.4):

    input  = (x0 + sigma n) / sqrt(sigma² + 1)       timestep = 0.25 ln sigma
    x0     = -v sigma / sqrt(sigma² + 1) + x / (sigma² + 1)
    loss   = mean(weight(sigma) region (x0 - truth)²)

The network's input, timestep and meaning of v are those of the runtime's Euler steps (`schedule.Step`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .config import ObjectiveConfig, VaeConfig
from .metrics import similarity


def draw(
    config: ObjectiveConfig,
    latents: tuple[int, ...],
    picture: tuple[int, ...],
    generators: list[torch.Generator],
) -> dict[str, Tensor]:
    """The random values of B clips, from a generator each; `latents` is (F,4,h,w), `picture` (3,H,W).

    sigma [B]; unit noise [B,F,4,h,w]; keep bool [B], whether the clip is shown its conditions; noise_aug [B], the
    strength of the noise on the reference picture in units of its range [-1, 1]; picture_noise, unit noise [B,3,H,W].
    Everything is drawn for every clip whatever is switched on, so that switches do not change what follows.
    """

    def each(*shape: int) -> Tensor:
        return torch.stack([torch.randn(shape, generator=generator) for generator in generators])

    sigma = torch.exp(each() * config.log_sigma_std + config.log_sigma_mean)
    chance = torch.stack([torch.rand((), generator=generator) for generator in generators])
    strength = torch.exp(each() * config.noise_aug_std + config.noise_aug_mean)
    return {
        "sigma": sigma,
        "noise": each(*latents),
        "keep": chance >= config.drop_condition,
        "noise_aug": strength if config.noise_aug else torch.zeros_like(strength),
        "picture_noise": each(*picture),
    }


def spread(values: Tensor, like: Tensor) -> Tensor:
    """[B] as [B,1,…] to multiply [B,…]."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def input_scale(sigma: Tensor) -> Tensor:
    """c_in = 1/sqrt(sigma²+1): noisy latents times this are the network's input; [B]."""
    return torch.rsqrt(sigma**2 + 1)


def timestep(sigma: Tensor) -> Tensor:
    """c_noise = 0.25 ln sigma: what the network is told; [B]."""
    return 0.25 * torch.log(sigma)


def denoised(v: Tensor, noisy: Tensor, sigma: Tensor) -> Tensor:
    """x0 [B,…] of a prediction v [B,…] at noisy latents x0 + sigma n [B,…] and sigma [B]."""
    s = spread(sigma, noisy)
    return -v * s * torch.rsqrt(s**2 + 1) + noisy / (s**2 + 1)


def loss_weight(sigma: Tensor, limit: float | None = None) -> Tensor:
    """EDM's weight (sigma²+1)/sigma² of the squared error of x0, at most `limit`; [B]."""
    weight = (sigma**2 + 1) / sigma**2
    return weight if limit is None else weight.clamp(max=limit)


def network_latents(noisy: Tensor, sigma: Tensor, image_latents: Tensor, keep: Tensor) -> Tensor:
    """The U-Net's latents [B,F,8,h,w]: noisy ones [B,F,4,h,w] scaled, the reference's [B,4,h,w] with every frame.

    Image latents are not multiplied by the VAE's scaling factor; a clip without conditions gets zeros.
    """
    shown = image_latents * spread(keep, image_latents)
    return torch.cat([noisy * spread(input_scale(sigma), noisy), shown[:, None].expand_as(noisy)], dim=2)


def time_ids(config: ObjectiveConfig, noise_aug: Tensor) -> Tensor:
    """SVD's micro-conditions [B,3]: frames per second - 1, motion bucket, noise_aug.

    Inference tells both branches the same, so they are never dropped.
    """
    fps = torch.full_like(noise_aug, config.conditioning_fps - 1)
    return torch.stack([fps, torch.full_like(noise_aug, config.motion_bucket), noise_aug], dim=1)


def clip_losses(x0: Tensor, truth: Tensor, weight: Tensor, region: Tensor) -> Tensor:
    """The loss of each clip [B] from x0 and truth [B,F,4,h,w], weight [B] and region weights [B,F,1,h,w].

    Region weights multiply the squared error before the mean, which is not renormalised (MimicMotion, sec. 3.3).
    """
    error = (x0.float() - truth.float()) ** 2 * region
    return error.flatten(1).mean(dim=1) * weight


def picture_loss(settings: VaeConfig, decoded: Tensor, truth: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of the absolute error, the squared error and 1 - SSIM of pictures [B,T,3,H,W] in [-1, 1].

    And its parts, to be logged.
    """
    with torch.autocast(decoded.device.type, enabled=False):  # variances in two bytes would be noise
        decoded = decoded.float()
        error = decoded - truth
        l1, mse = error.abs().mean(), (error**2).mean()
        alike = similarity((decoded.flatten(0, 1) + 1) / 2, (truth.flatten(0, 1) + 1) / 2)
    total = settings.l1_weight * l1 + settings.mse_weight * mse + settings.ssim_weight * (1 - alike)
    return total, {"mse": mse.detach(), "ssim": alike.detach()}
