"""A patch discriminator that teaches a decoder what pictures look like near by, with an optimizer of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

_WIDTHS = (3, 32, 64, 96)


class Adversary:
    """The discriminator, which learns by the hinge loss; what it holds is part of a run's snapshots."""

    def __init__(self, device: torch.device, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = list[nn.Module]()
            for inner, outer in pairwise(_WIDTHS):
                layers += [spectral_norm(nn.Conv2d(inner, outer, 4, 2, 1)), nn.LeakyReLU(0.2)]
            layers.append(spectral_norm(nn.Conv2d(_WIDTHS[-1], 1, 3, padding=1)))
        self.network = nn.Sequential(*layers).to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-3, betas=(0.5, 0.99))

    def teach(self, truth: Tensor, made: Tensor) -> Tensor:
        """One step on true and made pictures [N,3,H,W]; returns its loss, 2 if it cannot tell them apart."""
        self.network.requires_grad_(True)
        loss = F.relu(1 - self.network(truth)).mean() + F.relu(1 + self.network(made.detach())).mean()
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach()

    def loss(self, made: Tensor) -> Tensor:
        """How surely the pictures are told from true ones; gradients flow to them alone."""
        self.network.requires_grad_(False)
        score: Tensor = self.network(made)
        return -score.mean()

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs."""
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])


def balanced(plain: Tensor, terms: Sequence[tuple[float, Tensor]], pictures: Tensor) -> Tensor:
    """The gradient of `plain` at the pictures, and of each term as large as its weight says beside that one's."""
    (gradient,) = torch.autograd.grad(plain, pictures)
    whole = gradient.clone()
    for weight, term in terms:
        (own,) = torch.autograd.grad(term, pictures)
        whole += weight * gradient.norm() / own.norm().clamp(min=1e-12) * own
    return whole
