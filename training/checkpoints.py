"""The base folder (SVD's diffusers layout) and MimicMotion checkpoints, read strictly and written.

A checkpoint is one flat file of `unet.*` and `pose_net.*` tensors, `.pth` or `.safetensors`. Every key and shape
has to be the network's; anything else is a `CheckpointError` that names it. Only tensors are unpickled.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..engines import ImageStatistics
from ..errors import CheckpointError
from ..files import output_errors
from .config import Config, LoraConfig
from .networks import ADAPTER, PoseNet, UNet

RANDOM = "base-random"
"""Folder within a run's output, where the run's base does not exist."""
PARTS = ("unet", "vae", "image_encoder", "scheduler", "feature_extractor")
SCHEDULER = Path("scheduler", "scheduler_config.json")
PREPROCESSOR = Path("feature_extractor", "preprocessor_config.json")
"""Files of the base folder."""
LAYOUT = "The base folder must have SVD's diffusers layout."
LEGACY_KEYS = frozenset({"vision_model.embeddings.position_ids"})
"""Buffers that older releases of transformers wrote and that hold no weights."""
COMFYUI_FILES = {
    "unet.": "MimicMotionMergedUnet_1-1-fp16.safetensors",
    "pose_net.": "mimic_motion_pose_net.safetensors",
}
"""Files for ComfyUI by the prefix of their keys, which they lack."""


@dataclass(frozen=True)
class Model:
    """All five networks' weights, in eval mode, float32 unless `dtype` said otherwise."""

    unet: UNet
    pose_net: PoseNet
    vae: nn.Module
    image_encoder: nn.Module
    scheduler: Mapping[str, Any]
    """`scheduler_config.json`."""
    feature_extractor: Mapping[str, Any]
    """`preprocessor_config.json`."""


def load_model(base: str | Path, checkpoint: str | Path, *, dtype: torch.dtype = torch.float32) -> Model:
    """Load the base folder (or a hub id) and a checkpoint; raises `CheckpointError`."""
    folder = resolve_base(base)
    unet = empty_unet(folder)
    pose_net = empty_pose_net(unet)
    assign({"unet.": unet, "pose_net.": pose_net}, read_state(Path(checkpoint)), str(checkpoint), dtype)
    return Model(
        unet=unet.eval().requires_grad_(False),
        pose_net=pose_net.eval().requires_grad_(False),
        vae=load_vae(folder, dtype),
        image_encoder=load_image_encoder(folder, dtype),
        scheduler=read_config(folder / SCHEDULER),
        feature_extractor=read_config(folder / PREPROCESSOR),
    )


def resolve_base(base: str | Path, *, with_unet: bool = False) -> Path:
    """A folder as it is; anything else is taken for a hub id and downloaded (needs a network).

    `with_unet` downloads SVD's own U-Net as well, which a MimicMotion checkpoint takes the place of.
    """
    if (folder := local_base(base)) is not None:
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = [f"{part}/*" for part in PARTS]
    needless = ["unet/*.fp16.safetensors"] if with_unet else ["unet/*.safetensors"]
    try:
        return Path(snapshot_download(str(base), allow_patterns=patterns, ignore_patterns=needless))
    except (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OSError,
        ValueError,
    ) as error:  # the last: a malformed id
        raise CheckpointError(
            f"base {str(base)!r} could not be downloaded: {error}",
            remedy="Check the id and your access to it, or download it yourself and give the folder.",
            field="base",
        ) from error


