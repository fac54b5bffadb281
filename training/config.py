"""What a training run is told: frozen dataclasses, checked when built, read from YAML.

A file may name another one (`extends: other.yaml`, relative to itself) whose values it overrides. Unknown keys,
values of a wrong kind and values out of range are `SettingsError`s that name the key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, StrictBool

from ..errors import SettingsError
from ..settings import SIZE_MULTIPLE, Settings
from ..validation import Pair, Real, Whole, checked, known_keys

BUNDLE_FILE = "bundle.json"
"""Written beside a trained checkpoint: the `Settings` that the model is for, which its bundle takes as defaults."""
LARGE = 10**9
Count = Annotated[int, Whole(1, LARGE)]
CountOrNone = Annotated[int, Whole(0, LARGE)]
Side = Annotated[int, Whole(SIZE_MULTIPLE, 8192), Field(multiple_of=SIZE_MULTIPLE)]
"""Pixels."""
Number = Annotated[float, Real(-LARGE, LARGE)]
NotNegative = Annotated[float, Real(0, LARGE)]
Positive = Annotated[float, Real(1e-12, LARGE)]
Share = Annotated[float, Real(0, 1)]


@checked(SettingsError, prefix="data.")
@dataclass(frozen=True)
class DataConfig:
    """Which clips are learned from."""

    source: str = "synthetic"
    """`synthetic`, or MODULE:NAME of a function that takes this config and returns a `ClipDataset`."""
    path: str | None = None
    """Folder of the source's files."""
    style: Literal["doll", "rich"] = "doll"
    """How synthetic people look; see `synthetic.character.Style`."""
    clips: Count = 4000
    """Clips in an epoch."""
    characters: Count = 4000
    """Synthetic people in them."""
    frames: Annotated[int, Whole(2, 4096)] = 12
    """Frames of a training clip: the reference picture, then the driven ones."""
    height: Side = 192
    width: Side = 128
    fps: Positive = 15.0
    canvas: Annotated[int, Whole(16, 8192)] = 256
    """Shorter side of the canvas on which poses are drawn: the bundle's default must be the same."""
    max_enlarge: Annotated[float, Real(1, 100)] = field(default=1.0, repr=False)
    """Times that recorded frames may be enlarged to reach `width` and `height`, before `Augment` cuts them closer;
    clips that need more are left out. Not in the repr, by which prepared clips are named: their content differs."""
    confidence_aware: StrictBool = True
    """Whether keypoints are drawn as bright as they are sure (MimicMotion, sec. 3.2), as the runtime draws them. Off:
    those surer than 0.3 at full brightness and the others not at all, for experiments only."""
    cache: str | None = None
    """Folder of prepared clips; None: `cache` in the run's output."""
    workers: CountOrNone = 1
    """Processes that make clips while the cache is filled; with 0 the trainer itself makes them."""

    def __post_init__(self) -> None:
        synthetic = max(self.clips, self.characters) if self.source == "synthetic" else 0
        require(synthetic <= 10**6, "data.clips", "at most a million synthetic clips: others are to test on")


@checked(SettingsError, prefix="objective.")
@dataclass(frozen=True)
class ObjectiveConfig:
    """What the U-Net and PoseNet are taught; see `objective`."""

    log_sigma_mean: Number = 0.7
    log_sigma_std: NotNegative = 1.6
    """ln sigma ~ N(mean, std): SVD's P_mean and P_std."""
    weight_limit: Positive | None = None
    """At most this weight for any sigma; None: EDM's own (sigma²+1)/sigma²."""
    drop_condition: Share = 0.1
    """Probability that a clip is shown without any condition, as in inference's unconditional branch."""
    drop_face: Share = 0.0
    """Probability that the driver's face is not drawn, as where an estimator does not find it."""
    noise_aug: StrictBool = True
    """Whether noise is added to the reference picture before the VAE."""
    noise_aug_mean: Number = -3.0
    noise_aug_std: NotNegative = 0.5
    """ln noise_aug ~ N(mean, std) (SVD)."""
    hand_weight: Positive = 10.0
    """Loss weight inside the box of a hand that is seen well (MimicMotion, sec. 3.3); 1 switches it off."""
    hand_threshold: Share = 0.8
    """Every one of the 21 points of such a hand has a confidence above this."""
    skeleton_weight: Positive = 1.0
    """Loss weight near the limbs; 1 switches it off."""
    skeleton_radius: NotNegative = 0.06
    """How near, in fractions of the picture's height."""
    motion_bucket: CountOrNone = 127
    conditioning_fps: Count = 7
    """SVD's micro-conditions, as in `Settings`."""


