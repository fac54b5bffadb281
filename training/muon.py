"""Muon: momentum made orthogonal for matrices, Adam for everything else, in one optimizer.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks". Updates are as large as Liu et al. 2025
make them ("Muon is Scalable for LLM Training"), 0.2 sqrt(longer side): about as Adam's, so both share a rate.
PyTorch's own Muon takes matrices alone. Here a convolution [O,I,...] is the matrix [O, I*...], and matrices of one
shape are made orthogonal together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

_QUINTIC = (3.4445, -4.7750, 2.0315)
_STEPS = 5


class Muon(torch.optim.Optimizer):
    """`betas` and `eps` are Adam's; `momentum` (Nesterov's) is for matrices. `weight_decay` is decoupled."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ) -> None:
        every = list(params)
        matrices = [one for one in every if one.ndim > 1]
        others = [one for one in every if one.ndim < 2]
        groups = [
            {"params": part, "matrices": kind} for part, kind in ((matrices, True), (others, False)) if part
        ]
        usual = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(groups, usual)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of every parameter that has a gradient. Raises `ValueError` for a closure: it has no use here."""
        if closure is not None:
            raise ValueError("Muon takes no closure.")
        for group in self.param_groups:
            given = [one for one in group["params"] if one.grad is not None]
            for one in given:
                one.mul_(1 - group["lr"] * group["weight_decay"])
            (self._matrices if group["matrices"] else self._adam)(group, given)

    def _matrices(self, group: dict[str, Any], given: list[nn.Parameter]) -> None:
        alike = defaultdict[torch.Size, list[tuple[nn.Parameter, Tensor]]](list)
        for one in given:
            state, gradient = self.state[one], one.grad
            assert gradient is not None
            if not state:
                state["momentum"] = torch.zeros_like(one)
            state["momentum"].lerp_(gradient, 1 - group["momentum"])
            update = gradient.lerp(state["momentum"], group["momentum"]).flatten(1)
            alike[update.shape].append((one, update))
        for shape, pairs in alike.items():
            size = group["lr"] * 0.2 * max(shape) ** 0.5
            for (one, _), update in zip(
                pairs, orthogonal(torch.stack([update for _, update in pairs])), strict=True
            ):
                one.add_(update.view_as(one), alpha=-size)

    def _adam(self, group: dict[str, Any], given: list[nn.Parameter]) -> None:
        first, second = group["betas"]
        for one in given:
            state, gradient = self.state[one], one.grad
            assert gradient is not None
            if not state:
                state.update(step=0, mean=torch.zeros_like(one), square=torch.zeros_like(one))
            state["step"] += 1
            state["mean"].lerp_(gradient, 1 - first)
            state["square"].lerp_(gradient.square(), 1 - second)
            spread = (state["square"] / (1 - second ** state["step"])).sqrt_().add_(group["eps"])
            one.addcdiv_(state["mean"], spread, value=-group["lr"] / (1 - first ** state["step"]))


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices [N,R,C] with their singular values brought near 1, between 0.7 and 1.2 (five Newton-Schulz steps)."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = _QUINTIC
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
