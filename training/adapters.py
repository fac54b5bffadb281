"""Low-rank adapters (LoRA) on the U-Net: put in, folded into the weights, kept apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import SettingsError
from .config import LoraConfig

NAME = "default"


def add_adapters(unet: nn.Module, config: LoraConfig) -> None:
    """Freeze the U-Net and put trainable adapters on its layers, in place; the first output is unchanged."""
    import peft

    unet.requires_grad_(False)
    lora = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=config.targets)
    try:
        peft.inject_adapter_in_model(lora, unet, NAME)
    except ValueError as error:
        raise SettingsError(
            f"lora.targets fit no layer of the U-Net: {error}", field="lora.targets"
        ) from None


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
        down, up = (adapters.get(f"{prefix}{name}.lora_{side}.{NAME}.weight") for side in "AB")
        if down is not None and up is not None:
            weight = folded[f"{prefix}{name}.weight"]
            delta = module.scaling[NAME] * (up.double() @ down.double())
            folded[f"{prefix}{name}.weight"] = (weight.double() + delta).to(weight.dtype)
    return folded


def save_adapters(path: Any, adapters: Mapping[str, Tensor]) -> None:
    """Write adapters as `.safetensors`, in diffusers' and peft's key layout (`unet.….lora_A.weight`)."""
    from safetensors.torch import save_file

    tensors = {key.replace(f".{NAME}.", "."): value.contiguous() for key, value in adapters.items()}
    save_file(tensors, path)
