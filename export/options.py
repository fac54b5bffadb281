"""How a bundle is built."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ..engines import FEATURE_CACHE_NETWORKS, NETWORKS
from ..errors import SettingsError
from ..settings import Settings
from ..training.config import BUNDLE_FILE
from ..validation import Whole, checked

PRECISIONS = {
    "onnxruntime": ("fp32", "fp16", "fp8"),
    "tensorrt": ("fp16", "fp8"),
    "tensorrt-rtx": ("fp16", "fp8"),
    "torch": ("fp32", "fp16"),
}
"""Backend -> the precisions that it can be built in, the usual one first."""
FLOAT8_SINCE = 89
"""The first compute capability that multiplies in float8, Ada (8.9)."""
FLOAT8_CAPABILITIES = ("SM89", "SM120")
"""What a float8 plan of TensorRT-RTX is for if no capability is given: Ada and Blackwell."""


@checked(SettingsError)
@dataclass(frozen=True)
class PlanOptions:
    """How TensorRT compiles; raises `SettingsError` when built with values out of range."""

    level: Annotated[int, Whole(0, 5)] = 3
    """Optimisation level, 0 (quick to build) to 5 (quick to run)."""
    workspace: Annotated[int, Whole(1, 2**43 - 1)] | None = None
    """MiB of scratch memory that a kernel may use at most (the library counts bytes in 63 bits); None: all."""
    aux_streams: Annotated[int, Whole(0, 2**31 - 1)] | None = None
    """Further streams that independent layers may run on; None leaves it to the library."""
    capabilities: tuple[Annotated[str, Field(pattern=r"^SM\d+$")], ...] = ()
    """Compute capabilities that a TensorRT-RTX plan is for (SM75, SM80, SM86, SM89, SM120, SM121)."""
    refit: bool = False
    """Keep the plan open for other weights."""
    weight_streaming: bool = False
    """Let weights stay in the host's memory where the GPU's is short."""
    frames: tuple[Annotated[int, Whole(2)], ...] = ()
    """Further lengths of segments, for clips that are shorter than the model's own."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "capabilities", tuple(dict.fromkeys(self.capabilities)))


