"""What a caller may choose for one animation."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any, Literal, TypedDict

from pydantic import AfterValidator, BeforeValidator, StrictBool

from .errors import SettingsError
from .validation import Pair, Real, Whole, checked, known_keys, remedied

Fusion = Literal["triangular", "linear"]
Noise = Literal["repeat", "independent"]
Layout = Literal["reference", "compact", "shifted"]
Schedule = Literal["karras", "align-your-steps"]
Framing = Literal["person", "centre", "pad"]
Part = Literal["body", "hands", "face"]
Face = Literal["driver", "reference", "none"]

SIZE_MULTIPLE = 64
"""8 from the VAE times 8 inside the U-Net: the deepest level of any other size has a broken last pixel."""
REFERENCE = {"sigma_min": 0.002, "sigma_max": 700.0, "canvas": 2160}
"""MimicMotion's own values, where neither the settings nor the bundle have others."""


def _multiple(side: int) -> int:
    if side % SIZE_MULTIPLE:
        nearest = max(SIZE_MULTIPLE, round(side / SIZE_MULTIPLE) * SIZE_MULTIPLE)
        raise remedied(f"The sides are multiples of {SIZE_MULTIPLE}; the nearest to {side} is {nearest}.")
    return side


PERSONS = ("largest", "centre", "left", "right")


def _person(value: Any) -> Any:
    """One of `PERSONS`, a number or a box, as text."""
    remedy = f"Give {', '.join(PERSONS)}, a number from 1 on, or a box: left, top, right, bottom."
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    elif isinstance(value, tuple | list):
        value = ",".join(map(str, value))
    if not isinstance(value, str):
        raise remedied(remedy)
    text = "".join(value.split()).lower()
    if text in PERSONS or (text.isdecimal() and text.isascii() and int(text[:9]) >= 1 and len(text) < 9):
        return text
    try:
        left, top, right, bottom = map(float, text.split(","))
    except ValueError:
        raise remedied(remedy) from None
    if not (0 <= left < right < 1e6 and 0 <= top < bottom < 1e6):
        raise remedied(
            "The sides of a box are left, top, right, bottom, in fractions of the picture or in pixels."
        )
    return text


PARTS: tuple[Part, ...] = ("body", "hands", "face")
"""Of a pose; its arrays are called so, and their confidences `…_score`."""


def _parts(value: Any) -> Any:
    """Some of `PARTS` in their order, from "body,hands" or any collection."""
    named = value.replace(",", " ").split() if isinstance(value, str) else value
    try:
        chosen = set(named)
    except TypeError:
        chosen = set()
    if not chosen or not chosen <= set(PARTS):
        raise remedied(f"Give one or more of {', '.join(PARTS)}.")
    return tuple(part for part in PARTS if part in chosen)


STRONGEST = 10.0
"""The largest strength of a LoRA, of either sign."""


def split_lora(text: str) -> tuple[str, float]:
    """Name and strength of "NAME" or "NAME:STRENGTH"; the strength is 1 where none is given."""
    name, _, strength = text.rpartition(":")
    try:
        return (name, float(strength)) if name else (text, 1.0)
    except ValueError:  # a name with a colon
        return text, 1.0


def check_lora_names(choice: Sequence[str] | None, known: Iterable[str]) -> None:
    """Raise `SettingsError` for a LoRA, NAME or NAME:STRENGTH, that is not among the known names."""
    names = list(known)
    for name, _ in map(split_lora, choice or ()):
        if name not in names:
            raise SettingsError(
                f"there is no LoRA {name!r:.120}.",
                remedy=f"Choose from: {', '.join(names)}." if names else "None was loaded; leave lora out.",
                field="settings.lora",
            )


def _loras(value: Any) -> Any:
    """A tuple of NAME:STRENGTH, strengths of 1 left out, from one text or several."""
    if value is None:
        return None
    entries = [value] if isinstance(value, str) else value
    remedy = f"Give NAME or NAME:STRENGTH, each name once, strengths from {-STRONGEST:g} to {STRONGEST:g}."
    if not isinstance(entries, list | tuple) or not all(isinstance(entry, str) for entry in entries):
        raise remedied(remedy)
    pairs = list(map(split_lora, entries))
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names) or not all(
        name and len(name) <= 4096 and abs(strength) <= STRONGEST for name, strength in pairs
    ):
        raise remedied(remedy)
    return tuple(name if strength == 1 else f"{name}:{strength!r}" for name, strength in pairs)


Lora = Annotated[tuple[str, ...], BeforeValidator(_loras)]
Person = Annotated[str, BeforeValidator(_person)]
Parts = Annotated[tuple[Part, ...], BeforeValidator(_parts)]
MOST_VIDEOS = 100
"""Videos of one job."""


