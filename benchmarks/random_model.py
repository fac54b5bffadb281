"""MimicMotion's networks with random weights: for seconds, memory and agreement they need not be trained.

Weights are normal with variance 1 / inputs, so that values keep their size from layer to layer; scales are 1 and
biases 0. The same seed on the same kind of device draws the same values whenever a network is made.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mimicmotion_trt.engines import (
    FEATURE_CACHE_NETWORKS,
    NETWORKS,
    Accuracy,
    GraphStats,
    Manifest,
    Network,
    network_specs,
)
from mimicmotion_trt.engines.bundle import MANIFEST, describe_file
from mimicmotion_trt.export.float16 import to_float16
from mimicmotion_trt.export.networks import engine_form, image_statistics
from mimicmotion_trt.export.stats import fit_flops
from mimicmotion_trt.export.tracing import trace_torchscript
from mimicmotion_trt.export.verify import cast_inputs, example_inputs
from mimicmotion_trt.training.checkpoints import Model, read_config
from mimicmotion_trt.training.networks import PoseNet, UNet

REAL = Path(__file__).resolve().parents[1] / "tests" / "data" / "golden" / "real-size"
"""MimicMotion's own configs, in SVD's layout and without weights."""
SMALL = REAL.parent / "tiny" / "svd"


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
            scheduler=read_config(configs / "scheduler" / "scheduler_config.json"),
            feature_extractor=read_config(configs / "feature_extractor" / "preprocessor_config.json"),
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
    specs = network_specs(
        pose_channels=model.unet.config["block_out_channels"][0],
        token_width=model.unet.config["cross_attention_dim"],
        image_size=image.size,
        dtype="float16" if half else "float32",
        cached_channels=model.unet.config["block_out_channels"][1],
    )
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