@dataclass(frozen=True)
class Options:
    """How a bundle is built; raises `SettingsError` when built with values that make no sense."""

    backend: str = "onnxruntime"
    precision: str | None = None
    """fp32, fp16, or fp8 (fp16 with a U-Net that multiplies in float8); None takes the backend's usual one."""
    keep_fp32: tuple[str, ...] = ()
    """Networks that stay in float32 where the others are in float16, since their values overflow it; `unet` stands
    for all forms of the U-Net."""
    margin: float = 1.0
    """fp8: the largest activation that a scale has room for, over the largest seen in calibration."""
    sizes: tuple[tuple[int, int], ...] = ((576, 1024), (1024, 576))
    segment: int = 72
    rows: tuple[int, ...] = (1, 2, 4)
    note: str = ""
    deep_cache: bool = False
    """Also build what `Settings.reuse_interval` needs: the U-Net twice more, full and its first level alone."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Further Settings that the model wants."""
    plan: PlanOptions = field(default_factory=PlanOptions)

    def __post_init__(self) -> None:
        if self.backend not in PRECISIONS:
            raise SettingsError(
                f"backend {self.backend!r} cannot be built by this version.",
                remedy=f"Choose {' or '.join(PRECISIONS)}.",
                field="backend",
            )
        possible = PRECISIONS[self.backend]
        if self.precision is None:
            object.__setattr__(self, "precision", possible[0])
        if self.precision not in possible:
            raise SettingsError(
                f"precision {self.precision!r} cannot be built for {self.backend}.",
                remedy=f"Choose {' or '.join(possible)}.",
                field="precision",
            )
        self._check_float8()
        self._check_kept()
        if self.plan != PlanOptions() and not self.compiles:
            raise SettingsError(
                f"{self.backend} compiles no plan.",
                remedy="Leave out the options of TensorRT, or choose --backend tensorrt or tensorrt-rtx.",
                field="backend",
            )
        if self.plan.capabilities and self.backend != "tensorrt-rtx":
            raise SettingsError(
                "only TensorRT-RTX builds for other GPUs than the machine's own.",
                remedy="Leave out --capability, or choose --backend tensorrt-rtx.",
                field="capability",
            )
        if self.plan.refit and self.backend == "tensorrt-rtx" and len(self.plan.capabilities) != 1:
            raise SettingsError(
                "TensorRT-RTX keeps a plan open for other weights for one kind of GPU only.",
                remedy="Give one --capability, such as SM89.",
                field="capability",
            )
        if not self.sizes or not self.rows or any(not 1 <= rows <= 64 for rows in self.rows):
            raise SettingsError(
                "a bundle needs at least one size, and batches of 1 to 64 rows.",
                remedy="Give --size WIDTHxHEIGHT and --batch 1,2,4, or leave them out.",
                field="batch",
            )
        for size in self.sizes:
            Settings(size=size)
        object.__setattr__(self, "sizes", tuple(dict.fromkeys(self.sizes)))
        if Settings.from_dict({"segment": self.segment, "overlap": 1, **self.defaults}).segment is None:
            raise SettingsError(
                "a bundle needs a segment.", remedy="Give 72 or 16.", field="settings.segment"
            )
        self._check_defaults(Settings.from_dict(self.model_defaults))

    @property
    def arguments(self) -> str:
        """The options of `build_engines.py` that build like this, as in a shell."""
        words = ["--backend", self.backend, "--precision", str(self.precision)]
        for width, height in self.sizes:
            words += ["--size", f"{width}x{height}"]
        words += ["--segment", str(self.segment), "--batch", ",".join(map(str, self.rows))]
        for name, value in self.defaults.items():
            words += ["--default", f"{name}={json.dumps(value)}"]
        for name in self.keep_fp32:
            words += ["--keep-fp32", name]
        words += _given(self, "margin", "deep_cache", "note")
        words += _given(self.plan, "level", "workspace", "aux_streams")
        for name in self.plan.capabilities:
            words += ["--capability", name]
        words += _given(self.plan, "refit", "weight_streaming")
        if self.plan.frames:
            words += ["--frames", ",".join(map(str, self.plan.frames))]
        return shlex.join(words)

    @property
    def networks(self) -> tuple[str, ...]:
        """The networks of the bundle."""
        return NETWORKS + FEATURE_CACHE_NETWORKS if self.deep_cache else NETWORKS

    def _check_defaults(self, settings: Settings) -> None:
        """Raise `SettingsError` unless the bundle's own settings run on its own engines."""
        if settings.reuse_interval > 1 and not self.deep_cache:
            raise SettingsError(
                f"reuse_interval {settings.reuse_interval} needs engines that reuse cached features.",
                remedy="Add --deep-cache, or leave --default reuse_interval out.",
                field="settings.reuse_interval",
            )
        if not self.compiles:  # graphs take any size and any number of frames
            return
        if settings.size is not None and settings.size not in self.sizes:
            width, height = settings.size
            raise SettingsError(
                f"plans are not compiled for the default size {width}x{height}.",
                remedy=f"Add --size {width}x{height}, or leave --default size out.",
                field="settings.size",
            )

    def _check_float8(self) -> None:
        if not 0.1 <= self.margin <= 10 or (self.margin != 1 and self.precision != "fp8"):
            raise SettingsError(
                f"margin is {self.margin} with {self.precision}.",
                remedy="Choose 0.1 to 10, with --precision fp8 only.",
                field="margin",
            )
        if self.precision != "fp8" or self.backend != "tensorrt-rtx":
            return
        old = [name for name in self.plan.capabilities if int(name[2:]) < FLOAT8_SINCE]
        if old:
            raise SettingsError(
                f"{', '.join(old)} cannot multiply in float8.",
                remedy=f"Choose --precision fp16, or --capability {FLOAT8_CAPABILITIES[0]} and newer.",
                field="capability",
            )
        capabilities = self.plan.capabilities or FLOAT8_CAPABILITIES
        object.__setattr__(self, "plan", replace(self.plan, capabilities=capabilities))

    def _check_kept(self) -> None:
        unknown = [name for name in self.keep_fp32 if name not in NETWORKS]
        if unknown:
            raise SettingsError(
                f"{unknown[0]!r} is no network.", remedy=f"Choose {' or '.join(NETWORKS)}.", field="keep_fp32"
            )
        if self.keep_fp32 and not self.half:
            raise SettingsError(
                f"all networks of a bundle in {self.precision} are in float32.",
                remedy="Leave --keep-fp32 out, or choose --precision fp16.",
                field="keep_fp32",
            )
        if "unet" in self.keep_fp32 and self.precision == "fp8":
            raise SettingsError(
                "a U-Net cannot be in float8 and in float32.",
                remedy="Choose --precision fp16, or leave --keep-fp32 unet out.",
                field="keep_fp32",
            )
        object.__setattr__(self, "keep_fp32", tuple(dict.fromkeys(self.keep_fp32)))

    @property
    def compiles(self) -> bool:
        """Whether engines are compiled plans rather than graphs."""
        return self.backend.startswith("tensorrt")

    @property
    def half(self) -> bool:
        """Whether networks multiply in float16 (of a float8 bundle all but the U-Net)."""
        return self.precision in ("fp16", "fp8")

    def halves(self, network: str) -> bool:
        """Whether a network multiplies in float16."""
        return self.half and ("unet" if network.startswith("unet") else network) not in self.keep_fp32

    @property
    def model_defaults(self) -> dict[str, Any]:
        """Settings that the model wants; the overlap among them where the usual one does not fit the segment."""
        segment = self.defaults.get("segment", self.segment)
        overlap = {"overlap": segment - 1} if segment <= Settings().overlap else {}
        return {"segment": segment, **overlap, **self.defaults}


def trained_for(checkpoint: Path) -> dict[str, Any]:
    """The fields of `Options` that training wrote beside a checkpoint; none if it is not from here.

    `bundle.json` holds `Settings`: the size, the segment, and what becomes the bundle's defaults. Raises
    `SettingsError`.
    """
    path = checkpoint.with_name(BUNDLE_FILE)
    if not path.exists():
        return {}
    try:
        defaults = dict(json.loads(path.read_text()))
        settings = Settings.from_dict({"overlap": 1, **defaults})
    except (OSError, TypeError, ValueError, SettingsError) as error:
        raise SettingsError(
            f"{path} cannot be used: {error}",
            remedy="Mend it, or move it away and give the options yourself.",
            field="checkpoint",
        ) from error
    given: dict[str, Any] = {}
    if defaults.pop("size", None):
        given["sizes"] = (settings.size,)
    if defaults.pop("segment", None):
        given["segment"] = settings.segment
    return {**given, "defaults": defaults}


def _given(options: Any, *names: str) -> list[str]:
    """Flags of those fields that are not as usual, with their value unless that is True."""
    words = []
    for name in names:
        value, flag = getattr(options, name), f"--{name.replace('_', '-')}"
        if value != getattr(type(options), name):
            words += [flag] if value is True else [flag, str(value)]
    return words
