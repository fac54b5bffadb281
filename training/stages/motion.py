"""The main stage: the U-Net and PoseNet learn to animate."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...animator import Animator
from ...denoise.kernels import to_signed
from ...media.sheet import contact_sheet
from ...settings import Settings
from .. import checkpoints, objective
from ..config import BUNDLE_FILE, Config
from ..data.samples import Sample, drawn_poses, with_reference
from ..data.store import Arrays
from ..metrics import compare, means
from ..networks import PoseNet, UNet, add_adapters, flatten_time_convs, zero_branches, zero_time_taps
from ..torch_animator import Encoders, torch_animator
from .base import Batch, Losses, Measures, TrainingStage, generator_at

REGION_POINTS = ("body", "body_score", "hands", "hands_score")
"""The keypoints that tell where hands and limbs are."""


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


class MotionStage(TrainingStage):
    """The result is a checkpoint. VAE and image encoder are frozen; their outputs for each clip are stored."""

    def __init__(self, config: Config, device: torch.device, output: Path) -> None:
        super().__init__(config, device, output)
        unet = config.checkpoint or ("U-Net of the base" if has_unet(self.base) else "random U-Net")
        self.start = f"{self.start}; {unet}"
        self.encoders = Encoders.load(self.base, device)
        self.motion = MotionNetworks(*start_networks(config, self.base)).to(device)
        self.network: nn.Module = self.motion
        image_encoder = sorted((self.base / "image_encoder").glob("*"))
        vae = self.encoders.latent_weights()  # without the decoder, which may learn
        self.encoded = self.open_store("motion", self.encode, *image_encoder, *vae)
        dropped = config.objective.drop_face > 0
        self.faceless = self.open_store("faceless", self.draw_faceless) if dropped else None

    def encode(self, sample: Sample) -> Arrays:
        """What is stored of a clip of F frames, the reference first.

        Latents float16 [F,4,h,w], not scaled, token [1,D], pose pictures uint8 [F,H,W,3], reference uint8 [H,W,3],
        and the keypoints that tell where hands and limbs are.
        """
        data = self.config.data
        pictures, poses = with_reference(sample)
        return {
            "latents": self.encoders.latents(pictures).astype(np.float16),
            "embedding": self.encoders.embed(sample["reference"]),
            "poses": drawn_poses(
                poses, data.height, data.width, data.canvas, confidence_aware=data.confidence_aware
            ),
            "reference": sample["reference"],
            **{name: getattr(poses, name) for name in REGION_POINTS},
        }

    def draw_faceless(self, sample: Sample) -> Arrays:
        """The clip's pose pictures uint8 [F,H,W,3] as they are where an estimator does not find the face."""
        data, (_, poses) = self.config.data, with_reference(sample)
        scores = poses.face_score.copy()
        scores[1:] = 0  # the reference's own is found
        hidden, size = replace(poses, face_score=scores), (data.height, data.width, data.canvas)
        return {"poses": drawn_poses(hidden, *size, confidence_aware=data.confidence_aware)}

    def batch(self, positions: Sequence[int]) -> Batch:
        """Clips and the random choices for them."""
        config = self.config
        clips = [self.clip(position) for position in positions]
        regions = [
            objective.region_weights(
                config.objective,
                (clip["latents"].shape[-2], clip["latents"].shape[-1]),
                **{name: clip[name] for name in REGION_POINTS},
            )
            for clip in clips
        ]
        drawn = objective.draw(
            config.objective,
            clips[0]["latents"].shape,
            (3, *clips[0]["reference"].shape[:2]),
            [generator_at(config.seed, position) for position in positions],
        )
        parts = {
            "latents": [clip["latents"].astype(np.float32) for clip in clips],
            "embedding": [clip["embedding"] for clip in clips],
            "poses": [clip["poses"] for clip in clips],
            "reference": [to_signed(clip["reference"]) for clip in clips],
            "region": regions,
        }
        return {**{name: torch.from_numpy(np.stack(arrays)) for name, arrays in parts.items()}, **drawn}

    def clip(self, position: int) -> Arrays:
        """What `encode` gave of the clip at a position; the faces of `drop_face` of them are not drawn."""
        index = self.order[position]
        clip = self.encoded[index]
        if self.faceless is None:
            return clip
        chance = torch.rand((), generator=generator_at(self.config.seed + 3, position))
        dropped = chance < self.config.objective.drop_face
        return clip | self.faceless[index] if dropped else clip

    @property
    def sampling(self) -> dict[str, Any]:
        """The settings that clips are sampled with: the scheduler's sigmas and `validation.settings`."""
        scheduler = checkpoints.read_config(self.base / checkpoints.SCHEDULER)
        sigmas = {name: float(scheduler[name]) for name in ("sigma_min", "sigma_max")}
        return {**sigmas, **self.config.validation.settings}

    @property
    def model_settings(self) -> dict[str, Any]:
        """What the networks learn to be sampled with; those of `Settings` that a bundle takes from them."""
        usual, objective, data = Settings(), self.config.objective, self.config.data
        conditions = {name: getattr(objective, name) for name in ("motion_bucket", "conditioning_fps")}
        return {
            "segment": data.frames,
            "canvas": data.canvas,
            "steps": usual.steps,
            "guidance": list(usual.guidance),
            **{name: value for name, value in conditions.items() if value != getattr(usual, name)},
            **self.sampling,
        }

    @property
    def scale(self) -> float:
        """What the VAE's latents are multiplied by, for unit variance."""
        return self.encoders.scaling_factor

    def inputs(self, batch: Batch, noisy: Tensor, sigma: Tensor) -> tuple[Tensor, ...]:
        """What the networks are shown of noisy clips [B,F,4,h,w] at sigma [B]; see `MotionNetworks.forward`."""
        config, keep = self.config.objective, batch["keep"]
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
        """The network's x0 of noisy clips [B,F,4,h,w] at sigma [B], of unit variance."""
        v = network(*self.inputs(batch, noisy, sigma))
        return objective.denoised(v.float(), noisy, sigma)

    def loss(self, network: nn.Module, batch: Batch) -> Losses:
        """See `objective`."""
        sigma, truth = batch["sigma"], batch["latents"] * self.scale
        noisy = truth + batch["noise"] * objective.spread(sigma, truth)
        x0 = self.predict(network, batch, noisy, sigma)
        weight = objective.loss_weight(sigma, self.config.objective.weight_limit)
        losses = objective.clip_losses(x0, truth, weight, batch["region"])
        plain = objective.clip_losses(x0, truth, torch.ones_like(weight), torch.ones_like(batch["region"]))
        return losses.mean(), {"x0_error": plain.mean().detach(), "sigma": sigma.mean()}

    def validate(self) -> tuple[Measures, NDArray[np.uint8]]:
        """Sample held-out clips through the runtime's loop."""
        data = self.config.data
        size = (data.width, data.height)
        self.motion.eval()
        try:
            samples = self.held_out.samples()
            unet, pose_net = self.motion.unet, self.motion.pose_net
            with torch_animator(unet, pose_net, self.encoders, size, self.model_settings) as animator:
                return validate_motion(animator, samples, confidence_aware=data.confidence_aware)
        finally:
            self.motion.train()

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write the checkpoint; adapters go to `lora.safetensors`, and with `lora.merge` into the weights as well."""
        config, unet = self.config, self.motion.unet
        weights, adapters = checkpoints.split_adapters(state, "unet.")
        if config.lora is not None:
            checkpoints.save_adapters(folder / "lora.safetensors", adapters, config.lora)
        if config.lora is not None and config.lora.merge:
            weights = checkpoints.fold_adapters(unet, weights, adapters, "unet.")
        self.save_checkpoint(folder, weights)

    def save_checkpoint(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write weights of U-Net and PoseNet, and beside them the settings that their bundle is to have."""
        config = self.config
        checkpoints.save_weights(folder, weights, half=config.half_weights, comfyui=config.comfyui)
        settings = {"size": [config.data.width, config.data.height], **self.model_settings}
        (folder / BUNDLE_FILE).write_text(f"{json.dumps(settings, indent=1)}\n")

    def next_step(self, final: Path) -> str:
        """The command that builds a bundle."""
        base = self.config.base if self.base_found else self.base
        return build_command(str(base), final / "mimicmotion.safetensors", self.output)


