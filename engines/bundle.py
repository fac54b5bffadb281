"""A bundle: one folder with a manifest and the engine files that it names."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from ..errors import BundleError
from ..validation import explain
from .spec import FEATURE_CACHE_NETWORKS, EnginePlan, EngineSpec, check_specs
from .weight_table import WeightTable, read_table

Count = Annotated[int, Field(ge=0)]
Flops = Annotated[float, Field(ge=0, allow_inf_nan=False)]
STRICT = ConfigDict(strict=True, extra="forbid")

FORMAT = 3
MANIFEST = "manifest.json"
REBUILD = "Rebuild the bundle with `mimicmotion-trt build`."
COMMAND = "mimicmotion-trt build --base FOLDER_OR_ID --checkpoint FILE --output FOLDER"
"""What builds a bundle, before its options."""
PRECISIONS = ("fp32", "fp16", "fp8")


@dataclass(frozen=True, slots=True)
class File:
    """One file of a bundle."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How far an engine is from its float32 PyTorch original, over all cases tried when it was built."""

    max_abs: float
    rel_l2: float
    """|engine - torch| / |torch|, Euclidean norms, the worst case."""
    bound: float
    """The rel_l2 that it had to stay under."""
    cases: int
    runner: Annotated[str, Field(alias="judge")] = "onnxruntime"
    """What ran the engine: its backend, or onnxruntime in place of a plan that this machine cannot run."""


@dataclass(frozen=True, slots=True)
class FlopModel:
    """Floating point operations of the matrix products and convolutions of one network; a multiply-add is two.

    A call has `rows` rows of `frames` frames of `pixels` latent pixels each (height/8 * width/8). Networks
    without rows have one; a batch of pictures counts as frames.
    """

    fixed: Flops
    """A row: embeddings of its timestep and ids, and its token through the folded cross-attention."""
    frame: Flops
    """A frame, whatever its size: its time embedding; all of the image encoder."""
    linear: Flops
    """A latent pixel: convolutions and linear layers."""
    spatial: Flops
    """A pair of pixels of one frame: attention over space."""
    temporal: Flops
    """A pair of frames at one pixel: attention over time."""

    def total(self, *, rows: float = 1, frames: float = 1, pixels: float = 0) -> float:
        """rows (fixed + frames (frame + pixels (linear + pixels spatial + frames temporal)))."""
        of_a_pixel = self.linear + pixels * self.spatial + frames * self.temporal
        return rows * (self.fixed + frames * (self.frame + pixels * of_a_pixel))


@dataclass(frozen=True, slots=True)
class GraphStats:
    """Counts of a graph's operators."""

    operators: Count
    """All of them, constants excepted."""
    products: Count
    """Matrix products and convolutions with weights."""
    wide: Count
    """Those of them that multiply in float32."""
    attention: Count
    """Attentions recognised: one operator each, one fused kernel."""
    softmax: Count
    """Attentions left in pieces."""
    norms: Count
    transposes: Count
    casts: Count
    shapes: Count
    """Operators that compute sizes only."""


@dataclass(frozen=True, slots=True)
class Network:
    """One network of a bundle."""

    __pydantic_config__: ClassVar = STRICT
    spec: EngineSpec
    files: Annotated[tuple[File, ...], Field(min_length=1)]
    """The engine first, then the external weights it reads."""
    accuracy: Annotated[Accuracy, Field(alias="agreement")]
    flops: Annotated[FlopModel, Field(alias="work")]
    stats: Annotated[GraphStats, Field(alias="audit")]
    plan: EnginePlan | None = None
    """What a compiled engine was compiled for; None for graphs that run anywhere."""
    for_lora: tuple[File, ...] = ()
    """What a LoRA needs when the network is loaded: the table of its weights; of a plan also the graph that was
    compiled, and that one's weights. None where the network takes no LoRA."""


