"""The strict judge of float16: products summed in float32 and rounded once, as tensor cores do."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from mimicmotion_trt import EngineError, ExportError
from mimicmotion_trt.engines import EngineSpec, TensorSpec
from mimicmotion_trt.export import proof
from mimicmotion_trt.export.tensor_cores import TensorCoreEngine

SPEC = EngineSpec((TensorSpec("x", "float16", ("rows", 64)),), (TensorSpec("y", "float16", ("rows", 64)),))


def answer(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y = np.empty((len(x), 64), np.float16)
    TensorCoreEngine(module, SPEC).bind({"x": x.numpy()}, {"y": y})()
    return torch.from_numpy(y)


class Attention(nn.Module):
    """Scores and values, with nothing learned."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x @ x.T, -1) @ x


class Pixels(nn.Module):
    """A convolution over rows of 8x8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.reshape(-1, 1, 8, 8)).reshape(-1, 64)


@pytest.mark.parametrize("make", [lambda: nn.Linear(64, 64), Pixels])
def test_a_product_is_the_float32_product_rounded(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    module, x = make().half(), torch.randn(5, 64).half()
    with torch.no_grad():
        found, expected = answer(module, x), module.float()(x.float())
    assert torch.equal(found, expected.half())


def test_every_product_is_rounded_not_the_last_alone() -> None:
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).half()
    wide = x.float()
    scores = (wide @ wide.T).half()
    expected = (torch.softmax(scores, -1).float() @ wide).half()
    assert torch.equal(answer(Attention(), x), expected)


def test_what_float16_cannot_hold_is_seen() -> None:
    """A stream of 1e5 that is scaled back at once: in float32 nothing but a small number comes out."""
    module = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False))
    with torch.no_grad():
        module[0].weight.copy_(torch.eye(64) * 2e4)
        module[1].weight.copy_(torch.eye(64) / 2e4)
    cases = [proof.record_case(lambda x: module(x), {"x": torch.full((2, 64), 5.0)})]
    assert cases[0].answers[0].max() == pytest.approx(5)
    with pytest.raises(ExportError, match=r"unet does not agree.*overflow"):
        proof.compare_engine("unet", TensorCoreEngine(module.half(), SPEC), cases, 5e-3, "float16")


def test_arrays_that_are_not_the_specs_are_refused() -> None:
    with pytest.raises(EngineError, match="float16"):
        TensorCoreEngine(nn.Linear(64, 64), SPEC).bind(
            {"x": np.zeros((1, 64), np.float32)}, {"y": np.zeros((1, 64), np.float16)}
        )