def build_command(base: str, checkpoint: str | Path, run: Path) -> str:
    """The command that builds a bundle with a run's name."""
    words = ["mimicmotion-trt", "build", "--base", base, "--checkpoint", str(checkpoint)]
    return shlex.join([*words, "--output", str(Path("bundles", run.resolve().name))])


def validate_motion(
    animator: Animator, samples: Sequence[Sample], *, confidence_aware: bool
) -> tuple[Measures, NDArray[np.uint8]]:
    """The measures of `metrics.compare`, means over the sampled clips, and a contact sheet.

    Clips are sampled with the animator's default settings and a seed for each. Poses are drawn as for training,
    and the same poses tell where the hands are.
    """
    scores: list[dict[str, float | None]] = []
    rows = []
    for seed, sample in enumerate(samples):
        settings = animator.settings(seed=seed)
        pictures, poses = with_reference(sample)
        assert settings.canvas is not None
        height, width = pictures.shape[1:3]
        drawn = drawn_poses(poses, height, width, settings.canvas, confidence_aware=confidence_aware)
        reference, truth = sample["reference"], sample["frames"]
        latents = animator.sample(reference, drawn, settings)
        video = animator.decode(latents, settings.decode_chunk)[1:]
        scores.append(compare(video, truth, reference, sample["observed"], settings))
        rows += [
            (f"clip {seed}: reference, then poses", [reference, *drawn[1:]]),
            ("truth", [reference, *truth]),
            (f"sampled, {scores[-1]['psnr']:.1f} dB", [reference, *video]),
        ]
    return means(scores), contact_sheet(rows)