@checked(SettingsError, prefix="vae.")
@dataclass(frozen=True)
class VaeConfig:
    """What the VAE is taught (stages `vae`, `decoder` and `together`)."""

    kl_weight: NotNegative = 1e-5
    """Weight of the KL divergence per latent value."""
    log_variance: Number = -7.0
    """What the posterior's log-variance starts from."""
    l1_weight: NotNegative = 1.0
    mse_weight: NotNegative = 2.0
    """Weights of the absolute and squared errors, pictures in [-1, 1]."""
    ssim_weight: NotNegative = 0.0
    """Weight of 1 - SSIM; stages `decoder` and `together`."""
    true_latents: Share = 0.25
    """Share of the clips whose own latents the decoder sees instead of the U-Net's; the same stages."""
    latent_weight: NotNegative = 0.3
    """Weight of the U-Net's error in latents beside the pictures' errors; stage `together` only."""
    first_step: Share = 0.5
    """Share of the clips that the U-Net learns to denoise from pure noise; of the others it sees its own result of
    that, at the objective's sigma. Stage `together` only."""
    lean: StrictBool = False
    """Whether a VAE from random weights has no residual branches at full size, and none along time in the decoder:
    their last convolutions stay zero, and neither training nor bundles compute them."""
    latent_noise: NotNegative = 0.0
    """Noise on what the decoder sees, in standard deviations of the latents; stage `vae`."""
    perceptual_weight: NotNegative = 0.0
    """Size of the perceptual term's gradient at the pictures, beside that of the errors; stages `vae`, `together`."""
    landmarks: str | None = None
    """The file of stage `landmarks` whose features the perceptual term compares."""
    adversarial_weight: NotNegative = 0.0
    """The same for the term of a discriminator, which learns along; the same stages, one process."""
    adversarial_frames: Annotated[int, Whole(1, 4)] = 1
    """Neighbouring frames that the discriminator sees at once: with 2 or more it sees flicker too."""
    adversarial_start: Share = 0.75
    """Share of the steps before the discriminator begins."""
    frames: Count = 2
    """Frames of a clip that are decoded together."""
    crop: Side | None = 64
    """Side of the square that is learned from; None takes whole pictures."""
    focus: Share = 0.0
    """Share of the squares that are laid on a head or a hand, where keypoints show one."""

    def __post_init__(self) -> None:
        require(
            self.landmarks is not None or not self.perceptual_weight,
            "vae.landmarks",
            "a file of stage landmarks",
        )
        require(
            self.adversarial_frames <= self.frames or not self.adversarial_weight,
            "vae.adversarial_frames",
            "no more than vae.frames",
        )


@checked(SettingsError, prefix="lora.")
@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters on the U-Net instead of all its weights. PoseNet still trains whole."""

    rank: Count = 16
    alpha: Count = 16
    targets: str = r".*(to_q|to_k|to_v|to_out\.0)"
    """Regular expression of the layers' whole names."""
    merge: StrictBool = True
    """Whether the final weights have the adapters folded in; they are kept apart in `lora.safetensors` anyway."""

    def __post_init__(self) -> None:
        try:
            re.compile(self.targets)
        except re.error as error:
            raise SettingsError(
                f"lora.targets is no regular expression: {error}.", field="lora.targets"
            ) from None


@checked(SettingsError, prefix="optimizer.")
@dataclass(frozen=True)
class OptimizerConfig:
    """How weights follow gradients."""

    name: Literal["adamw", "adamw8bit", "muon"] = "adamw"
    """`adamw8bit` needs bitsandbytes and a GPU; `muon` is Muon for matrices and Adam for the rest."""
    lr: Positive = 1e-5
    betas: Annotated[tuple[Share, Share], Pair("numbers from 0 to 1")] = (0.9, 0.999)
    eps: NotNegative = 1e-8
    weight_decay: NotNegative = 0.01
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: CountOrNone = 0
    """Steps in which the learning rate rises from 0."""
    final_lr: Share = 0.0
    """What the cosine ends at, as a fraction of lr."""
    clip_norm: Positive | None = 1.0
    """Gradients of a larger norm are scaled down to it."""

    def __post_init__(self) -> None:
        require(max(self.betas) < 1, "optimizer.betas", "below 1")


@checked(SettingsError, prefix="validation.")
@dataclass(frozen=True)
class ValidationConfig:
    """Clips of people never trained on, sampled through the runtime's own denoising loop."""

    every: CountOrNone = 500
    """Steps between validations; 0 never validates."""
    clips: Annotated[int, Whole(1, 10_000)] = 2
    frames: Count = 15
    """Driven frames of a clip."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Values of the runtime's `Settings`, which the bundle should have as defaults."""

    def __post_init__(self) -> None:
        Settings.from_dict({"segment": 4096, **self.settings})


