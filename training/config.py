"""What a training run is told: frozen dataclasses, checked when built, read from YAML.

A file may name another one (`extends: other.yaml`, relative to itself) whose values it overrides. Unknown
keys, values of a wrong kind and values out of range are `SettingsError`s that name the key.
"""

from __future__ import annotations

import re
import types
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ..errors import SettingsError
from ..settings import SIZE_MULTIPLE, Settings

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DataConfig:
    """Which clips are learned from."""

    source: str = "synthetic"
    """`synthetic`, or MODULE:NAME of a function that takes this config and returns a `ClipDataset`."""
    path: str | None = None
    """Folder of the source's files."""
    clips: int = 4000
    """Clips in an epoch."""
    characters: int = 4000
    """Synthetic people in them."""
    frames: int = 12
    """Slots of a training clip, the reference picture's own first."""
    height: int = 192
    width: int = 128
    """Pixels, multiples of 64."""
    fps: float = 15.0
    canvas: int = 256
    """Shorter side of the canvas on which poses are drawn: the bundle's default must be the same."""
    confidence_aware: bool = True
    """Whether keypoints are drawn as bright as they are sure (MimicMotion, sec. 3.2), as the runtime draws
    them; off, those surer than 0.3 at full brightness and the others not at all: for experiments only."""
    cache: str | None = None
    """Folder of prepared clips; None: `cache` beside the run's output."""
    workers: int = 1
    """Processes that make clips while the cache is filled; 0 makes them in the trainer itself."""

    def __post_init__(self) -> None:
        require(self.clips >= 1 and self.characters >= 1, "data.clips", "clips and characters start at 1")
        require(self.frames >= 2, "data.frames", "a clip has the reference and at least one driven frame")
        require(self.workers >= 0 and self.canvas >= 16 and self.fps > 0, "data", "workers, canvas or fps")
        synthetic = max(self.clips, self.characters) if self.source == "synthetic" else 0
        require(synthetic <= 10**6, "data.clips", "at most a million synthetic clips: others are to test on")
        for name in ("height", "width"):
            side = getattr(self, name)
            require(side > 0 and side % SIZE_MULTIPLE == 0, f"data.{name}", f"a multiple of {SIZE_MULTIPLE}")


@dataclass(frozen=True, slots=True)
class ObjectiveConfig:
    """What the U-Net and PoseNet are taught; see `objective`."""

    log_sigma_mean: float = 0.7
    log_sigma_std: float = 1.6
    """ln sigma ~ N(mean, std): SVD's P_mean and P_std."""
    weight_limit: float | None = None
    """At most this weight for any sigma; None: EDM's own (sigma²+1)/sigma²."""
    drop_condition: float = 0.1
    """Probability that a clip is shown without any condition, as in inference's unconditional branch."""
    noise_aug: bool = True
    """Whether noise is added to the reference picture before the VAE."""
    noise_aug_mean: float = -3.0
    noise_aug_std: float = 0.5
    """ln noise_aug ~ N(mean, std) (SVD)."""
    hand_weight: float = 10.0
    """Loss weight inside the box of a hand that is seen well (MimicMotion, sec. 3.3); 1 switches it off."""
    hand_threshold: float = 0.8
    """Every one of the 21 points of such a hand has a confidence above this."""
    skeleton_weight: float = 1.0
    """Loss weight near the limbs; 1 switches it off."""
    skeleton_radius: float = 0.06
    """How near, in fractions of the picture's height."""
    motion_bucket: int = 127
    conditioning_fps: int = 7
    """SVD's micro-conditions, as in `Settings`."""

    def __post_init__(self) -> None:
        require(self.log_sigma_std >= 0, "objective.log_sigma_std", "0 or more")
        require(self.noise_aug_std >= 0, "objective.noise_aug_std", "0 or more")
        require(self.weight_limit is None or self.weight_limit > 0, "objective.weight_limit", "above 0")
        require(0 <= self.drop_condition <= 1, "objective.drop_condition", "0 to 1")
        require(self.hand_weight > 0, "objective.hand_weight", "above 0")
        require(0 <= self.hand_threshold <= 1, "objective.hand_threshold", "0 to 1")
        require(self.skeleton_weight > 0, "objective.skeleton_weight", "above 0")
        require(self.skeleton_radius >= 0, "objective.skeleton_radius", "0 or more")


