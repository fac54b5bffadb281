"""LoRA files: low-rank changes of the U-Net's weights, added when a U-Net is loaded.

Read are `.safetensors` in this project's and diffusers' naming (`unet.down_blocks….to_q.lora_A.weight` and `lora_B`;
peft's begin with `base_model.model.`) and in kohya's (`lora_unet_down_blocks_…_to_q.lora_down.weight`, `lora_up` and
`alpha`).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines import Bundle
from ..engines.weight_table import Delta, LayerWeight, WeightTable, make_changes
from ..errors import CheckpointError, MimicMotionError, SettingsError
from ..settings import Settings, check_lora_names, split_lora

Array = NDArray[Any]
Choice = tuple[str, ...]
"""`Settings.lora`: NAME or NAME:STRENGTH, in their order."""

DOWN, UP, ALPHA = "down", "up", "alpha"
ROLES = {
    ".lora_A.weight": DOWN,
    ".lora_B.weight": UP,
    ".lora_down.weight": DOWN,
    ".lora_up.weight": UP,
    ".lora.down.weight": DOWN,
    ".lora.up.weight": UP,
    ".alpha": ALPHA,
}
"""How keys end, and what they hold."""
OLDER = (
    (r"\.processor\.to_([qkv])_lora\.", r".to_\1.lora."),  # diffusers before 0.20
    (r"\.processor\.to_out_lora\.", ".to_out.0.lora."),
    (r"\.lora(_linear)?_layer\.", ".lora."),
    (r"\.lora_([AB])\.[^.]+\.weight$", r".lora_\1.weight"),  # peft, with the adapter's name
)
"""Parts of keys as older programs write them, and as newer ones do."""
KOHYA = "lora_unet_"
PREFIXES = ("base_model.model.", "unet.")
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
NAMING = "Give a LoRA of this model's U-Net in this project's, diffusers' or kohya's naming."


@dataclass(frozen=True)
class Factors:
    """What a LoRA adds to the weight of one layer: scale * up @ down."""

    down: Array
    """[rank, inputs times kernel]"""
    up: Array
    """[outputs, rank]"""
    scale: float
    """alpha / rank"""

    def delta(self, strength: float) -> Array:
        """float64 [outputs, inputs times kernel]"""
        product: Array = self.up.astype(np.float64) @ self.down.astype(np.float64)
        return product * (self.scale * strength)


@dataclass(frozen=True)
class LoraFile:
    """One LoRA, read and checked."""

    sha256: str
    """Of the file."""
    layers: Mapping[str, Factors]
    """By the layers' paths in the checkpoint."""

    @classmethod
    def read(cls, path: str | Path, table: WeightTable) -> LoraFile:
        """Read a file for a U-Net of these layers.

        Raises `CheckpointError` for a file that is no LoRA of it: keys that it does not know, shapes that do not fit,
        a half of a pair, values that are not finite.
        """
        try:
            data = Path(path).read_bytes()
            return cls(hashlib.sha256(data).hexdigest(), _read_layers(data, table))
        except OSError as error:
            raise _refused(path, f"cannot be read: {error.strerror}.", "Check the path.") from None
        except _FileError as error:
            raise _refused(path, str(error), error.remedy) from None


