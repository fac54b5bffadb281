"""The main stage: the U-Net and PoseNet learn to animate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..denoise.kernels import to_signed
from . import objective
from .adapters import add_adapters, fold_adapters, save_adapters, split_adapters
from .base import open_base, told_base
from .checkpoints import (
    assign,
    empty_pose_net,
    empty_unet,
    find_weights,
    read_config,
    read_state,
)
from .comfyui import save_comfyui
from .config import Config
from .data.regions import region_weights
from .data.samples import HeldOut, Sample, clips_key, drawn_poses, open_dataset, with_reference
from .data.store import Arrays, Store, clip_at
from .encoders import Encoders
from .networks import PoseNet, UNet
from .task import Batch, Measures, Report, cache_folder, fingerprint, generator_at
from .temporal import flatten_time_convs, quiet_branches, still_time_convs
from .torch_animator import torch_animator
from .validation import validate_motion


class MotionNetworks(nn.Module):
    """The two networks that train; the keys of its state are a MimicMotion checkpoint's."""

    def __init__(self, unet: UNet, pose_net: PoseNet) -> None:
        super().__init__()
        self.unet, self.pose_net = unet, pose_net

    def forward(
        self, latents: Tensor, timestep: Tensor, embedding: Tensor, ids: Tensor, poses: Tensor, keep: Tensor
    ) -> Tensor:
        """latents [B,F,8,h,w], timestep [B], embedding [B,1,D], ids [B,3], poses uint8 [B,F,H,W,3], keep [B].

        Returns v [B,F,4,h,w]. A clip that is not kept gets no pose features at all, not those of a black picture.
        """
        pictures = poses.flatten(0, 1).permute(0, 3, 1, 2) / 127.5 - 1.0
        features = self.pose_net(pictures).unflatten(0, poses.shape[:2])
        features = features * objective.spread(keep, features)
        prediction: Tensor = self.unet(latents, timestep, embedding, ids, features)[0]
        return prediction