@dataclass(frozen=True, slots=True)
class ImageStatistics:
    """How CLIP's input is made: size in pixels, mean and deviation of each channel.

    Raises `ValueError` when built with a size or deviation that is not positive.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"image.size is {self.size}, not a number of pixels")
        if not all(map(math.isfinite, self.mean)):
            raise ValueError(f"image.mean is {list(self.mean)}, not finite")
        if not all(math.isfinite(value) and value > 0 for value in self.std):
            raise ValueError(f"image.std is {list(self.std)}, not positive")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle says of itself; raises `ValueError` when built with what no engine could run on.

    Whether sizes and defaults are this version's settings, the runtime knows (`runtime/bundles.py`).
    """

    __pydantic_config__: ClassVar = STRICT
    backend: str
    precision: str
    build: str
    """Hash of everything that went into the bundle: weights, configs, options, exporter."""
    networks: Mapping[str, Network]
    sizes: Annotated[tuple[tuple[int, int], ...], Field(min_length=1)]
    """(width, height) of the videos that the model is meant for."""
    rows: tuple[int, ...]
    """Numbers of rows that the U-Net runs at once, ascending."""
    scaling_factor: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Latents are the VAE's times this."""
    image: ImageStatistics
    defaults: Mapping[str, Any]
    """Settings that the model wants: segment, sigma_min, sigma_max, canvas, steps, …"""
    note: str = ""
    """A remark for users of the bundle."""
    options: str = ""
    """Options of `mimicmotion-trt build` but for inputs and output, as in a shell."""
    versions: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT

    def __post_init__(self) -> None:
        check_specs({name: network.spec for name, network in self.networks.items()})
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}, not one of {', '.join(PRECISIONS)}")
        if not self.rows or self.rows[0] < 1 or sorted(set(self.rows)) != list(self.rows):
            raise ValueError(f"rows are {list(self.rows)}, not ascending numbers from 1 on")

    @property
    def reuses(self) -> bool:
        """Whether it has the networks that reuse cached features."""
        return set(FEATURE_CACHE_NETWORKS) <= set(self.networks)

    @property
    def command(self) -> str:
        """The command that builds the bundle again, but for the names of its inputs and output."""
        return f"{COMMAND} {self.options}"

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        return write_json(Manifest, self)

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """The manifest of a bundle, whose other files are not looked at; raises `BundleError`."""
        try:
            text = (folder / MANIFEST).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(f"{folder} is no bundle ({error}).", remedy=REBUILD) from None
        try:
            return cls.from_json(text)
        except BundleError as error:
            raise BundleError(f"{folder}: {error.message}", remedy=error.remedy) from None

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Raises `BundleError` on anything that `to_json` would not have written."""
        try:
            raw = json.loads(text, parse_constant=_no_number)
            if not isinstance(raw, dict):
                raise BundleError(f"{MANIFEST} is not that of a bundle.", remedy=REBUILD)
            if raw["format"] != FORMAT:
                raise BundleError(
                    f"it has format {raw['format']}, and this version reads {FORMAT} only.", remedy=REBUILD
                )
            manifest: Manifest = read_json(cls, text)
            for network in manifest.networks.values():
                if network.plan is not None:
                    network.plan.check_profiles(network.spec)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise BundleError(
                f"{MANIFEST} is damaged ({type(error).__name__}: {error}).", remedy=REBUILD
            ) from None
        return manifest


def read_json(kind: Any, text: str) -> Any:
    """An object of a checked dataclass from JSON, nothing in it converted; raises `ValueError`."""
    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        own = first.get("ctx", {}).get("error")  # what a `__post_init__` raised
        raise ValueError(str(own or explain(error, BundleError).message)) from None


def write_json(kind: Any, value: Any) -> str:
    """The text that `read_json` reads."""
    values = TypeAdapter(kind).dump_python(value, mode="json", by_alias=True)
    return json.dumps(values, indent=1) + "\n"


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


@dataclass(frozen=True, slots=True)
class Bundle:
    """A folder whose files have been checked against its manifest."""

    folder: Path
    manifest: Manifest

    @classmethod
    def load(cls, folder: str | Path) -> Bundle:
        """Read and check a bundle; a missing or altered file is a `BundleError` that names it."""
        folder = Path(folder)
        manifest = Manifest.load(folder)
        try:
            for network in manifest.networks.values():
                for file in (*network.files, *network.for_lora):
                    check_file(folder, file)
        except BundleError as error:
            raise BundleError(
                f"{folder}: {error.message}", remedy=f"Rebuild it: `{manifest.command}`."
            ) from None
        return cls(folder, manifest)

    def engine_path(self, network: str) -> Path:
        """The engine file of one network."""
        return self.folder / self.manifest.networks[network].files[0].name

    def weight_table(self, network: str) -> WeightTable:
        """Which tensors hold which weights; raises `BundleError` where the network takes no other ones."""
        files = self.manifest.networks[network].for_lora
        if not files:
            raise BundleError(
                f"{self.folder.name} does not say where its weights lie, so a LoRA cannot be added.",
                remedy=f"Rebuild it with this version, a bundle of plans with --refit: `{self.manifest.command}`.",
                field="lora",
            )
        return read_table(self.folder / files[0].name)

    def graph_path(self, network: str) -> Path | None:
        """The ONNX file that a plan was compiled from; None where it was not kept."""
        _, *graph = self.manifest.networks[network].for_lora or (None,)
        return self.folder / graph[0].name if graph else None


def check_file(folder: Path, file: File) -> None:
    """Raise `BundleError` unless the file is there, byte for byte."""
    path = folder / file.name
    if Path(file.name).name != file.name:
        raise BundleError(f"file name {file.name!r:.100} leaves the bundle.", remedy=REBUILD)
    try:
        if not path.is_file():
            raise BundleError(f"{file.name:.100} is missing.", remedy=REBUILD)
        if path.stat().st_size != file.bytes or hash_file(path) != file.sha256:
            raise BundleError(f"{file.name} is not the file that was built.", remedy=REBUILD)
    except OSError as error:  # a name too long, a file that may not be read
        raise BundleError(f"{file.name:.100} cannot be read ({error.strerror}).", remedy=REBUILD) from None


def describe_file(path: Path) -> File:
    """The manifest's entry for a file."""
    return File(path.name, path.stat().st_size, hash_file(path))


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