def start_networks(config: Config, base: Path) -> tuple[UNet, PoseNet]:
    """U-Net and PoseNet as training begins: a checkpoint's, or the base's own U-Net and a random PoseNet.

    A base without a U-Net gets a random one where the config has a recipe; without one it is a `CheckpointError`.
    """
    unet, pose_net = checkpoints.empty_unet(base), None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if config.checkpoint is not None:
            pose_net = checkpoints.empty_pose_net(unet)
            state = checkpoints.read_state(Path(config.checkpoint))
            checkpoints.assign(
                {"unet.": unet, "pose_net.": pose_net}, state, config.checkpoint, torch.float32
            )
        elif config.recipe is None or has_unet(base):
            file = checkpoints.find_weights(base / "unet", "diffusion_pytorch_model")
            checkpoints.assign({"": unet}, checkpoints.read_state(file), str(file), torch.float32)
        else:
            unet = UNet(**{key: value for key, value in unet.config.items() if not key.startswith("_")})
            zero_time_taps(unet)
            zero_branches(unet)
            nn.init.zeros_(unet.conv_out.weight)
        if pose_net is None:
            pose_net = PoseNet(unet.config["block_out_channels"][0])
            start_pose_net(pose_net)
    flatten_time_convs(unet)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if config.lora is not None:
        add_adapters(unet, config.lora)
    return unet.train(), pose_net.train()


def has_unet(base: Path) -> bool:
    """Whether a base folder has a U-Net's weights, not only its config."""
    return any(file.suffix in (".safetensors", ".bin") for file in (base / "unet").glob("*"))


def start_pose_net(pose_net: PoseNet) -> None:
    """He's initialisation of the eight convolutions; the projection stays at zero."""
    for module in pose_net.conv_layers:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