@dataclass(frozen=True, slots=True)
class VaeConfig:
    """What the VAE is taught (stages `vae`, `decoder` and `together`)."""

    kl_weight: float = 1e-5
    """Weight of the KL divergence per latent value."""
    log_variance: float = -7.0
    """What the posterior's log-variance starts from."""
    l1_weight: float = 1.0
    mse_weight: float = 2.0
    """Weights of the absolute and squared errors, pictures in [-1, 1]."""
    ssim_weight: float = 0.0
    """Weight of 1 - SSIM; stages `decoder` and `together`."""
    true_latents: float = 0.25
    """Share of the clips whose own latents the decoder sees instead of the U-Net's; the same stages."""
    latent_weight: float = 0.3
    """Weight of the U-Net's error in latents beside the pictures' errors; stage `together` only."""
    first_step: float = 0.5
    """Share of the clips that the U-Net learns to denoise from pure noise; of the others it sees what it made of
    that itself, at the objective's sigma. Stage `together` only."""
    frames: int = 2
    """Frames of a clip that are decoded together."""
    crop: int | None = 64
    """Side of the square that is learned from, a multiple of 64; None takes whole pictures."""

    def __post_init__(self) -> None:
        weights = (self.kl_weight, self.l1_weight, self.mse_weight, self.ssim_weight, self.latent_weight)
        require(min(weights) >= 0, "vae", "weights are 0 or more")
        require(0 <= self.first_step <= 1, "vae.first_step", "0 to 1")
        require(0 <= self.true_latents <= 1, "vae.true_latents", "0 to 1")
        require(self.frames >= 1, "vae.frames", "1 or more")
        require(self.crop is None or (self.crop > 0 and self.crop % 64 == 0), "vae.crop", "a multiple of 64")


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """Low-rank adapters on the U-Net instead of all its weights; PoseNet still trains whole."""

    rank: int = 16
    alpha: int = 16
    targets: str = r".*(to_q|to_k|to_v|to_out\.0)"
    """Regular expression of the layers' whole names."""
    merge: bool = True
    """Whether the final weights have the adapters folded in; they are kept apart in `lora.safetensors` anyway."""

    def __post_init__(self) -> None:
        require(self.rank >= 1 and self.alpha > 0, "lora.rank", "rank and alpha are above 0")
        try:
            re.compile(self.targets)
        except re.error as error:
            raise SettingsError(
                f"lora.targets is no regular expression: {error}.", field="lora.targets"
            ) from None


@dataclass(frozen=True, slots=True)
class OptimizerConfig:
    """How weights follow gradients."""

    name: Literal["adamw", "adamw8bit"] = "adamw"
    """`adamw8bit` needs bitsandbytes and a GPU."""
    lr: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: int = 0
    """Steps in which the learning rate rises from 0."""
    final_lr: float = 0.0
    """What the cosine ends at, as a fraction of lr."""
    clip_norm: float | None = 1.0
    """Gradients of a larger norm are scaled down to it."""

    def __post_init__(self) -> None:
        require(self.lr > 0, "optimizer.lr", "above 0")
        require(all(0 <= beta < 1 for beta in self.betas), "optimizer.betas", "0 to 1")
        require(self.warmup >= 0 and 0 <= self.final_lr <= 1, "optimizer.warmup", "warmup or final_lr")
        require(self.clip_norm is None or self.clip_norm > 0, "optimizer.clip_norm", "above 0")


@dataclass(frozen=True, slots=True)
class ValidationConfig:
    """Clips of people never trained on, sampled through the runtime's own denoising loop."""

    every: int = 500
    """Steps between validations; 0 never validates."""
    clips: int = 2
    frames: int = 15
    """Driven frames of a clip."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Values of the runtime's `Settings`, which the bundle should have as defaults."""

    def __post_init__(self) -> None:
        require(self.every >= 0 and self.clips >= 1 and self.frames >= 1, "validation", "start at 1")
        require(self.clips <= 10_000, "validation.clips", "at most 10,000")
        Settings.from_dict({"segment": 4096, **self.settings})