class Loras:
    """The LoRAs of one bundle that jobs may choose from, by name."""

    def __init__(self, bundle: Bundle | None, files: Mapping[str, LoraFile], usual: Choice = ()) -> None:
        self.files = files
        self.usual = usual
        """What is in force where settings say nothing."""
        self._bundle = bundle

    @classmethod
    def open(
        cls,
        bundle: Bundle,
        named: Mapping[str, str | Path],
        chosen: str | Path | Sequence[str | Path | tuple[str | Path, float]] = (),
    ) -> Loras:
        """Read files by name, and others, with their strengths, that are in force where settings say nothing.

        The latter are named by their files (`style.safetensors` is `style`). Raises `CheckpointError` for what is no
        LoRA of the bundle's U-Net, `BundleError` where the bundle's weights cannot be changed, `SettingsError` for a
        name that comes twice.
        """
        paths = {name: Path(path) for name, path in named.items()}
        usual = []
        for path, strength in map(
            _file_and_strength, chosen if isinstance(chosen, list | tuple) else [chosen]
        ):
            if path.stem in paths:
                raise SettingsError(
                    f"there are two LoRAs of the name {path.stem!r}.", remedy="Rename one file.", field="lora"
                )
            paths[path.stem] = path
            usual.append(f"{path.stem}:{strength}")
        choice = Settings(lora=tuple(usual)).lora or ()
        for name in paths:
            if split_lora(name) != (name, 1.0):
                raise SettingsError(
                    f"the LoRA's name {name!r} ends like a strength.", remedy="Rename it.", field="lora"
                )
        if not paths:
            return cls(bundle, {})
        table = bundle.weight_table("unet")
        loras = cls(bundle, {name: LoraFile.read(path, table) for name, path in paths.items()}, choice)
        for name in loras.files:
            for network in bundle.manifest.networks:
                if network.startswith("unet"):
                    loras.deltas(network, (name,))  # what cannot be changed is said now
        return loras

    def check(self, choice: Choice) -> None:
        """Raise `SettingsError` for a name that is none of these."""
        check_lora_names(choice, self.files)

    def deltas(self, network: str, choice: Choice) -> dict[str, Delta] | None:
        """What a choice adds to tensors of a network, by their names; None where it adds nothing."""
        if not choice or not network.startswith("unet"):
            return None
        assert self._bundle is not None
        chosen = [(self.files[name], strength) for name, strength in map(split_lora, choice)]
        paths = dict.fromkeys(path for file, _ in chosen for path in file.layers)
        added = {path: partial(_sum_of, path, chosen) for path in paths}
        return dict(make_changes(self._bundle.weight_table(network), added))

    def fingerprints(self, choice: Choice) -> list[str]:
        """Of each LoRA, what differs where its name, strength or content does."""
        return [f"{entry}={self.files[split_lora(entry)[0]].sha256[:16]}" for entry in choice]


NO_LORAS = Loras(None, {})


def _file_and_strength(given: Any) -> tuple[Path, float]:
    """A file, or a file and its strength; raises `SettingsError` for anything else."""
    path, strength = given if isinstance(given, tuple) and len(given) == 2 else (given, 1.0)
    if not isinstance(path, str | Path) or not isinstance(strength, Real):
        raise SettingsError(
            f"lora has {given!r:.120}.",
            remedy='Give a list of files, or of pairs: lora=[("style.safetensors", 0.8)].',
            field="lora",
        )
    return Path(path), float(strength)


def _sum_of(path: str, chosen: Sequence[tuple[LoraFile, float]]) -> Array:
    """What several files add to one layer."""
    deltas = [file.layers[path].delta(strength) for file, strength in chosen if path in file.layers]
    total: Array = sum(deltas[1:], deltas[0])
    return total


# ---- a file ----


class _FileError(Exception):
    """What is wrong with a file, without its name."""

    def __init__(self, message: str, remedy: str = NAMING) -> None:
        super().__init__(message)
        self.remedy = remedy


def _refused(path: str | Path, message: str, remedy: str) -> MimicMotionError:
    return CheckpointError(f"the LoRA {path} {message}", remedy=remedy, field="lora")


def _read_layers(data: bytes, table: WeightTable) -> dict[str, Factors]:
    import safetensors

    try:
        entries = safetensors.deserialize(data)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        if "not fully covered" in str(error):
            raise _FileError("is truncated: tensors are missing.", "Copy the file again.") from None
        raise _FileError(f"is no .safetensors file ({error}).") from None
    kohya = {path.replace(".", "_"): path for path in table}
    found: dict[str, dict[str, Array]] = {}
    unknown = []
    for key, entry in entries:
        layer, role = _split_key(key, table, kohya)
        if layer is None or role is None:
            unknown.append(key)
        else:
            found.setdefault(layer, {})[role] = _values(key, entry)
    if unknown:
        unknown.sort()
        shown = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        raise _FileError(f"has keys that are none of this U-Net: {shown}.")
    if not found:
        raise _FileError("holds nothing.")
    alphas = _Alphas.read(data)
    return {path: _factors(path, parts, table[path], alphas) for path, parts in found.items()}