class MotionTask:
    """See `task.Task`. The VAE and the image encoder are frozen; what they say of a clip is stored."""

    def __init__(self, config: Config, device: torch.device, output: Path) -> None:
        self._config, self._device = config, device
        self._base, found = open_base(config, output)
        unet = config.checkpoint or ("U-Net of the base" if has_unet(self._base) else "random U-Net")
        self.beginning = f"{told_base(config, found)}; {unet}"
        self.encoders = Encoders.load(self._base, device)
        self.network = MotionNetworks(*start_networks(config, self._base)).to(device)
        dataset = open_dataset(config.data)
        self.held_out = HeldOut(config)
        image_encoder = sorted((self._base / "image_encoder").glob("*"))
        vae = self.encoders.latent_weights()  # its decoder may learn, and the clips stay what they are
        name = f"motion-{fingerprint(clips_key(config.data, dataset), *image_encoder, *vae)}"
        self._store = Store(cache_folder(config, output) / name, dataset, self.examine)
        self._clips = len(dataset)

    def examine(self, sample: Sample) -> Arrays:
        """What is stored of a clip."""
        data = self._config.data
        pictures, poses = with_reference(sample)
        return {
            "latents": self.encoders.latents(pictures).astype(np.float16),
            "embedding": self.encoders.embed(sample["reference"]),
            "poses": drawn_poses(
                poses, data.height, data.width, data.canvas, confidence_aware=data.confidence_aware
            ),
            "reference": sample["reference"],
            "body": poses.body,
            "body_score": poses.body_score,
            "hands": poses.hands,
            "hands_score": poses.hands_score,
        }

    def prepare(self, positions: Iterable[int], report: Report) -> None:
        """Encode the clips that are not stored yet."""
        indices = (clip_at(self._config.seed, self._clips, position) for position in positions)
        self._store.fill(indices, self._config.data.workers, report)

    def batch(self, positions: Sequence[int]) -> Batch:
        """Clips and what chance decides for them."""
        config = self._config
        clips = [self._store[clip_at(config.seed, self._clips, position)] for position in positions]
        regions = [
            region_weights(
                config.objective,
                (clip["latents"].shape[-2], clip["latents"].shape[-1]),
                **{name: clip[name] for name in ("body", "body_score", "hands", "hands_score")},
            )
            for clip in clips
        ]
        drawn = objective.draw(
            config.objective,
            clips[0]["latents"].shape,
            (3, *clips[0]["reference"].shape[:2]),
            [generator_at(config.seed, position) for position in positions],
        )
        stacked = {
            name: np.stack([clip[name] for clip in clips]) for name in ("latents", "embedding", "poses")
        }
        references = np.stack([to_signed(clip["reference"]) for clip in clips])
        return {
            "latents": torch.from_numpy(stacked["latents"].astype(np.float32)),
            "embedding": torch.from_numpy(stacked["embedding"]),
            "poses": torch.from_numpy(stacked["poses"]),
            "reference": torch.from_numpy(references),
            "region": torch.from_numpy(np.stack(regions)),
            **vars(drawn),
        }

    @property
    def settings(self) -> dict[str, Any]:
        """How clips are sampled: the scheduler's range of sigmas, and what the config says of validation."""
        scheduler = read_config(self._base / "scheduler" / "scheduler_config.json")
        sigmas = {name: float(scheduler[name]) for name in ("sigma_min", "sigma_max")}
        return {**sigmas, **self._config.validation.settings}

    @property
    def scale(self) -> float:
        """Of the VAE's latents, to unit variance."""
        return self.encoders.scaling_factor

    def inputs(self, batch: Batch, noisy: Tensor, sigma: Tensor) -> tuple[Tensor, ...]:
        """What the networks are shown of noisy clips [B,F,4,h,w] at sigma [B]; see `MotionNetworks.forward`."""
        config, keep = self._config.objective, batch["keep"]
        image_latents = batch["latents"][:, 0]
        if config.noise_aug:
            noise = batch["picture_noise"] * objective.spread(batch["noise_aug"], batch["picture_noise"])
            image_latents = self.encoders.mode(batch["reference"] + noise)
        return (
            objective.network_latents(noisy, sigma, image_latents, keep),
            objective.timestep(sigma),
            batch["embedding"] * objective.spread(keep, batch["embedding"]),
            objective.time_ids(config, batch["noise_aug"]),
            batch["poses"],
            keep,
        )

    def predict(self, network: nn.Module, batch: Batch, noisy: Tensor, sigma: Tensor) -> Tensor:
        """What the networks believe of noisy clips [B,F,4,h,w] at sigma [B]: x0 as they are, of unit variance."""
        v = network(*self.inputs(batch, noisy, sigma))
        return objective.denoised(v.float(), noisy, sigma)

    def loss(self, network: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """See `objective`."""
        sigma, truth = batch["sigma"], batch["latents"] * self.scale
        noisy = truth + batch["noise"] * objective.spread(sigma, truth)
        x0 = self.predict(network, batch, noisy, sigma)
        weight = objective.loss_weight(sigma, self._config.objective.weight_limit)
        losses = objective.clip_losses(x0, truth, weight, batch["region"])
        plain = objective.clip_losses(x0, truth, torch.ones_like(weight), torch.ones_like(batch["region"]))
        return losses.mean(), {"x0_error": plain.mean().detach(), "sigma": sigma.mean()}

    def validate(self) -> tuple[Measures, NDArray[np.uint8]]:
        """Sample held-out clips through the runtime's loop."""
        config, networks = self._config, self.network
        defaults = {"segment": config.data.frames, "canvas": config.data.canvas, **self.settings}
        size = (config.data.width, config.data.height)
        networks.eval()
        animator = torch_animator(networks.unet, networks.pose_net, self.encoders, size, defaults)
        try:
            samples = self.held_out.samples()
            return validate_motion(animator, samples, confidence_aware=config.data.confidence_aware)
        finally:
            networks.train()

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write `mimicmotion.pth` and `.safetensors`: flat `unet.*`, `pose_net.*`; adapters folded in or apart."""
        weights, adapters = split_adapters(self.network.unet, state, "unet.")
        if adapters:
            save_adapters(folder / "lora.safetensors", adapters)
        if adapters and self._config.lora is not None and self._config.lora.merge:
            weights = fold_adapters(self.network.unet, weights, adapters, "unet.")
        save_weights(folder, weights, self._config)

    def skipped(self) -> Counter[str]:
        """See `task.Task`."""
        return self._store.skipped + self.held_out.skipped


def start_networks(config: Config, base: Path) -> tuple[UNet, PoseNet]:
    """U-Net and PoseNet as training begins: a checkpoint's, or the base's own U-Net and a random PoseNet.

    A base without a U-Net gets a random one where the config has a recipe; without one it is a `CheckpointError`.
    """
    unet, pose_net = empty_unet(base), None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if config.checkpoint is not None:
            pose_net = empty_pose_net(unet)
            state = read_state(Path(config.checkpoint))
            assign({"unet": unet, "pose_net": pose_net}, state, config.checkpoint, torch.float32)
        elif config.recipe is None or has_unet(base):
            file = find_weights(base / "unet", "diffusion_pytorch_model")
            assign({"": unet}, read_state(file), str(file), torch.float32)
        else:
            unet = UNet(**{key: value for key, value in unet.config.items() if not key.startswith("_")})
            still_time_convs(unet)
            quiet_branches(unet)
            nn.init.zeros_(unet.conv_out.weight)
        if pose_net is None:
            pose_net = PoseNet(unet.config["block_out_channels"][0])
            wake_pose_net(pose_net)
    flatten_time_convs(unet)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if config.lora is not None:
        add_adapters(unet, config.lora)
    return unet.train(), pose_net.train()


def has_unet(base: Path) -> bool:
    """Whether a base folder has a U-Net's weights, not only its config."""
    return any(file.suffix in (".safetensors", ".bin") for file in (base / "unet").glob("*"))


def wake_pose_net(pose_net: PoseNet) -> None:
    """He's initialisation of the eight convolutions; the projection stays at zero."""
    for module in pose_net.conv_layers:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            assert module.bias is not None
            nn.init.zeros_(module.bias)


def save_weights(folder: Path, weights: Mapping[str, Tensor], config: Config) -> None:
    """Write a checkpoint in both formats that `checkpoints.read_state` takes, and `comfyui/` if it is asked for."""
    from safetensors.torch import save_file

    dtype = torch.float16 if config.half_weights else torch.float32
    tensors = {key: value.detach().to("cpu", dtype).contiguous() for key, value in weights.items()}
    save_file(tensors, folder / "mimicmotion.safetensors")
    torch.save(tensors, folder / "mimicmotion.pth")
    if config.comfyui:
        save_comfyui(folder / "comfyui", tensors)