def local_base(base: str | Path) -> Path | None:
    """The base's folder, or None for a hub id; raises `CheckpointError` if it is neither."""
    folder = Path(base)
    if folder.is_dir():
        return folder
    if folder.exists() or str(base).startswith((".", "/", "~")) or str(base).count("/") != 1:
        raise CheckpointError(
            f"base {str(base)!r} is no folder.",
            remedy="Give the folder of SVD-XT in diffusers' layout, or a hub id such as OWNER/NAME.",
            field="base",
        )
    return None


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object from the base folder."""
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing.", remedy=LAYOUT, field="base") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}", field="base") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds no JSON object.", field="base")
    return config


def image_statistics(config: Mapping[str, Any], encoder: Any) -> ImageStatistics:
    """CLIP's input size, and its normalisation from `preprocessor_config.json`; raises `CheckpointError`."""
    try:
        red, green, blue = map(float, config["image_mean"])
        r, g, b = map(float, config["image_std"])
        return ImageStatistics(int(encoder.config.image_size), (red, green, blue), (r, g, b))
    except (KeyError, TypeError, ValueError):
        mean, std = config.get("image_mean"), config.get("image_std")
        raise CheckpointError(
            f"preprocessor_config.json: image_mean is {mean}, image_std {std}.",
            remedy="Expected three finite numbers each, those of image_std positive.",
            field="base",
        ) from None


def empty_unet(folder: Path) -> UNet:
    """The U-Net of the base folder's config on the meta device: shapes without memory."""
    unet: UNet = _empty(UNet, folder / "unet")
    return unet


def empty_pose_net(unet: UNet) -> PoseNet:
    """PoseNet on the meta device, its last layer as wide as the U-Net's first."""
    with torch.device("meta"):
        return PoseNet(unet.config["block_out_channels"][0])