@checked(SettingsError)
@dataclass(frozen=True)
class Config:
    """One training run."""

    output: str
    """Folder of the run."""
    stage: Literal["landmarks", "vae", "image_encoder", "motion", "decoder", "together"] = "motion"
    """What is trained: a finder of landmarks, the VAE, the CLIP stand-in, the U-Net with PoseNet, the VAE's decoder
    behind them, or these three together."""
    base: str | None = None
    """SVD's diffusers layout: a folder, or a hub id."""
    recipe: str | None = None
    """JSON file of the networks' configs, for a base with random weights where `base` does not exist; in a YAML file
    relative to it. With a recipe, a base without U-Net gets a random one; without, both are errors."""
    checkpoint: str | None = None
    """Weights unet.* and pose_net.* to start from; None: the base's own U-Net, or a random one (`recipe`)."""
    seed: Annotated[int, Whole(0, 2**32 - 1)] = 0
    steps: Count = 1000
    """Optimizer steps of the whole run: where the cosine ends."""
    batch: Count = 1
    """Clips in one forward pass on one device."""
    accumulation: Count = 1
    """Forward passes for one optimizer step."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Autocast; weights stay float32."""
    gradient_checkpointing: StrictBool = False
    ema: Share | None = 0.9999
    """Decay of the weights' moving average; None keeps none."""
    save_every: Count = 500
    """Steps between snapshots; the last step is always saved."""
    keep: Count = 2
    """Snapshots that are kept."""
    half_weights: StrictBool = False
    """Whether the final weights are stored as float16."""
    comfyui: StrictBool = False
    """Whether final weights of U-Net and PoseNet are also written for ComfyUI's nodes; see `save_weights`."""
    log_every: Count = 20
    """Steps between the lines that are printed where there is no terminal."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)
    """Which of accelerate's trackers get the numbers of `metrics.jsonl` and `validation.jsonl`."""
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    vae: VaeConfig = field(default_factory=VaeConfig)
    lora: LoraConfig | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def __post_init__(self) -> None:
        require(bool(self.base or self.recipe), "base", "a base folder, or a recipe for one")
        require(self.ema is None or self.ema < 1, "ema", "below 1")
        require(self.lora is None or self.stage == "motion", "lora", "only for the motion stage")
        if self.stage in ("landmarks", "vae", "decoder", "together"):
            smaller = min(self.data.height, self.data.width)
            require((self.vae.crop or 0) <= smaller, "vae.crop", "no larger than the frames")
        if self.validation.every and self.stage in ("motion", "together"):
            Settings.from_dict({"segment": self.data.frames, **self.validation.settings})


TABLES = {
    "data": DataConfig,
    "objective": ObjectiveConfig,
    "vae": VaeConfig,
    "lora": LoraConfig,
    "optimizer": OptimizerConfig,
    "validation": ValidationConfig,
}
"""The keys of a config that hold keys of their own."""


class Loader(yaml.SafeLoader):
    """Takes 1e-5 for a number, as YAML 1.2 does; in YAML 1.1 it is a text."""


SCIENTIFIC = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
Loader.add_implicit_resolver("tag:yaml.org,2002:float", SCIENTIFIC, list("+-.0123456789"))


def require(fits: bool, name: str, wanted: str) -> None:
    """Raise `SettingsError` about a key unless its value fits."""
    if not fits:
        raise SettingsError(
            f"{name} has a value that makes no sense.", remedy=f"Wanted: {wanted}.", field=name
        )


def build(values: Mapping[str, Any]) -> Config:
    """A config from plain values such as JSON's; raises `SettingsError`."""
    known_keys(values, Config, SettingsError, prefix="", noun="key")
    for name, kind in TABLES.items():
        if isinstance(table := values.get(name), Mapping):
            known_keys(table, kind, SettingsError, prefix=f"{name}.", noun="key")
    return Config(**values)


def load_config(path: str | Path) -> Config:
    """Read a YAML file; raises `SettingsError`."""
    return build(read_values(Path(path)))


def read_values(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a YAML file, over those of the file that it extends; `above` are those that extend it."""
    if path.resolve() in above:
        raise SettingsError(f"{path} extends itself.", remedy="Leave `extends` out.", field="extends")
    try:
        values = yaml.load(path.read_text(), Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        why = getattr(error, "strerror", None) or error
        raise SettingsError(
            f"{path} cannot be read: {why}.", remedy="Check the file.", field="config"
        ) from None
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
