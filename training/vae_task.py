"""The first stage of a model from scratch: the VAE learns to reconstruct frames."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..denoise.kernels import to_pictures, to_signed
from ..media.sheet import contact_sheet
from .base import open_base, replace_part, told_base
from .checkpoints import load_vae
from .config import Config
from .data.samples import HeldOut, Sample, clips_key, open_dataset, with_reference
from .data.store import Arrays, Store, clip_at
from .metrics import psnr, ssim
from .task import Batch, Measures, Report, cache_folder, fingerprint, generator_at
from .temporal import flatten_time_convs, still_time_convs


class Reconstruction(nn.Module):
    """The VAE there and back."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, frames: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """frames [B,T,3,H,W] in [-1, 1], unit noise [B*T,4,h,w] -> (pictures as frames, mean, log-variance)."""
        posterior = self.vae.encode(frames.flatten(0, 1)).latent_dist
        decoded = self.vae.decode(posterior.mean + posterior.std * noise, num_frames=frames.shape[1]).sample
        return decoded.unflatten(0, frames.shape[:2]), posterior.mean, posterior.logvar


class VaeTask:
    """See `task.Task`. The result is a base folder with the trained VAE and latents scaled to unit variance."""

    def __init__(self, config: Config, device: torch.device, output: Path) -> None:
        self._config, self._device = config, device
        self._base, found = open_base(config, output)
        self.beginning = told_base(config, found)
        vae: Any = load_vae(self._base)
        if not found:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)
                clear_path(vae)
            still_time_convs(vae)
            start_posterior(vae, config.vae.log_variance)
        flatten_time_convs(vae)
        vae.requires_grad_(True).train()
        if config.gradient_checkpointing:
            vae.enable_gradient_checkpointing()
        self._vae: Any = vae
        self.network = Reconstruction(vae).to(device)
        self._held_out = HeldOut(config)
        self._store, self._clips = open_frames(config, output)

    def prepare(self, positions: Iterable[int], report: Report) -> None:
        """Generate the clips that are not stored yet."""
        indices = (clip_at(self._config.seed, self._clips, position) for position in positions)
        self._store.fill(indices, self._config.data.workers, report)

    def batch(self, positions: Sequence[int]) -> Batch:
        """Frames [B,T,3,S,S], cut from consecutive frames at a place that chance decides, and noise."""
        settings = self._config.vae
        cuts, noises = [], []
        for position in positions:
            generator = generator_at(self._config.seed, position)
            frames = self._store[clip_at(self._config.seed, self._clips, position)]["frames"]
            side = (settings.crop, settings.crop) if settings.crop else frames.shape[1:3]
            sizes = (min(settings.frames, len(frames)), *side)
            starts = [
                int(torch.randint(max(0, whole - part) + 1, (), generator=generator))
                for whole, part in zip(frames.shape, sizes, strict=False)
            ]
            where = tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))
            cuts.append(to_signed(frames[where]))
            high, wide = cuts[-1].shape[-2] // 8, cuts[-1].shape[-1] // 8
            noises.append(torch.randn((sizes[0], 4, high, wide), generator=generator))
        return {"frames": torch.from_numpy(np.stack(cuts)), "noise": torch.cat(noises)}

    def loss(self, network: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Absolute and squared errors, and the KL divergence from unit noise per latent value."""
        settings = self._config.vae
        decoded, mean, log_variance = network(batch["frames"], batch["noise"])
        error = decoded.float() - batch["frames"]
        l1, mse = error.abs().mean(), (error**2).mean()
        kl = 0.5 * (mean.float() ** 2 + log_variance.exp() - 1.0 - log_variance).mean()
        total = settings.l1_weight * l1 + settings.mse_weight * mse + settings.kl_weight * kl
        return total, {"mse": mse.detach(), "kl": kl.detach()}

    @torch.inference_mode()
    def validate(self) -> tuple[Measures, NDArray[np.uint8]]:
        """PSNR and SSIM of whole held-out clips, encoded to the mode and decoded."""
        clips = [sample["frames"] for sample in self._held_out.samples()]
        return validate_vae(self._vae, clips, self._device)

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write `base/`: the base folder with this VAE, its scaling_factor measured."""
        vae = trained_vae(self._base, state)
        factor = self.measure_scaling_factor(vae.to(self._device))
        vae.register_to_config(scaling_factor=factor)
        replace_part(self._base, folder / "base", "vae", vae.half() if self._config.half_weights else vae)

    @torch.inference_mode()
    def measure_scaling_factor(self, vae: Any, clips: int = 32) -> float:
        """One over the standard deviation of the latents' modes, over the first clips."""
        modes = []
        for index in range(min(clips, self._clips)):
            images = torch.from_numpy(to_signed(self._store[index]["frames"][:2])).to(self._device)
            modes.append(vae.encode(images).latent_dist.mode())
        return 1.0 / float(torch.cat(modes).double().std())

    def skipped(self) -> Counter[str]:
        """See `task.Task`."""
        return self._store.skipped + self._held_out.skipped


def validate_vae(
    vae: Any, clips: Sequence[NDArray[np.uint8]], device: torch.device
) -> tuple[Measures, NDArray[np.uint8]]:
    """PSNR and SSIM of clips uint8 [F,H,W,3], there and back, and a contact sheet."""
    scores, rows = [], []
    vae.eval()
    for index, truth in enumerate(clips):
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
    vae.load_state_dict({key.removeprefix("vae."): value.cpu() for key, value in state.items()})
    return vae


def open_frames(config: Config, output: Path) -> tuple[Store, int]:
    """The store of the clips' pictures, and how many clips there are."""
    dataset = open_dataset(config.data)
    name = f"frames-{fingerprint(clips_key(config.data, dataset))}"
    return Store(cache_folder(config, output) / name, dataset, store_frames), len(dataset)


def store_frames(sample: Sample) -> Arrays:
    """All pictures of a clip, uint8 [1+F,H,W,3]."""
    return {"frames": with_reference(sample)[0]}


def clear_path(vae: nn.Module) -> None:
    """Initialise so that pictures pass: residual branches at zero, what changes the size averages or repeats.

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
