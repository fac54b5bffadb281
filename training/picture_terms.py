"""What pictures are compared by besides their pixels: a network's features, and a discriminator that learns along.

Both weights are sizes of gradients at the pictures beside that of the plain errors (as in VQGAN, Esser et al. 2021).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from .config import Config
from .landmarks import LandmarkNet, feature_distance, load_landmark_net

_WIDTHS = (32, 64, 96)
_RISE = 0.02
"""Share of the steps in which the discriminator's weight rises from 0."""


class PictureTerms:
    """The perceptual and the adversarial term that a config asks for."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config, settings = config, config.vae
        self.finder: LandmarkNet | None = None
        if settings.perceptual_weight:
            assert settings.landmarks is not None
            self.finder = load_landmark_net(settings.landmarks).to(device)
        self.adversary: Adversary | None = None
        if settings.adversarial_weight:
            self.adversary = Adversary(device, config.seed, 3 * settings.adversarial_frames)

    @property
    def parts(self) -> Sequence[Adversary]:
        """What changes with every step and belongs into snapshots."""
        return [self.adversary] if self.adversary else []

    def adversarial_share(self, positions: Sequence[int]) -> Tensor:
        """The share of the discriminator's weight at clips of the run [B]: 0 up to `adversarial_start`, then 1."""
        config = self.config
        done = torch.tensor(positions) / (config.steps * config.batch * config.accumulation)
        return ((done - config.vae.adversarial_start) / _RISE).clamp(0.0, 1.0)

    def added(
        self, plain: Tensor, pictures: Tensor, made: Tensor, truth: Tensor, adversarial: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The value of `plain` with the gradient that all terms have together, and what is logged of the others.

        `made` and `truth` are pictures [B,T,3,H,W]; `plain` was computed from `pictures`, which are `made` with a
        graph of their own.
        """
        terms, parts = self._terms(pictures, truth, adversarial)
        through = (made * balanced(plain, terms, pictures)).sum()
        return plain.detach() + through - through.detach(), parts

    def _terms(
        self, pictures: Tensor, truth: Tensor, adversarial: float
    ) -> tuple[list[tuple[float, Tensor]], dict[str, Tensor]]:
        settings, terms, parts = self.config.vae, list[tuple[float, Tensor]](), dict[str, Tensor]()
        if self.finder is not None:
            with torch.no_grad():
                wanted = self.finder.features(truth.flatten(0, 1))
            distance = feature_distance(self.finder.features(pictures.flatten(0, 1)), wanted)
            terms.append((settings.perceptual_weight, distance))
            parts["perceptual"] = distance.detach()
        if self.adversary is not None:
            taught = torch.full((), float("nan"))
            if adversarial > 0:
                shown = in_a_row(pictures, settings.adversarial_frames)
                taught = self.adversary.teach(in_a_row(truth, settings.adversarial_frames), shown)
                terms.append((settings.adversarial_weight * adversarial, self.adversary.loss(shown)))
            parts["discriminator"] = taught
        return terms, parts


class Adversary:
    """A patch discriminator, which learns by the hinge loss; what it holds is part of a run's snapshots."""

    def __init__(self, device: torch.device, seed: int, planes: int = 3) -> None:
        """It sees pictures [N,planes,H,W]."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = list[nn.Module]()
            for inner, outer in pairwise((planes, *_WIDTHS)):
                layers += [spectral_norm(nn.Conv2d(inner, outer, 4, 2, 1)), nn.LeakyReLU(0.2)]
            layers.append(spectral_norm(nn.Conv2d(_WIDTHS[-1], 1, 3, padding=1)))
        self.network = nn.Sequential(*layers).to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-3, betas=(0.5, 0.99))

    def teach(self, truth: Tensor, made: Tensor) -> Tensor:
        """One step on true and made pictures; returns its loss, 2 if it cannot tell them apart."""
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


def in_a_row(pictures: Tensor, count: int) -> Tensor:
    """Every `count` neighbouring frames of clips [B,T,3,H,W] as planes of one picture [B*(T-count+1),3*count,H,W]."""
    windows = pictures.shape[1] - count + 1
    return torch.cat([pictures[:, at : at + windows] for at in range(count)], dim=2).flatten(0, 1)


def balanced(plain: Tensor, terms: Sequence[tuple[float, Tensor]], pictures: Tensor) -> Tensor:
    """The gradient of `plain` at the pictures, and of each term as large as its weight says beside that one's."""
    (gradient,) = torch.autograd.grad(plain, pictures)
    whole = gradient.clone()
    for weight, term in terms:
        (own,) = torch.autograd.grad(term, pictures)
        whole += weight * gradient.norm() / own.norm().clamp(min=1e-12) * own
    return whole
