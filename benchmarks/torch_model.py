"""What the benchmarks measure in PyTorch: MimicMotion's networks with random weights, and the plain loop.

For seconds, memory and agreement the networks need not be trained. Weights are normal with variance 1 / inputs, so
that values keep their size from layer to layer; scales are 1 and biases 0. The same seed on the same kind of device
draws the same values whenever a network is made.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mimicmotion_trt.denoise.kernels import clip_pixels, to_signed
from mimicmotion_trt.denoise.schedule import karras_sigmas
from mimicmotion_trt.denoise.segments import cut_segments
from mimicmotion_trt.engines import (
    FEATURE_CACHE_NETWORKS,
    NETWORKS,
    Accuracy,
    GraphStats,
    ImageStatistics,
    Manifest,
    Network,
)
from mimicmotion_trt.engines.bundle import MANIFEST, describe_file
from mimicmotion_trt.export.float16 import to_float16
from mimicmotion_trt.export.networks import engine_form
from mimicmotion_trt.export.stats import fit_flops
from mimicmotion_trt.export.tracing import trace_torchscript
from mimicmotion_trt.export.verify import cast_inputs, example_inputs
from mimicmotion_trt.settings import Settings
from mimicmotion_trt.training.checkpoints import (
    PREPROCESSOR,
    SCHEDULER,
    Model,
    image_statistics,
    read_config,
)
from mimicmotion_trt.training.networks import PoseNet, UNet, model_specs

REAL = Path(__file__).resolve().parents[1] / "tests" / "data" / "golden" / "real-size"
"""MimicMotion's own configs, in SVD's layout and without weights."""
SMALL = REAL.parent / "tiny" / "svd"
Pictures = NDArray[np.uint8]


def random_model(configs: Path, device: str = "cpu", seed: int = 0) -> Model:
    """All five networks of a folder of configs, float32 on `device` (of "meta" only shapes), in eval mode."""
    from diffusers import AutoencoderKLTemporalDecoder
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    unet, vae, clip = (
        read_config(configs / part / "config.json") for part in ("unet", "vae", "image_encoder")
    )
    with torch.device(device):
        model = Model(
            unet=UNet(**unet),
            pose_net=PoseNet(unet["block_out_channels"][0]),
            vae=AutoencoderKLTemporalDecoder.from_config(vae),
            image_encoder=CLIPVisionModelWithProjection(CLIPVisionConfig(**clip)),
            scheduler=read_config(configs / SCHEDULER),
            feature_extractor=read_config(configs / PREPROCESSOR),
        )
    for module in (model.unet, model.pose_net, model.vae, model.image_encoder):
        module.eval().requires_grad_(False)
        if device != "meta":
            generator = torch.Generator(device).manual_seed(seed)
            for name, values in module.named_parameters():
                values.copy_(draw(name, values.shape, generator))
    return model


def draw(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Values of one parameter, float32 on the generator's device."""
    device = generator.device
    if name.endswith("scale") or ("norm" in name and name.endswith("weight")):
        return torch.ones(shape, device=device)
    if len(shape) < 2:
        return torch.zeros(shape, device=device)
    return torch.randn(shape, generator=generator, device=device) / math.sqrt(math.prod(shape[1:]))


def save_model(folder: Path, configs: Path) -> None:
    """Random float16 weights as files: a base in `folder`/svd and the checkpoint `folder`/mimicmotion.safetensors.

    The checkpoint is renamed into place last: where it is, everything is.
    """
    from safetensors.torch import save_file

    base, generator = folder / "svd", torch.Generator().manual_seed(0)
    ignore = shutil.ignore_patterns("checkpoint_keys.json", "*.safetensors")
    shutil.copytree(configs, base, ignore=ignore, dirs_exist_ok=True)  # one that was interrupted may be there
    base.chmod(0o755)
    model = random_model(configs, "meta")

    def weights(module: nn.Module, prefix: str = "") -> dict[str, Tensor]:
        state = module.state_dict()
        return {prefix + name: draw(name, value.shape, generator).half() for name, value in state.items()}

    save_file(weights(model.vae), base / "vae" / "diffusion_pytorch_model.safetensors")
    save_file(weights(model.image_encoder), base / "image_encoder" / "model.safetensors")
    state = {**weights(model.unet, "unet."), **weights(model.pose_net, "pose_net.")}
    beside = folder / ".mimicmotion.safetensors"
    save_file(state, beside)
    beside.replace(folder / "mimicmotion.safetensors")