def _seeds(value: Any) -> Any:
    """One or more different seeds, also as text: `1,2,3`."""
    if isinstance(value, str):
        value = [int(part) if part.strip().isdecimal() else part for part in value.split(",")]
    if not isinstance(value, tuple | list | range) or not 1 <= len(value) <= MOST_VIDEOS:
        raise remedied(f"Give 1 to {MOST_VIDEOS} seeds.")
    if len(set(map(str, value))) < len(value):
        raise remedied("Give each seed once: the same seed gives the same video.")
    return tuple(value)


KEEP = "keep"
"""The background that leaves a picture as it is."""


def _background(value: Any) -> Any:
    """`keep`, or a colour as #rrggbb, from any name or code that CSS has without transparency."""
    if value == KEEP:
        return KEEP
    from PIL import ImageColor  # loaded for a colour only

    try:
        red, green, blue = tuple(ImageColor.getrgb(value))
    except (ValueError, AttributeError, TypeError):
        raise remedied("Give keep, a colour's name (green), or its code (#00ff00).") from None
    return f"#{red:02x}{green:02x}{blue:02x}"


Seed = Annotated[int, Whole(0, 2**64 - 1)]
Side = Annotated[int, Whole(SIZE_MULTIPLE, 8192), AfterValidator(_multiple)]
Guidance = Annotated[float, Real(0.0, 100.0)]
Sigma = Annotated[float, Real(1e-6, 1e4)]
Bound = Annotated[float, Real(0.0, 1e4)]
Strength = Annotated[float, Real(0.0, 4.0)]
Fraction = Annotated[float, Real(0.0, 1.0)]


