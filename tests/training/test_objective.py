"""Preconditioning, weights, regions, dropout and the loss against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mimicmotion_trt.denoise.schedule import euler_steps, karras_sigmas
from mimicmotion_trt.training import objective
from mimicmotion_trt.training.config import ObjectiveConfig
from mimicmotion_trt.training.metrics import box_on_grid

F, H, W = 3, 8, 8
SIZE = (12, 8)  # h, w


def draws(config: ObjectiveConfig, count: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    generators = [torch.Generator().manual_seed(seed + index) for index in range(count)]
    return objective.draw(config, (F, 4, H, W), (3, 16, 16), generators)


def test_preconditioning_at_sigma_three_quarters():
    sigma = torch.tensor([0.75])  # sqrt(sigma²+1) = 1.25, sigma²+1 = 1.5625
    assert objective.input_scale(sigma).item() == pytest.approx(0.8)
    assert objective.timestep(sigma).item() == pytest.approx(0.25 * math.log(0.75))
    x0 = objective.denoised(torch.full((1, 1), 2.0), torch.full((1, 1), 3.0), sigma)
    assert x0.item() == pytest.approx(-2.0 * 0.6 + 3.0 / 1.5625)


def test_the_network_is_asked_what_the_runtime_asks_it():
    for step in euler_steps(karras_sigmas(5, 0.02, 80.0)):
        sigma = torch.tensor([step.sigma], dtype=torch.float64)
        assert objective.input_scale(sigma).item() == pytest.approx(step.scale)
        assert objective.timestep(sigma).item() == pytest.approx(step.timestep)
        x, v = torch.tensor([[1.7]], dtype=torch.float64), torch.tensor([[-0.4]], dtype=torch.float64)
        x0 = objective.denoised(v, x, sigma)
        euler = x + (x - x0) / step.sigma * (step.next - step.sigma)
        assert (step.keep * x + step.push * v).item() == pytest.approx(euler.item())


def test_the_true_v_gives_the_truth():
    sigma = torch.tensor([0.1, 30.0], dtype=torch.float64)
    truth, noise = torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    s = sigma[:, None]
    v = (noise - s * truth) / (s**2 + 1).sqrt()
    torch.testing.assert_close(objective.denoised(v, truth + s * noise, sigma), truth)


def test_weights():
    sigma = torch.tensor([0.5, 2.0])
    assert objective.loss_weight(sigma).tolist() == [5.0, 1.25]
    assert objective.loss_weight(sigma, 3.0).tolist() == [3.0, 1.25]
    # EDM's weight of x0 makes the loss the squared error of v, at any sigma.
    v, other = torch.tensor([[1.0], [1.0]]), torch.tensor([[3.0], [3.0]])
    noisy = torch.zeros(2, 1)
    error = (objective.denoised(v, noisy, sigma) - objective.denoised(other, noisy, sigma)) ** 2
    torch.testing.assert_close(error[:, 0] * objective.loss_weight(sigma), torch.tensor([4.0, 4.0]))


def test_sigmas_are_log_normal():
    config = ObjectiveConfig(log_sigma_mean=0.7, log_sigma_std=1.6)
    generators = [torch.Generator().manual_seed(index) for index in range(4000)]
    logs = objective.draw(config, (1,), (1,), generators)["sigma"].log()
    assert logs.mean().item() == pytest.approx(0.7, abs=0.08)
    assert logs.std().item() == pytest.approx(1.6, abs=0.06)


def test_a_switch_does_not_change_what_else_is_drawn():
    on, off = draws(ObjectiveConfig()), draws(ObjectiveConfig(noise_aug=False, drop_condition=0.0))
    assert torch.equal(on["noise"], off["noise"])
    assert torch.equal(on["sigma"], off["sigma"])
    assert off["noise_aug"].tolist() == [0.0] * 4
    assert (on["noise_aug"] > 0).all()
    assert off["keep"].all()
    assert not draws(ObjectiveConfig(drop_condition=1.0))["keep"].any()


def test_latents_of_a_kept_and_of_a_dropped_clip():
    noisy = torch.ones(2, F, 4, H, W)
    image = torch.full((2, 4, H, W), 5.0)
    sigma, keep = torch.tensor([0.75, 0.75]), torch.tensor([True, False])
    given = objective.network_latents(noisy, sigma, image, keep)
    assert given.shape == (2, F, 8, H, W)
    torch.testing.assert_close(given[:, :, :4], torch.full((2, F, 4, H, W), 0.8))
    assert (given[0, :, 4:] == 5.0).all()  # not scaled, the same with every frame
    assert (given[1, :, 4:] == 0.0).all()


def test_time_ids_are_those_of_inference():
    ids = objective.time_ids(ObjectiveConfig(), torch.tensor([0.0, 0.02]))
    torch.testing.assert_close(ids, torch.tensor([[6.0, 127.0, 0.0], [6.0, 127.0, 0.02]]))


def test_regions_count_before_the_mean():
    x0, truth = torch.zeros(1, 1, 4, 2, 2), torch.full((1, 1, 4, 2, 2), 2.0)
    region = torch.tensor([[10.0, 1.0], [1.0, 1.0]])[None, None, None]
    loss = objective.clip_losses(x0, truth, torch.tensor([0.5]), region)
    assert loss.item() == pytest.approx(0.5 * 4.0 * (10 + 1 + 1 + 1) / 4)


@pytest.fixture
def pose() -> dict[str, np.ndarray]:
    """One frame: a left hand between (0.30, 0.51) and (0.60, 0.74), a limb along x = 0.5 from neck to hip."""
    pose = {
        "body": np.zeros((1, 18, 2), np.float32),
        "body_score": np.zeros((1, 18), np.float32),
        "hands": np.zeros((1, 2, 21, 2), np.float32),
        "hands_score": np.zeros((1, 2, 21), np.float32),
    }
    pose["hands"][0, 0] = np.linspace((0.30, 0.51), (0.60, 0.74), 21)
    pose["hands_score"][0, 0] = 0.9
    pose["body"][0, [1, 8]] = (0.5, 0.25), (0.5, 0.5)
    pose["body_score"][0, [1, 8]] = 1.0
    return pose


def test_a_hand_box_covers_the_latents_it_touches(pose):
    # x: 0.30*8 = 2.4 to 0.60*8 = 4.8, columns 2 to 4; y: 0.51*12 = 6.12 to 0.74*12 = 8.88, rows 6 to 8
    mask = objective.hand_mask(pose["hands"], pose["hands_score"], SIZE, 0.8)
    expected = np.zeros((1, *SIZE), bool)
    expected[0, 6:9, 2:5] = True
    np.testing.assert_array_equal(mask, expected)


def test_one_weak_keypoint_leaves_the_hand_out(pose):
    pose["hands_score"][0, 0, 20] = 0.8  # not above the threshold
    assert not objective.hand_mask(pose["hands"], pose["hands_score"], SIZE, 0.8).any()
    assert objective.hand_mask(pose["hands"], pose["hands_score"], SIZE, 0.79).any()


@pytest.mark.parametrize(
    ("low", "high", "touched"),
    [
        ((-0.5, 0.0), (0.01, 0.01), (0, 1, 0, 1)),  # cut at the picture's edge
        ((1.2, 0.5), (1.5, 0.6), (6, 8, 8, 8)),  # beside the picture: nothing
        ((-1.0, -1.0), (2.0, 2.0), (0, 12, 0, 8)),
    ],
)
def test_boxes_at_the_edge(low, high, touched):
    assert box_on_grid(np.array([low, high], np.float32), SIZE) == touched


def test_near_a_limb(pose):
    # The limb runs from (4, 3) to (4, 6) in latents; 0.06 of 12 rows is 0.72 of them: columns 3 and 4, whose centres
    # are 0.5 away, in rows 3 to 5; the corners above and below are sqrt(0.5) = 0.707 away.
    mask = objective.skeleton_mask(pose["body"], pose["body_score"], SIZE, 0.06)
    expected = np.zeros((1, *SIZE), bool)
    expected[0, 2:7, 3:5] = True
    np.testing.assert_array_equal(mask, expected)
    pose["body_score"][0, 8] = 0.29
    assert not objective.skeleton_mask(pose["body"], pose["body_score"], SIZE, 0.06).any()


def test_weights_and_their_switches(pose):
    both = objective.region_weights(ObjectiveConfig(skeleton_weight=3.0), SIZE, **pose)
    assert both.shape == (1, 1, *SIZE)
    assert both[0, 0, 7, 3] == 10.0
    assert both[0, 0, 6, 3] == 10.0  # hand and limb: the larger
    assert both[0, 0, 3, 3] == 3.0
    assert both[0, 0, 0, 0] == 1.0
    off = objective.region_weights(ObjectiveConfig(hand_weight=1.0), SIZE, **pose)
    assert (off == 1.0).all()
