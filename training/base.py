"""Base folders in SVD's diffusers layout: made from a recipe, or from another one with a part replaced."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError, OutputError
from .checkpoints import PARTS, building, read_config, resolve_base
from .config import Config

RANDOM = "base-random"
"""Folder within a run's output, where the run's base does not exist."""


def open_base(config: Config, output: Path) -> tuple[Path, bool]:
    """The run's base folder, and whether it was found; if not, it is made here with random weights.

    A run that began with random weights goes on with them, even if its base has been made since. A hub id's U-Net is
    downloaded if the run begins with it.
    """
    folder = output / RANDOM
    there = config.base is not None and (Path(config.base).is_dir() or config.recipe is None)
    if config.base is not None and there and not folder.exists():
        with_unet = config.checkpoint is None and config.stage not in ("vae", "image_encoder")
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
        remedy = "Give configs as in training/configs/tiny-networks.json."
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            with building("the recipe", remedy, "recipe"):
                vae = AutoencoderKLTemporalDecoder(**recipe["vae"])
                encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(**recipe["image_encoder"]))
            vae.save_pretrained(partial / "vae")
            encoder.save_pretrained(partial / "image_encoder")
        for part, name in (
            ("unet", "config.json"),
            ("scheduler", "scheduler_config.json"),
            ("feature_extractor", "preprocessor_config.json"),
        ):
            (partial / part).mkdir()
            (partial / part / name).write_text(json.dumps(recipe[part], indent=2))

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
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as place:
            partial = Path(place) / "new"
            partial.mkdir()
            fill(partial)
            if folder.exists():
                folder.rename(Path(place) / "old")
            partial.rename(folder)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error}", field="output") from error