def _split_key(key: str, table: WeightTable, kohya: Mapping[str, str]) -> tuple[str | None, str | None]:
    """(the layer's path, what the key holds of it); None for what is not known."""
    for older, newer in OLDER:
        key = re.sub(older, newer, key)
    ending = next((ending for ending in ROLES if key.endswith(ending)), None)
    if ending is None:
        return None, None
    name = key.removesuffix(ending)
    if name.startswith(KOHYA):
        return kohya.get(name.removeprefix(KOHYA)), ROLES[ending]
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return (name if name in table else None), ROLES[ending]


def _values(key: str, entry: Mapping[str, Any]) -> Array:
    """A tensor as float32 or float64."""
    if entry["dtype"] == "BF16":  # the upper half of a float32
        raw = np.frombuffer(entry["data"], "<u2").astype(np.uint32) << np.uint32(16)
        values: Array = raw.view(np.float32)
    elif entry["dtype"] in DTYPES:
        values = np.frombuffer(entry["data"], DTYPES[entry["dtype"]])
        values = values if values.itemsize > 2 else values.astype(np.float32)
    else:
        raise _FileError(f"has {key} as {entry['dtype']}.", "Give it in float32, float16 or bfloat16.")
    if not np.isfinite(values).all():
        raise _FileError(
            f"has values in {key} that are not finite.", "It is damaged, or its training diverged."
        )
    return values.reshape(entry["shape"])


def _factors(path: str, parts: Mapping[str, Array], layer: LayerWeight, alphas: _Alphas) -> Factors:
    missing = [role for role in (DOWN, UP) if role not in parts]
    if missing:
        raise _FileError(f"has only a part of {path}: {', '.join(parts)}.", "It is not whole; write it anew.")
    down, up = parts[DOWN], parts[UP]
    rank = len(down) if down.ndim else 0
    fits = (
        rank > 0
        and _plain(down.shape[1:]) == _plain(layer.shape[1:])
        and _plain(up.shape) == _plain((layer.shape[0], rank))
    )
    if not fits:
        raise _FileError(
            f"has {path} as {list(down.shape)} and {list(up.shape)}, which does not fit the layer's"
            f" {list(layer.shape)}.",
            "Give a LoRA that was trained on this model.",
        )
    alpha = float(parts[ALPHA].sum()) if ALPHA in parts else alphas.of(path, rank)
    if not math.isfinite(alpha):
        raise _FileError(f"has an alpha of {alpha} for {path}.")
    return Factors(down.reshape(rank, -1), up.reshape(-1, rank), alpha / rank)


def _plain(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape without ones at its end: convolutions along time may be written with fewer."""
    sizes = list(shape)
    while sizes and sizes[-1] == 1:
        sizes.pop()
    return tuple(sizes)


@dataclass(frozen=True)
class _Alphas:
    """alpha as diffusers writes it into a file's metadata; as large as the rank where nothing is said."""

    usual: float | None
    patterns: Mapping[str, float]
    """The end of a layer's path -> its own alpha."""

    @classmethod
    def read(cls, data: bytes) -> _Alphas:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        try:
            about = json.loads(header.get("__metadata__", {}).get("lora_adapter_metadata", "{}"))
            values = {key.removeprefix("unet."): value for key, value in about.items()}
            given = values.get("lora_alpha")
            usual = None if given is None else float(given)
            patterns = {key: float(alpha) for key, alpha in (values.get("alpha_pattern") or {}).items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise _FileError(f"has metadata that are not understood ({error}).") from None
        for name in ("use_rslora", "use_dora"):
            if values.get(name):
                raise _FileError(f"is of a kind that is not read ({name}).", "Merge it into the checkpoint.")
        return cls(usual, patterns)

    def of(self, path: str, rank: int) -> float:
        for pattern, alpha in self.patterns.items():
            if path == pattern or path.endswith(f".{pattern}"):
                return alpha
        return rank if self.usual is None else self.usual