@dataclass(frozen=True, slots=True)
class Config:
    """One training run."""

    output: str
    """Folder of the run."""
    stage: Literal["vae", "image_encoder", "motion", "decoder", "together"] = "motion"
    """What is trained: the VAE, the CLIP stand-in, the U-Net with PoseNet, the VAE's decoder behind them, or these
    three together."""
    base: str | None = None
    """SVD's diffusers layout: a folder, or a hub id."""
    recipe: str | None = None
    """JSON file of the networks' configs, for a base with random weights where `base` is not there; in a YAML
    file relative to it. With one, a base without U-Net gets a random one; without, both are errors."""
    checkpoint: str | None = None
    """Weights unet.* and pose_net.* to start from; None: the base's own U-Net, or a random one (`recipe`)."""
    seed: int = 0
    steps: int = 1000
    """Optimizer steps of the whole run: where the cosine ends."""
    batch: int = 1
    """Clips in one forward pass on one device."""
    accumulation: int = 1
    """Forward passes for one optimizer step."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Autocast; weights stay float32."""
    gradient_checkpointing: bool = False
    ema: float | None = 0.9999
    """Decay of the weights' moving average; None keeps none."""
    save_every: int = 500
    """Steps between checkpoints; the last step is always saved."""
    keep: int = 2
    """Checkpoints that stay."""
    half_weights: bool = False
    """Whether the final weights are stored as float16."""
    comfyui: bool = False
    """Whether final weights of U-Net and PoseNet are written for ComfyUI's nodes as well, see `comfyui`."""
    tensorboard: bool = True
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    vae: VaeConfig = field(default_factory=VaeConfig)
    lora: LoraConfig | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def __post_init__(self) -> None:
        require(bool(self.base or self.recipe), "base", "a base folder, or a recipe for one")
        require(0 <= self.seed < 2**32, "seed", "0 to 2**32 - 1")
        for name in ("steps", "batch", "accumulation", "save_every", "keep"):
            require(getattr(self, name) >= 1, name, "1 or more")
        require(self.ema is None or 0 <= self.ema < 1, "ema", "0 to 1")
        require(self.lora is None or self.stage == "motion", "lora", "only for the motion stage")
        if self.stage in ("vae", "decoder", "together"):
            smaller = min(self.data.height, self.data.width)
            require((self.vae.crop or 0) <= smaller, "vae.crop", "no larger than the frames")
        if self.validation.every and self.stage in ("motion", "together"):
            Settings.from_dict({"segment": self.data.frames, **self.validation.settings})


def require(fits: bool, name: str, wanted: str) -> None:
    """Raise `SettingsError` about a key unless its value fits."""
    if not fits:
        raise SettingsError(
            f"{name} has a value that makes no sense.", remedy=f"Wanted: {wanted}.", field=name
        )


def load_config(path: str | Path) -> Config:
    """Read a YAML file; raises `SettingsError`."""
    return build(Config, read_values(Path(path)), "")


def read_values(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a YAML file, over those of the file that it extends; `above` are those that extend it."""
    import yaml

    if path.resolve() in above:
        raise SettingsError(f"{path} extends itself.", remedy="Leave `extends` out.", field="extends")
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"{path} cannot be read: {error}", field="config") from None
    if not isinstance(values, dict):
        raise SettingsError(f"{path} holds no table of settings.", field="config")
    if isinstance(values.get("recipe"), str):
        values["recipe"] = str((path.parent / values["recipe"]).resolve())
    if "extends" in values:
        below = path.parent / str(values.pop("extends"))
        return merge(read_values(below, (*above, path.resolve())), values)
    return values


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`below` with the values of `above`, tables within tables included."""
    merged = dict(below)
    for key, value in above.items():
        inner = merged.get(key)
        merged[key] = merge(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def build(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """A dataclass from plain values."""
    hints = get_type_hints(kind)
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise SettingsError(
                f"unknown key {where}{key}.", remedy=f"Known: {', '.join(known)}.", field=f"{where}{key}"
            )
    try:
        return kind(**{key: convert(hints[key], value, f"{where}{key}") for key, value in values.items()})
    except TypeError as error:  # a key without default is missing
        raise SettingsError(f"{where or 'the config'} is not complete: {error}.", field="config") from None


def convert(hint: Any, value: Any, where: str) -> Any:
    """`value` if it is of the hinted kind (a whole number is a float, too); raises `SettingsError`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return convert(next(a for a in arguments if a is not type(None)), value, where)
    if is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
        return build(hint, value, f"{where}.")
    if origin is Literal and value in arguments:
        return value
    if origin is tuple and isinstance(value, list | tuple) and len(value) == len(arguments):
        return tuple(convert(a, v, where) for a, v in zip(arguments, value, strict=True))
    if origin is Mapping and isinstance(value, dict):
        return value
    if hint in (int, str, bool) and type(value) is hint:
        return value
    if hint is float and not isinstance(value, bool):
        with suppress(TypeError, ValueError):
            return float(value)  # text, too: YAML 1.1 takes 1e-5 for that
    name = ", ".join(map(str, arguments)) if origin is Literal else getattr(hint, "__name__", str(hint))
    raise SettingsError(f"{where} is {value!r}.", remedy=f"Wanted: {name}.", field=where)