def write_bundle(
    folder: Path, configs: Path, device: str, *, half: bool, size: tuple[int, int], segment: int,
    deep_cache: bool = False,
) -> Path:  # fmt: skip
    """A torch bundle of the random model that `random_model` makes on `device`; nothing of it is proven.

    `size` is (width, height). `deep_cache` adds the networks that reuse features. What is there already is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / MANIFEST
    networks = dict(Manifest.from_json(manifest.read_text()).networks) if manifest.exists() else {}
    missing = [
        name for name in (*NETWORKS, *(FEATURE_CACHE_NETWORKS if deep_cache else ())) if name not in networks
    ]
    if not missing:
        return folder
    model = random_model(configs, device)
    image = image_statistics(model.feature_extractor, model.image_encoder)
    specs = model_specs(model.unet, image.size, "float16" if half else "float32", deep_cache=True)
    for name in missing:
        if name in FEATURE_CACHE_NETWORKS:  # a form of the U-Net rewrites its module in place
            model = replace(model, unet=random_model(configs, device).unet)
        module, spec = engine_form(name, model), specs[name]
        flops = fit_flops(name, module, spec)
        module = to_float16(module, name) if half else module
        inputs = cast_inputs(example_inputs(name, spec, (2, 2, 8, 16), seed=0), spec)
        path = folder / f"{name}.ts"
        trace_torchscript(module, {key: value.to(device) for key, value in inputs.items()}, spec, path)
        unproven, uncounted = Accuracy(0.0, 0.0, 0.0, 0), GraphStats(0, 0, 0, 0, 0, 0, 0, 0, 0)
        networks[name] = Network(spec, (describe_file(path),), unproven, flops, uncounted)
    sigmas: Mapping[str, Any] = {key: float(model.scheduler[key]) for key in ("sigma_min", "sigma_max")}
    made = Manifest(
        backend="torch",
        precision="fp16" if half else "fp32",
        build=f"random weights of {configs.name}, {'float16' if half else 'float32'}",
        networks=networks,
        sizes=(size,),
        rows=(1, 2),
        scaling_factor=float(read_config(configs / "vae" / "config.json").get("scaling_factor", 0.18215)),
        image=image,
        defaults={**sigmas, "segment": segment, "overlap": min(6, segment - 1)},
    )
    manifest.write_text(made.to_json())
    return folder


class TorchLoop:
    """MimicMotion in eager PyTorch, in the reference's order of work; settings are resolved.

    At every step, for every segment: PoseNet, then the U-Net once without and once with the conditions. The
    predictions are fused over segments, guided, and one Euler step is made. Latents are float32; networks run on the
    device and in the dtype of the model.
    """

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
        embedding = model.image_encoder(pixels).image_embeds[:, None] * settings.image_strength
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
        begin, end = (round(settings.steps * share) for share in (settings.pose_start, settings.pose_end))
        latents = noise * math.sqrt(float(sigmas[0]) ** 2 + 1)
        for step, (sigma, following) in enumerate(pairwise(map(float, sigmas))):
            strength = settings.pose_strength if begin <= step < end else 0.0
            scaled = latents / math.sqrt(sigma**2 + 1)
            predictions = [torch.zeros_like(latents), torch.zeros_like(latents)]
            total = torch.zeros(frames, 1, 1, 1, device=device)
            for segment in plan:
                total[segment] += weight
                for branch in (0, 1):
                    output = self._predict(
                        scaled, segment, branch, sigma, ids, embedding, image_latents, poses, strength
                    )
                    predictions[branch][segment] += weight * output
            without, given = (prediction / total for prediction in predictions)
            v = without + guidance * (given - without)
            x0 = -v * (sigma / math.sqrt(sigma**2 + 1)) + latents / (sigma**2 + 1)
            latents = latents + (latents - x0) / sigma * (following - sigma)
        return latents

    def _predict(
        self, scaled: Tensor, segment: Tensor, branch: int, sigma: float, ids: Tensor, embedding: Tensor,
        image_latents: Tensor, poses: Tensor, strength: float,
    ) -> Tensor:  # fmt: skip
        """The U-Net's answer [N,4,h,w] for one segment and branch; PoseNet runs with the conditional one."""
        pose = self._model.pose_net(poses[segment])[None] * strength if branch and strength else None
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