@checked(SettingsError, prefix="settings.")
@dataclass(frozen=True)
class Settings:
    """Settings of one animation; a value of None takes the bundle's own.

    Raises `SettingsError`, naming the field, when a value is out of range or two fields contradict.
    """

    steps: Annotated[int, Whole(1, 1000)] = 25
    """Denoising steps, 1 to 1000."""
    guidance: Annotated[tuple[Guidance, Guidance], Pair("finite numbers", repeat=True)] = (2.0, 2.0)
    """Guidance of the first and the last frame. Linear between them; (1, 1) runs the conditional branch only."""
    segment: Annotated[int, Whole(2, 4096)] | None = None
    """Frames in one segment, the picture's included. N, at least 2."""
    overlap: Annotated[int, Whole(1, 4095)] = 6
    """Frames that neighbouring segments share. C, 1 <= C < N."""
    layout: Layout = "reference"
    """How segments lie. `reference` as in the paper's code; `compact` computes as few frames as possible; `shifted`
    puts them side by side and moves their borders by up to `overlap` frames in each step (an approximation)."""
    fusion: Fusion = "triangular"
    """Weights in the overlaps. `triangular` (the code) or `linear` in the overlap position (the paper)."""
    noise: Noise = "repeat"
    """Initial noise. `repeat` repeats one segment's along time (the reference), `independent` draws every frame."""
    seed: Seed = 0
    """Chooses the noise. 0 <= seed < 2**64; same seed, bundle and device give the same bytes."""
    noise_aug: Annotated[float, Real(0.0, 10.0)] = 0.0
    """Noise on the reference picture, 0 to 10. Its strength in units of the picture's range [-1, 1]."""
    motion_bucket: Annotated[int, Whole(0, 1023)] = 127
    """Amount of motion that SVD is told, 0 to 1023. A micro-condition."""
    conditioning_fps: Annotated[int, Whole(1, 120)] = 7
    """Frame rate that SVD is told, 1 to 120. A micro-condition; fps - 1 goes into the network."""
    sigma_min: Sigma | None = None
    """Smallest non-zero sigma."""
    sigma_max: Sigma | None = None
    """Largest sigma, where sampling starts."""
    size: Annotated[tuple[Side, Side] | None, Pair("whole numbers")] = None
    """Size of the video. (width, height), multiples of 64; None takes the bundle's nearest to the picture's shape."""
    canvas: Annotated[int, Whole(16, 8192)] | None = None
    """Poses are drawn in this size, then resized. The shorter side of their canvas in pixels."""
    stride: Annotated[int, Whole(1, 10_000)] | None = None
    """Take every n-th driving frame; None: 2 * max(1, int(fps / 24)) for a video, 1 for keypoints and with `fps`."""
    frames: Annotated[int, Whole(1, 1_000_000)] | None = None
    """At most so many frames; None animates the whole motion."""
    decode_chunk: Annotated[int, Whole(1, 4096)] = 8
    """Frames that the VAE decodes together."""
    rescale: StrictBool = True
    """Fit the skeleton to the picture's person."""
    preview: Annotated[int, Whole(0, 1000)] = 0
    """A preview picture after every n-th step; 0 makes none."""
    schedule: Schedule = "karras"
    """Where the sigmas lie. `karras` (the reference), or `align-your-steps`, made for about 10 steps."""
    guidance_interval: Annotated[tuple[Bound, Bound] | None, Pair("finite numbers")] = None
    """Only steps with a sigma in this range are guided. (low, high): low is not in it, high is, each 0 to 1e4; the
    others run the conditional branch only. None guides every step. An approximation (Kynkäänniemi et al. 2024)."""
    reuse_interval: Annotated[int, Whole(1, 1000)] = 1
    """Run the full U-Net in every n-th step only. 1 to 1000; steps between run only its first level, on the cached
    features of the last full step. 1 runs every step in full. An approximation (DeepCache, Ma et al. 2024)."""
    framing: Framing = "person"
    """Which part of the picture is animated. `centre`, the largest part around the middle (the reference); `person`,
    the same unless that cuts the person, then one that holds them, with edges continued where none is large enough;
    `pad`, the whole picture with its edges continued."""
    person: Person | None = None
    """Who of several people in the picture. `largest`, `centre`, `left`, `right`, a number from the left (1 is the
    leftmost) or a box (left,top,right,bottom in fractions of the picture, or pixels); None: a large one
    near the middle."""
    driver: Person | None = None
    """Who of several people in the motion. In a driving video or a file of keypoints; as `person`; None: as
    `person` if that is a word."""
    pose_strength: Strength = 1.0
    """How much the poses count, 0 to 4. PoseNet's features are multiplied by it; 0 leaves the motion to the model."""
    pose_start: Fraction = 0.0
    """Poses count from this part of the steps on. 0 to 1; of S steps those before round(S * pose_start) run without
    pose; below pose_end."""
    pose_end: Fraction = 1.0
    """Poses count up to this part of the steps. 0 to 1; of S steps those from round(S * pose_end) on run without."""
    image_strength: Strength = 1.0
    """How much CLIP's view of the picture counts. 0 to 4; its token is multiplied by this; the picture's
    latents stay as they are."""
    draw: Parts = PARTS
    """What of the poses is drawn. Any of `body`, `hands` and `face`: a text with commas, or a tuple."""
    face: Face = "driver"
    """Whose face is drawn. The `driver`'s; the `reference` picture's own, moved with the driver's head by a rotation,
    a scale and a shift; or `none`."""
    smooth: Annotated[float, Real(0.01, 100.0)] | None = None
    """Smooth the keypoints, cutoff in Hz. 0.01 to 100; a One Euro filter whose cutoff this is for points at rest;
    lower is smoother. None leaves them as they are."""
    hold: Annotated[float, Real(0.0, 3600.0)] | None = None
    """Seconds until someone who is not seen disappears. 0 to 3600: till then they hold their last pose, its
    confidence falling to 0.3 of what it was. None: it falls by a tenth from frame to frame, and they stay."""
    confidence_floor: Annotated[float, Real(0.0, 1.0)] = 0.0
    """Points of a lower confidence are left out. 0 to 1."""
    confidence_gain: Annotated[float, Real(0.1, 10.0)] = 1.0
    """Confidences are drawn times this, 0.1 to 10. Up to a confidence of 1."""
    fps: Annotated[float, Real(0.01, 1000.0)] | None = None
    """Frames of the video a second, 0.01 to 1000. More than the motion has are animated between its frames, of fewer
    some are left out; the motion keeps its speed. None: as many as the motion has after the stride."""
    start: Annotated[float, Real(0.0, 1e6)] = 0.0
    """Begin at this second of the motion. Frames that begin at or after it are taken, with the sound from there."""
    end: Annotated[float, Real(0.0, 1e6)] | None = None
    """End at this second of the motion. None: where it ends; beyond that is an error that names its length."""
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(_seeds)] | None = None
    """Several videos, one for each seed. In place of `seed`; pose and picture are computed once."""
    background: Annotated[str, BeforeValidator(_background)] = KEEP
    """What is behind a transparent picture. A colour's name or code (#00ff00); `keep`, white. A picture of which
    nothing is transparent keeps the background that it has, and a colour is refused."""
    lora: Lora | None = None
    """A LoRA: its file (style.safetensors:0.8), on a server its name (style:0.8); repeat. Added to the weights, with
    a strength from -10 to 10, 1 where none is given. Python takes names of loaded LoRAs. None takes those with which
    the animator was loaded."""

    def __post_init__(self) -> None:
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
        if self.pose_start >= self.pose_end:
            raise SettingsError(
                f"pose_start {self.pose_start} is not smaller than pose_end {self.pose_end}.",
                remedy="Give an end after the start, or pose_strength 0 for no pose at all.",
                field="settings.pose_start" if self.pose_start else "settings.pose_end",
            )
        if self.reuse_interval > 1 and self.layout == "shifted":
            raise SettingsError(
                "no step of the shifted layout has the segments of the step before, whose features it could reuse.",
                remedy="Choose reuse_interval 1, or the layout reference or compact.",
                field="settings.reuse_interval",
            )
        if self.end is not None and self.start >= self.end:
            raise SettingsError(
                f"start {self.start:g} is not before end {self.end:g}.",
                remedy="Give an end after the start, both in seconds of the motion.",
                field="settings.end",
            )
        if self.face == "reference" and "face" not in self.draw:
            raise SettingsError(
                "the reference's face is asked for, and draw leaves faces out.",
                remedy="Add face to draw, or choose face none.",
                field="settings.face",
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

    def __repr__(self) -> str:
        """Only what differs from the defaults, as it would be typed."""
        values = ((field, getattr(self, field.name)) for field in fields(self))
        told = [f"{field.name}={value!r}" for field, value in values if value != field.default]
        return f"Settings({', '.join(told)})"

    @property
    def each_seed(self) -> tuple[int, ...]:
        """The seeds of the videos that are made."""
        return self.seeds or (self.seed,)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """Settings from plain values (JSON, flags, a wire message); an unknown key is an error."""
        known_keys(values, cls, SettingsError, prefix="settings.", noun="setting")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `from_dict` takes back."""
        return asdict(self)


class SettingsDict(TypedDict, total=False):
    """The fields of `Settings` as keyword arguments, for type checkers: what `Animator.settings` takes.

    A test holds it to the fields of `Settings`; a type may be wider where a validator takes more.
    """

    steps: int
    guidance: float | tuple[float, float]
    segment: int | None
    overlap: int
    layout: Layout
    fusion: Fusion
    noise: Noise
    seed: int
    noise_aug: float
    motion_bucket: int
    conditioning_fps: int
    sigma_min: float | None
    sigma_max: float | None
    size: tuple[int, int] | None
    canvas: int | None
    stride: int | None
    frames: int | None
    decode_chunk: int
    rescale: bool
    preview: int
    schedule: Schedule
    guidance_interval: tuple[float, float] | None
    reuse_interval: int
    framing: Framing
    person: str | int | tuple[float, float, float, float] | None
    driver: str | int | tuple[float, float, float, float] | None
    pose_strength: float
    pose_start: float
    pose_end: float
    image_strength: float
    draw: str | tuple[Part, ...]
    face: Face
    smooth: float | None
    hold: float | None
    confidence_floor: float
    confidence_gain: float
    fps: float | None
    start: float
    end: float | None
    seeds: tuple[int, ...] | Sequence[int] | str | None
    background: str
    lora: str | tuple[str, ...] | list[str] | None


def driver_of(settings: Settings) -> str | None:
    """Whom of several people in a driving video settings mean: `driver`, or `person` if that is a word."""
    return settings.driver or (settings.person if settings.person in PERSONS else None)


def make_settings(defaults: Mapping[str, Any], overrides: Mapping[str, Any]) -> Settings:
    """A bundle's `defaults` with some values replaced, filled in by `resolve_settings`."""
    return resolve_settings(Settings.from_dict({**defaults, **overrides}), defaults)


def resolve_settings(settings: Settings, defaults: Mapping[str, Any]) -> Settings:
    """The settings in force: what is None is taken from a bundle's `defaults`, then from `REFERENCE`.

    `size` may stay None (it depends on the picture), `stride` and `frames` too (they depend on the motion).
    """
    known = {
        **REFERENCE,
        **{name: defaults[name] for name in ("segment", "lora", *REFERENCE) if name in defaults},
    }
    missing = {name: value for name, value in known.items() if getattr(settings, name) is None}
    return replace(settings, **missing)


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) of "WIDTHxHEIGHT"; raises `SettingsError`."""
    try:
        width, height = map(int, text.lower().split("x"))
    except ValueError:
        raise SettingsError(
            f"size {text!r} is not WIDTHxHEIGHT.", remedy="For instance 576x1024.", field="settings.size"
        ) from None
    return width, height


def parse_setting(text: str) -> tuple[str, Any]:
    """Name and value of "NAME=VALUE", the value in JSON or else as it stands; raises `SettingsError`."""
    name, mark, value = text.partition("=")
    if not mark:
        raise SettingsError(f"setting {text!r} is not NAME=VALUE.", remedy="For instance steps=10.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
