"""The optimizer Muon: matrices step by orthogonal momentum, all else as Adam."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mimicmotion_trt.training.muon import Muon, orthogonal


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16 by autocast"])
def test_singular_values_come_near_one(half):
    torch.manual_seed(0)
    for shape in ((2, 12, 30), (1, 30, 12)):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            made = orthogonal(torch.randn(shape) * 1e-3)
        values = torch.linalg.svdvals(made.float())
        assert float(values.min()) > 0.6
        assert float(values.max()) < 1.3


def test_one_step_is_that_of_torchs_muon_and_adam():
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    theirs = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    theirs.load_state_dict(ours.state_dict())
    matrices = [layer.weight for layer in theirs]
    rest = [layer.bias for layer in theirs]
    optimizers = (
        Muon(ours.parameters(), lr=0.01, betas=(0.9, 0.99)),
        torch.optim.Muon(matrices, lr=0.01, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.Adam(rest, lr=0.01, betas=(0.9, 0.99)),
    )
    x = torch.randn(16, 6)
    for _ in range(3):
        for network in (ours, theirs):
            network.zero_grad()
            network(x).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=2e-3, rtol=0)  # torch's matrices are bfloat16 on the way


def test_a_convolution_steps_as_its_matrix():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 3, bias=False)
    matrix = nn.Parameter(conv.weight.detach().flatten(1).clone())
    conv.weight.grad = torch.randn_like(conv.weight)
    matrix.grad = conv.weight.grad.flatten(1)
    for parameter in (conv.weight, matrix):
        Muon([parameter], lr=0.1).step()
    torch.testing.assert_close(conv.weight.flatten(1), matrix)


def test_it_learns():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 2))
    optimizer = Muon(network.parameters(), lr=0.02)
    x = torch.randn(256, 8)
    wanted = torch.stack([x[:, 0] * x[:, 1], x[:, 2].sin()], dim=1)
    losses = []
    for _ in range(150):
        loss = (network(x) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.15 * losses[0]
