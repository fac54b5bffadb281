"""What the networks are asked and what their answers cost: EDM's preconditioning and weights, regions, losses.

Karras et al. 2022 ("EDM", table 1) with sigma_data = 1 and SVD's v-prediction (Blattmann et al. 2023,
appendix D.4):

    input  = (x0 + sigma n) / sqrt(sigma² + 1)       timestep = 0.25 ln sigma
    x0     = -v sigma / sqrt(sigma² + 1) + x / (sigma² + 1)
    loss   = mean(weight(sigma) region (x0 - truth)²)

The network's input, timestep and meaning of v are those of the runtime's Euler steps (`schedule.Step`).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..pose.draw import BODY_THRESHOLD, LIMBS
from .config import ObjectiveConfig, VaeConfig
from .metrics import box_on_grid, similarity

Float = NDArray[np.float32]
Mask = NDArray[np.bool_]


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


def region_weights(
    config: ObjectiveConfig, latent_size: tuple[int, int], *,
    body: Float, body_score: Float, hands: Float, hands_score: Float,
) -> Float:  # fmt: skip
    """Loss weights [F,1,h,w] of a clip's latents, `latent_size` = (h, w). Where regions overlap the larger counts.

    body [F,18,2], body_score [F,18], hands [F,2,21,2], hands_score [F,2,21] as in `PoseSequence`.
    """
    weights = np.ones((len(body), *latent_size), np.float32)
    if config.skeleton_weight != 1:
        near = skeleton_mask(body, body_score, latent_size, config.skeleton_radius)
        weights[near] = config.skeleton_weight
    if config.hand_weight != 1:
        boxes = hand_mask(hands, hands_score, latent_size, config.hand_threshold)
        weights[boxes] = np.maximum(weights[boxes], config.hand_weight)
    return weights[:, None]


def hand_mask(hands: Float, scores: Float, size: tuple[int, int], threshold: float) -> Mask:
    """Which latents [F,h,w] the box of a hand touches whose 21 confidences are all above the threshold.

    `size` is (h, w). A box that leaves the picture is cut (MimicMotion, sec. 3.3).
    """
    mask = np.zeros((len(hands), *size), np.bool_)
    for frame, hand in np.argwhere((scores > threshold).all(axis=-1)):
        top, bottom, left, right = box_on_grid(hands[frame, hand], size)
        mask[frame, top:bottom, left:right] = True
    return mask


def skeleton_mask(body: Float, scores: Float, size: tuple[int, int], radius: float) -> Mask:
    """Which latents [F,h,w] have their centre at most `radius` of the picture's height from a limb that is drawn.

    `size` is (h, w): latents are square, so it also tells the picture's shape.
    """
    high, wide = size
    y, x = np.mgrid[:high, :wide].astype(np.float32) + np.float32(0.5)
    centres = np.stack([x, y], axis=-1)
    points = body * np.array([wide, high], np.float32)
    mask = np.zeros((len(body), high, wide), np.bool_)
    for start, end in LIMBS:
        drawn = np.minimum(scores[:, start], scores[:, end]) >= BODY_THRESHOLD
        a = points[drawn, start][:, None, None]
        along = points[drawn, end][:, None, None] - a
        length = np.maximum((along**2).sum(-1), 1e-9)
        share = np.clip(((centres - a) * along).sum(-1) / length, 0, 1)
        distance = np.linalg.norm(centres - a - share[..., None] * along, axis=-1)
        mask[drawn] |= distance <= radius * high
    return mask


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