def load_vae(folder: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """SVD's `AutoencoderKLTemporalDecoder`."""
    from diffusers import AutoencoderKLTemporalDecoder

    part = folder / "vae"
    vae = _empty(AutoencoderKLTemporalDecoder, part)
    file = find_weights(part, "diffusion_pytorch_model")
    assign({"": vae}, read_state(file), str(file), dtype)
    return vae.eval().requires_grad_(False)  # type: ignore[no-any-return]


def load_image_encoder(folder: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """`CLIPVisionModelWithProjection`."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    part = folder / "image_encoder"
    encoder = _empty(lambda **values: CLIPVisionModelWithProjection(CLIPVisionConfig.from_dict(values)), part)
    file = find_weights(part, "model", "pytorch_model")
    state = {key: value for key, value in read_state(file).items() if key not in LEGACY_KEYS}
    assign({"": encoder}, state, str(file), dtype)
    embeddings = encoder.vision_model.embeddings
    embeddings.register_buffer("position_ids", torch.arange(embeddings.num_positions)[None], persistent=False)
    for module in (encoder, encoder.vision_model):
        module.loss_function = None  # it has none; tracing asks for one, and transformers warns
    return encoder.eval().requires_grad_(False)  # type: ignore[no-any-return]


def _empty(kind: Any, part: Path) -> Any:
    config = read_config(part / "config.json")
    values = {key: value for key, value in config.items() if not key.startswith("_")}
    with building(f"{part}/config.json", LAYOUT, "base"), torch.device("meta"):
        return kind(**values)


@contextmanager
def building(config: str, remedy: str, field: str) -> Iterator[None]:
    """Turn what the libraries raise of a config into `CheckpointError`."""
    try:
        yield
    except Exception as error:  # of many kinds, some of their own
        message = f"{config} builds no network: {type(error).__name__}: {error}"
        raise CheckpointError(message, remedy=remedy, field=field) from error


def find_weights(part: Path, *stems: str) -> Path:
    """The weights file of one part: full precision before fp16, safetensors before pickled tensors."""
    for stem in stems:
        for ending in (".safetensors", ".fp16.safetensors", ".bin", ".fp16.bin"):
            if (part / f"{stem}{ending}").is_file():
                return part / f"{stem}{ending}"
    raise CheckpointError(
        f"{part} holds no weights ({' or '.join(stems)}.safetensors).",
        remedy="Download the whole base folder.",
        field="base",
    )


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.pth`/`.pt`/`.bin` or `.safetensors` file, memory-mapped; never runs pickled code."""
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist.", field="checkpoint")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        # Only the newer form, a zip archive, can be mapped; the older one is read.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError:  # PyTorch's own words recommend to load it all the same
        raise CheckpointError(
            f"{path} holds more than tensors, or is no checkpoint, and was not loaded.",
            remedy="Use a file of plain tensors; save it as .safetensors.",
            field="checkpoint",
        ) from None
    except Exception as error:  # both libraries raise many kinds on damaged files
        raise CheckpointError(
            f"{path} is damaged or no checkpoint: {error}", remedy="Download it again.", field="checkpoint"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise CheckpointError(
            f"{path} is no flat table of tensors.",
            remedy="Expected keys unet.* and pose_net.* at the top level.",
            field="checkpoint",
        )
    return state


def assign(
    networks: Mapping[str, nn.Module],
    state: Mapping[str, Tensor],
    source: str,
    dtype: torch.dtype | None = None,
) -> None:
    """Load `state` into `networks` (prefix of their keys -> network), after every key and shape has been checked."""
    expected = {
        prefix + key: value.shape
        for prefix, network in networks.items()
        for key, value in network.state_dict().items()
    }
    check_keys(expected, {key: value.shape for key, value in state.items()}, source)
    for prefix, network in networks.items():
        own = {
            key: value.to(dtype) if dtype and value.is_floating_point() else value
            for key, value in drop_prefix(state, prefix).items()
        }
        network.load_state_dict(own, strict=True, assign=True)


def check_keys(expected: Mapping[str, torch.Size], found: Mapping[str, torch.Size], source: str) -> None:
    """Raise `CheckpointError` naming every kind of difference between two tables of shapes."""
    missing = [key for key in expected if key not in found]
    extra = [key for key in found if key not in expected]
    misshapen = [
        f"{key} is {list(found[key])}, the network's is {list(shape)}"
        for key, shape in expected.items()
        if key in found and tuple(found[key]) != tuple(shape)
    ]
    problems = [
        f"{len(keys)} {kind} ({'; '.join(keys[:5])}{'; …' if len(keys) > 5 else ''})"
        for kind, keys in (("missing", missing), ("extra", extra), ("misshapen", misshapen))
        if keys
    ]
    if problems:
        raise CheckpointError(
            f"{source} does not fit the network: {', '.join(problems)}.",
            remedy="Use the base folder and the checkpoint that belong together.",
            field="checkpoint",
        )


def drop_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries of `state` under `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def split_adapters(state: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(weights in the network's own keys, adapters) of a state whose U-Net keys start with `prefix`."""
    plain, adapters = {}, {}
    for key, value in state.items():
        if key.startswith(prefix) and ".lora_" in key:
            adapters[key] = value
        else:
            plain[key.replace(".base_layer.", ".") if key.startswith(prefix) else key] = value
    return plain, adapters


def fold_adapters(
    unet: Any, plain: Mapping[str, Tensor], adapters: Mapping[str, Tensor], prefix: str
) -> dict[str, Tensor]:
    """Plain weights with scaling * B A added where there is an adapter; nothing is changed in place."""
    folded = dict(plain)
    for name, module in unet.named_modules():
        down, up = (adapters.get(f"{prefix}{name}.lora_{side}.{ADAPTER}.weight") for side in "AB")
        if down is not None and up is not None:
            weight = folded[f"{prefix}{name}.weight"]
            delta = module.scaling[ADAPTER] * (up.double() @ down.double())
            folded[f"{prefix}{name}.weight"] = (weight.double() + delta).to(weight.dtype)
    return folded


def save_adapters(path: Any, adapters: Mapping[str, Tensor], config: LoraConfig) -> None:
    """Write adapters as `.safetensors`, in diffusers' and peft's key layout (`unet.….lora_A.weight`).

    Rank and alpha are in the metadata, where diffusers looks for them.
    """
    from safetensors.torch import save_file

    tensors = {key.replace(f".{ADAPTER}.", "."): value.contiguous() for key, value in adapters.items()}
    about = {"unet.r": config.rank, "unet.lora_alpha": config.alpha, "unet.target_modules": config.targets}
    save_file(tensors, path, {"format": "pt", "lora_adapter_metadata": json.dumps(about)})


def save_weights(folder: Path, weights: Mapping[str, Tensor], *, half: bool, comfyui: bool = False) -> None:
    """Write `mimicmotion.safetensors` and `.pth` of `unet.*` and `pose_net.*`; float16 if `half`, else float32.

    `comfyui` also writes the two files, float16, that ComfyUI's MimicMotion nodes read: `nodes.py` of
    kijai/ComfyUI-MimicMotionWrapper. VAE and CLIP are SVD-XT 1.1's there, and only a model of SVD's size fits.
    """
    from safetensors.torch import save_file

    tensors = _stored(weights, torch.float16 if half else torch.float32)
    save_file(tensors, folder / "mimicmotion.safetensors")
    torch.save(tensors, folder / "mimicmotion.pth")
    if comfyui:
        (folder / "comfyui").mkdir()
        for prefix, name in COMFYUI_FILES.items():
            save_file(_stored(drop_prefix(tensors, prefix), torch.float16), folder / "comfyui" / name)


def _stored(weights: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {key: value.detach().to("cpu", dtype).contiguous() for key, value in weights.items()}


def open_base(config: Config, output: Path) -> tuple[Path, bool]:
    """The run's base folder, and whether it was found; if not, it is made here with random weights.

    A run that began with random weights goes on with them, even if its base has been made since. A hub id's U-Net is
    downloaded if the run begins with it.
    """
    folder = output / RANDOM
    there = config.base is not None and (Path(config.base).is_dir() or config.recipe is None)
    if config.base is not None and there and not folder.exists():
        with_unet = config.checkpoint is None and config.stage not in ("landmarks", "vae", "image_encoder")
        return resolve_base(config.base, with_unet=with_unet), True
    if not folder.exists():
        assert config.recipe is not None
        make_base(folder, read_config(Path(config.recipe)), config.seed)
    return folder, False


def describe_base(config: Config, found: bool) -> str:
    """What `open_base` found, in words."""
    if found:
        return f"base {config.base}"
    missing = "no base is given" if config.base is None else f"base {config.base} is not there"
    return f"{missing}: random networks of {config.recipe}"


def make_base(folder: Path, recipe: Mapping[str, Any], seed: int) -> None:
    """Write a base folder whose VAE and image encoder have random weights; `recipe` is part -> config."""
    from diffusers import AutoencoderKLTemporalDecoder
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    if missing := set(PARTS) - set(recipe):
        raise CheckpointError(f"the recipe lacks {', '.join(sorted(missing))}.", field="recipe")

    def fill(partial: Path) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            with building("the recipe", "Give configs as in training/configs/tiny-networks.json.", "recipe"):
                vae = AutoencoderKLTemporalDecoder(**recipe["vae"])
                encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(**recipe["image_encoder"]))
            vae.save_pretrained(partial / "vae")
            encoder.save_pretrained(partial / "image_encoder")
        for path in (Path("unet", "config.json"), SCHEDULER, PREPROCESSOR):
            (partial / path.parent).mkdir()
            (partial / path).write_text(json.dumps(recipe[path.parent.name], indent=2))

    write_folder(folder, fill)


def replace_part(source: Path, folder: Path, part: str, network: Any) -> None:
    """Write a base folder that is `source` but for one part, a diffusers or transformers model."""

    def fill(partial: Path) -> None:
        for name in PARTS:
            if name != part:
                shutil.copytree(source / name, partial / name)
        network.save_pretrained(partial / part)

    write_folder(folder, fill)


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write into a folder beside, then put it in place of what was there."""
    with output_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as place:
            partial = Path(place) / "new"
            partial.mkdir()
            fill(partial)
            share_files(partial)
            if folder.exists():
                folder.rename(Path(place) / "old")
            partial.rename(folder)


def share_files(folder: Path) -> None:
    """Give all files below a folder the mode of new files; safetensors makes its own for their owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~umask)
