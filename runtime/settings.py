"""What a caller may choose for one animation."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from .errors import SettingsError

Fusion = Literal["triangular", "linear"]
Noise = Literal["repeat", "independent"]
Layout = Literal["reference", "compact", "shifted"]
Schedule = Literal["karras", "align-your-steps"]

SIZE_MULTIPLE = 64
"""8x from the VAE times 8x inside the U-Net: other sizes have no whole number of cells at the deepest level."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of one animation; a value of None takes the bundle's own.

    Raises `SettingsError`, naming the field, when a value is out of range or two fields contradict.
    """

    steps: int = 25
    """Denoising steps, 1 to 1000."""
    guidance: tuple[float, float] = (2.0, 2.0)
    """Guidance of the first and of the last frame, linear between; (1, 1) runs the conditional branch only."""
    segment: int | None = None
    """Frames in one segment N, the reference picture's own frame included; at least 2."""
    overlap: int = 6
    """Frames C that neighbouring segments share, 1 <= C < N."""
    layout: Layout = "reference"
    """How segments lie: `reference` as in the paper's code, `compact` with as few computed frames as fit, `shifted`
    side by side, their borders moving over `overlap` frames from step to step (an approximation)."""
    fusion: Fusion = "triangular"
    """Weights in the overlaps: `triangular` (the code) or `linear` in the overlap position (the paper)."""
    noise: Noise = "repeat"
    """Initial noise: `repeat` one segment's along time (the reference), or `independent` for every frame."""
    seed: int = 0
    """0 <= seed < 2**64; same seed, bundle and device give the same bytes."""
    noise_aug: float = 0.0
    """Strength of the noise on the reference picture, in units of its range [-1, 1]; 0 to 10."""
    motion_bucket: int = 127
    """SVD's micro-condition for the amount of motion, 0 to 1023."""
    conditioning_fps: int = 7
    """SVD's micro-condition for the frame rate (fps - 1 goes into the network), 1 to 120."""
    sigma_min: float | None = None
    """Smallest non-zero sigma."""
    sigma_max: float | None = None
    """Largest sigma, where sampling starts."""
    size: tuple[int, int] | None = None
    """(width, height) of the video, multiples of 64; None takes the bundle's size nearest to the picture's shape."""
    canvas: int | None = None
    """Shorter side in pixels of the canvas on which poses are drawn before they are resized."""
    stride: int | None = None
    """Every how many driving frames to take; None: 2 * max(1, int(fps / 24)) for a video, 1 for keypoints."""
    frames: int | None = None
    """At most this many frames of video; None animates the whole motion."""
    decode_chunk: int = 8
    """Frames that the VAE decodes together."""
    rescale: bool = True
    """Fit the driving skeleton to the person in the reference picture."""
    preview: int = 0
    """Send a preview picture after every so many denoising steps; 0 sends none."""
    schedule: Schedule = "karras"
    """Where the sigmas lie: `karras` (the reference), or `align-your-steps`, made for about 10 steps."""
    guidance_interval: tuple[float, float] | None = None
    """(low, high): only steps whose sigma is in (low, high] are guided, the others run the conditional branch
    only; each 0 to 1e4. None guides every step. An approximation (Kynkäänniemi et al. 2024)."""
    reuse_interval: int = 1
    """Run the whole U-Net in every so manyth step, 1 to 1000, and only its first level, around the deep features
    of the last whole run, in the steps between. 1 reuses nothing. An approximation (DeepCache, Ma et al. 2024)."""

    def __post_init__(self) -> None:
        guidance: Any = self.guidance
        if isinstance(guidance, numbers.Real):
            guidance = (guidance, guidance)
        object.__setattr__(self, "guidance", _pair("guidance", guidance, float))
        if self.size is not None:
            object.__setattr__(self, "size", _pair("size", self.size, int))
        if self.guidance_interval is not None:
            interval = _pair("guidance_interval", self.guidance_interval, float)
            object.__setattr__(self, "guidance_interval", interval)
        self._check_types()
        self._check_ranges()
        self._check_together()

    def _check_together(self) -> None:
        if self.segment is not None and self.overlap >= self.segment:
            raise SettingsError(
                f"overlap {self.overlap} is not smaller than segment {self.segment}.",
                remedy="Choose an overlap below the segment's length.",
                field="settings.overlap",
            )
        low, high = self.sigma_min, self.sigma_max
        if low is not None and high is not None and low >= high:
            raise SettingsError(
                f"sigma_min {low} is not smaller than sigma_max {high}.", field="settings.sigma_min"
            )
        if self.reuse_interval > 1 and self.layout == "shifted":
            raise SettingsError(
                "no step of the shifted layout has the segments of the step before, whose features it could reuse.",
                remedy="Choose reuse_interval 1, or the layout reference or compact.",
                field="settings.reuse_interval",
            )
        if self.guidance_interval is None:
            return
        low, high = self.guidance_interval
        if low >= high:
            raise SettingsError(
                f"guidance_interval {low} to {high} is empty.",
                remedy="Give the lower sigma first, for instance 0.3 20.",
                field="settings.guidance_interval",
            )
        if self.guidance == (1.0, 1.0):
            raise SettingsError(
                "guidance_interval limits guidance, and a guidance of 1 is none.",
                remedy="Leave guidance_interval out, or choose another guidance.",
                field="settings.guidance_interval",
            )

    def _check_types(self) -> None:
        for name in ("steps", "overlap", "seed", "motion_bucket", "conditioning_fps", "decode_chunk",
                     "segment", "canvas", "stride", "frames", "preview", "reuse_interval"):  # fmt: skip
            _number(self, name, int)
        for name in ("noise_aug", "sigma_min", "sigma_max"):
            _number(self, name, float)
        for name, choices in (
            ("layout", Layout), ("fusion", Fusion), ("noise", Noise), ("schedule", Schedule)
        ):  # fmt: skip
            allowed = get_args(choices)
            if not isinstance(getattr(self, name), str) or getattr(self, name) not in allowed:
                raise SettingsError(
                    f"{name} is {getattr(self, name)!r}.",
                    remedy=f"Choose one of {', '.join(allowed)}.",
                    field=f"settings.{name}",
                )
        if not isinstance(self.rescale, bool):
            raise SettingsError(f"rescale is {self.rescale!r}, not a bool.", field="settings.rescale")

    def _check_ranges(self) -> None:
        _between("steps", self.steps, 1, 1000)
        _between("segment", self.segment, 2, 4096)
        _between("overlap", self.overlap, 1, 4095)
        _between("seed", self.seed, 0, 2**64 - 1)
        _between("noise_aug", self.noise_aug, 0.0, 10.0)
        _between("motion_bucket", self.motion_bucket, 0, 1023)
        _between("conditioning_fps", self.conditioning_fps, 1, 120)
        _between("sigma_min", self.sigma_min, 1e-6, 1e4)
        _between("sigma_max", self.sigma_max, 1e-6, 1e4)
        _between("canvas", self.canvas, 16, 8192)
        _between("stride", self.stride, 1, 10_000)
        _between("frames", self.frames, 1, 1_000_000)
        _between("decode_chunk", self.decode_chunk, 1, 4096)
        _between("preview", self.preview, 0, 1000)
        _between("reuse_interval", self.reuse_interval, 1, 1000)
        for value in self.guidance:
            _between("guidance", value, 0.0, 100.0)
        for value in self.guidance_interval or ():
            _between("guidance_interval", value, 0.0, 1e4)
        if self.size is not None:
            for side in self.size:
                _between("size", side, SIZE_MULTIPLE, 8192)
                if side % SIZE_MULTIPLE:
                    nearest = max(SIZE_MULTIPLE, round(side / SIZE_MULTIPLE) * SIZE_MULTIPLE)
                    raise SettingsError(
                        f"size {self.size[0]}x{self.size[1]} has a side that is not a multiple of {SIZE_MULTIPLE}.",
                        remedy=f"The nearest to {side} is {nearest}.",
                        field="settings.size",
                    )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """Settings from plain values (JSON, flags, a wire message); an unknown key is an error."""
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise SettingsError(
                    f"unknown setting {key!r}.",
                    remedy=f"Known settings: {', '.join(known)}.",
                    field=f"settings.{key}",
                )
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `from_dict` takes back."""
        return asdict(self)


def _pair(name: str, value: Any, kind: type) -> tuple[Any, Any]:
    try:
        first, second = value
        return _plain(first, kind), _plain(second, kind)
    except (TypeError, ValueError, OverflowError):
        raise SettingsError(
            f"{name} is {value!r}.",
            remedy=f"Give a pair of {'whole' if kind is int else 'finite'} numbers.",
            field=f"settings.{name}",
        ) from None


def _number(settings: Settings, name: str, kind: type) -> None:
    value = getattr(settings, name)
    if value is None and _may_be_none(name):
        return
    try:
        object.__setattr__(settings, name, _plain(value, kind))
    except (TypeError, ValueError, OverflowError):
        raise SettingsError(
            f"{name} is {value!r}.",
            remedy=f"Give {'a whole number' if kind is int else 'a finite number'}.",
            field=f"settings.{name}",
        ) from None


def _plain(value: Any, kind: type) -> Any:
    """A number, numpy's scalars included, as a plain int or float; raises if it is none or loses by that."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or kind(value) != value:
        raise TypeError
    return kind(value)


def _may_be_none(name: str) -> bool:
    return next(f for f in fields(Settings) if f.name == name).default is None


def _between(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not (math.isfinite(value) and low <= value <= high):
        raise SettingsError(
            f"{name} is {value}.", remedy=f"Choose {low} to {high}.", field=f"settings.{name}"
        )
