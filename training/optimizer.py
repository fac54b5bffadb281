"""How weights follow gradients: what trains, optimizers, learning rates, the moving average."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..errors import SettingsError
from .config import OptimizerConfig


def trainable(network: nn.Module) -> list[nn.Parameter]:
    """Those that train."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def count(network: nn.Module) -> int:
    """How many numbers train."""
    return sum(parameter.numel() for parameter in trainable(network))


def make_optimizer(config: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer that the config names; raises `SettingsError` if its library is not there."""
    kind: Any = torch.optim.AdamW
    if config.name == "adamw8bit":
        try:
            kind = importlib.import_module("bitsandbytes.optim").AdamW8bit
        except ImportError:
            raise SettingsError(
                "optimizer adamw8bit needs bitsandbytes, which is not installed.",
                remedy="`pip install bitsandbytes` on a machine with a GPU, or choose adamw.",
                field="optimizer.name",
            ) from None
    optimizer: torch.optim.Optimizer = kind(
        parameters, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay
    )
    return optimizer


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The rate of step 0, 1, …, steps-1: a linear rise over `warmup` steps, then constant or half a cosine."""
    if step < config.warmup:
        return config.lr * (step + 1) / (config.warmup + 1)
    if config.schedule == "constant":
        return config.lr
    share = min(1.0, (step - config.warmup) / max(1, steps - config.warmup))
    return config.lr * (config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * share)))


def set_learning_rate(optimizer: Any, rate: float) -> None:
    """Give every group of parameters the same rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


@contextmanager
def averaged(average: Any, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """The moving average (diffusers' `EMAModel`, or None for none) in place of the weights."""
    if average is None:
        yield
        return
    average.store(parameters)
    average.copy_to(parameters)
    try:
        yield
    finally:
        average.restore(parameters)
