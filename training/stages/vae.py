"""The first stage of a model from nothing: the VAE learns to reconstruct frames."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...denoise.kernels import to_pictures, to_signed
from ...media.sheet import contact_sheet
from ..checkpoints import drop_prefix, load_vae
from ..config import Config
from ..data.samples import Sample
from ..metrics import psnr, ssim
from ..networks import flatten_time_convs, lean_blocks, skip_idle_branches, zero_time_taps
from ..picture_terms import PictureTerms
from .base import Batch, Losses, Measures, TrainingStage, generator_at
from .landmarks import choose_cut, store_marked

MEASURED_CLIPS = 32
"""Clips whose latents decide about the scaling factor."""


class Reconstruction(nn.Module):
    """The VAE's encoder and decoder, one after the other."""

    def __init__(self, vae: Any, latent_noise: float = 0.0) -> None:
        """`latent_noise` is what the decoder sees of noise, in standard deviations of the batch's latents."""
        super().__init__()
        self.vae, self.latent_noise = vae, latent_noise

    def forward(self, frames: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """frames [B,T,3,H,W] in [-1, 1], unit noise [B*T,4,h,w] -> (pictures as frames, mean, log-variance)."""
        posterior = self.vae.encode(frames.flatten(0, 1)).latent_dist
        spread = posterior.std
        if self.latent_noise:
            spread = (posterior.var + (self.latent_noise * posterior.mean.detach().std()) ** 2).sqrt()
        decoded = self.vae.decode(posterior.mean + spread * noise, num_frames=frames.shape[1]).sample
        return decoded.unflatten(0, frames.shape[:2]), posterior.mean, posterior.logvar


class VaeStage(TrainingStage):
    """The result is a base folder with the trained VAE, and a factor that scales its latents to unit variance."""

    def __init__(self, config: Config, device: torch.device, output: Path) -> None:
        super().__init__(config, device, output)
        vae: Any = load_vae(self.base)
        if not self.base_found:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)
                let_pictures_pass(vae)
            zero_time_taps(vae)
            start_posterior(vae, config.vae.log_variance)
        flatten_time_convs(vae)
        vae.requires_grad_(True).train()
        if self.base_found or config.vae.lean:
            skip_idle_branches(vae.modules() if self.base_found else lean_blocks(vae))
        if config.gradient_checkpointing:
            vae.enable_gradient_checkpointing()
        self.vae = vae
        settings = config.vae
        self.network = Reconstruction(vae, settings.latent_noise).to(device)
        self.terms = PictureTerms(config, device)
        self.parts = self.terms.parts
        self.marked = self.open_store("marked", store_marked)

    def batch(self, positions: Sequence[int]) -> Batch:
        """Frames [B,T,3,S,S], see `choose_cut`, unit noise [B*T,4,S/8,S/8], and how much the discriminator counts."""
        cuts, noises = [], []
        for position in positions:
            generator = generator_at(self.config.seed, position)
            clip = self.marked[self.order[position]]
            cut = choose_cut(clip, self.config.vae, generator)
            cuts.append(to_signed(clip["frames"][cut]))
            frames, height, width = (cuts[-1].shape[axis] for axis in (0, 2, 3))
            noises.append(torch.randn((frames, 4, height // 8, width // 8), generator=generator))
        batch = {"frames": torch.from_numpy(np.stack(cuts)), "noise": torch.cat(noises)}
        return {**batch, "adversarial": self.terms.adversarial_share(positions)}

    def loss(self, network: nn.Module, batch: Batch) -> Losses:
        """Absolute and squared errors, KL divergence from unit noise per latent value, and the terms that are on."""
        settings, truth = self.config.vae, batch["frames"]
        decoded, mean, log_variance = network(truth, batch["noise"])
        made = decoded.float()
        pictures = made.detach().requires_grad_()
        error = pictures - truth
        l1, mse = error.abs().mean(), (error**2).mean()
        plain = settings.l1_weight * l1 + settings.mse_weight * mse
        total, parts = self.terms.added(plain, pictures, made, truth, float(batch["adversarial"][0]))
        kl = 0.5 * (mean.float() ** 2 + log_variance.exp() - 1.0 - log_variance).mean()
        return total + settings.kl_weight * kl, {"mse": mse.detach(), "kl": kl.detach(), **parts}

    def validate(self) -> tuple[Measures, NDArray[np.uint8]]:
        """PSNR and SSIM of whole held-out clips after encoder and decoder."""
        return validate_vae(self.vae, self.held_out.samples(), self.device)

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write `base/`: the base folder with this VAE, its `scaling_factor` measured.

        One from nothing gets latents of about unit variance: the U-Net sees the reference's without that factor.
        """
        vae = trained_vae(self.base, state)
        if not self.base_found:
            shrink_latents(vae, 1 / self.measure_scaling_factor(vae.to(self.device)))
        vae.register_to_config(scaling_factor=self.measure_scaling_factor(vae.to(self.device)))
        self.save_base(folder, "vae", vae)

    @torch.inference_mode()
    def measure_scaling_factor(self, vae: Any) -> float:
        """One over the standard deviation of the posterior's modes, over the first clips."""
        modes = []
        for index in range(min(MEASURED_CLIPS, len(self.dataset))):
            images = torch.from_numpy(to_signed(self.marked[index]["frames"][:2])).to(self.device)
            modes.append(vae.encode(images).latent_dist.mode())
        return 1.0 / float(torch.cat(modes).double().std())


@torch.inference_mode()
def validate_vae(
    vae: Any, samples: Sequence[Sample], device: torch.device
) -> tuple[Measures, NDArray[np.uint8]]:
    """PSNR and SSIM of clips that are encoded to the posterior's mode and decoded, and a contact sheet."""
    scores, rows = [], []
    vae.eval()
    for index, sample in enumerate(samples):
        truth = sample["frames"]
        images = torch.from_numpy(to_signed(truth)).to(device)
        planes = vae.decode(vae.encode(images).latent_dist.mode(), num_frames=len(truth)).sample
        video = np.empty_like(truth)
        to_pictures(planes.float().cpu().numpy(), video)
        scores.append((psnr(video, truth), ssim(video, truth)))
        rows += [(f"clip {index}", list(truth)), (f"reconstructed, {scores[-1][0]:.1f} dB", list(video))]
    vae.train()
    means = np.mean(scores, axis=0)
    return {"psnr": float(means[0]), "ssim": float(means[1])}, contact_sheet(rows)


def trained_vae(base: Path, state: Mapping[str, Tensor]) -> Any:
    """The base folder's VAE with the weights of a network that holds it as `vae`."""
    vae: Any = load_vae(base)
    vae.load_state_dict({key: value.cpu() for key, value in drop_prefix(state, "vae.").items()})
    return vae


def shrink_latents(vae: Any, deviation: float) -> None:
    """Divide latents by the power of two nearest to `deviation`, and let the decoder multiply: the same pictures."""
    power = round(math.log2(deviation))
    channels = vae.config["latent_channels"]
    with torch.no_grad():
        vae.quant_conv.weight[:channels] /= 2.0**power
        vae.quant_conv.bias[:channels] /= 2.0**power
        vae.quant_conv.bias[channels:] -= 2 * power * math.log(2)  # the variance shrinks by its square
        vae.decoder.conv_in.weight *= 2.0**power


def let_pictures_pass(vae: nn.Module) -> None:
    """Initialize so that pictures pass: residual branches are zero, layers that change the size average or repeat.

    A network from PyTorch's own start has to learn this first (18 dB instead of 14 after 150 steps).
    """
    for name, conv in vae.named_modules():
        if not isinstance(conv, nn.Conv2d | nn.Conv3d):
            continue
        if name.endswith("conv2"):
            nn.init.zeros_(conv.weight)
        elif "upsamplers" in name or name.endswith(("conv_shortcut", "time_conv_out")):
            nn.init.dirac_(conv.weight)
        elif "downsamplers" in name:  # the picture is padded below and on the right
            nn.init.normal_(conv.weight, std=0.02)
            same = torch.eye(conv.weight.shape[0], conv.weight.shape[1])
            with torch.no_grad():
                conv.weight[:, :, :2, :2] += same[..., None, None] / 4
        else:
            plain = name.endswith(("conv_in", "conv_out", "quant_conv"))
            nn.init.kaiming_normal_(conv.weight, nonlinearity="linear" if plain else "relu")
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)


def start_posterior(vae: Any, log_variance: float) -> None:
    """Let the posterior start with nearly no noise: log-variances from a bias only, means as they are."""
    channels = vae.config["latent_channels"]
    with torch.no_grad():
        vae.quant_conv.weight[channels:] = 0
        vae.quant_conv.bias[channels:] = log_variance
