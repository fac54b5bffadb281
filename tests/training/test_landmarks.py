"""Landmarks: where keypoints have them, heatmaps of them, and cuts that are laid on heads and hands."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mimicmotion_trt.errors import CheckpointError
from mimicmotion_trt.training.config import VaeConfig
from mimicmotion_trt.training.landmarks import (
    COUNT,
    PARTS,
    LandmarkNet,
    feature_distance,
    find_landmarks,
    found_again,
    heatmaps,
    load_landmark_net,
    located,
)
from mimicmotion_trt.training.stages.landmarks import choose_cut, store_marked
from mimicmotion_trt.training.synthetic import make_clip


def marked(seed: int = 5) -> dict[str, np.ndarray]:
    clip = make_clip(seed, 3, 192, 128, driven=True)
    return store_marked(
        {
            "frames": clip.frames, "observed": clip.observed, "truth": clip.truth,
            "reference": clip.reference, "reference_pose": clip.reference_pose,
        }
    )  # fmt: skip


def test_landmarks_are_the_true_points_in_pixels():
    clip = make_clip(5, 3, 192, 128, driven=True)
    points, seen = find_landmarks(clip.truth)
    assert points.shape == (3, COUNT, 2)
    assert seen.shape == (3, COUNT)
    np.testing.assert_allclose(points[:, 6], clip.truth.face[:, 30] * (128, 192), rtol=1e-6)
    stored = marked()
    np.testing.assert_array_equal(stored["points"][1:], points)
    np.testing.assert_array_equal(stored["seen"][1:], seen)


def test_heatmaps_are_highest_where_landmarks_are():
    points = torch.tensor([[[20.0, 30.0], [50.0, 10.0]]])
    heat = heatmaps(points, torch.tensor([[True, False]]), 64, 64)
    assert heat.shape == (1, 2, 32, 32)
    place, height = located(torch.logit(heat, eps=1e-6))
    assert float((place[0, 0] - points[0, 0]).abs().max()) <= 1
    assert float(height[0, 0]) > 0.7
    assert float(heat[0, 1].max()) == 0


def test_the_network_answers_at_half_the_size_and_features_tell_pictures_apart():
    torch.manual_seed(0)
    network, pictures = LandmarkNet(), torch.rand(2, 3, 64, 48) * 2 - 1
    assert network(pictures).shape == (2, COUNT, 32, 24)
    one, other = (network.features(some) for some in (pictures, -pictures))
    assert float(feature_distance(one, one)) == 0
    assert float(feature_distance(one, other)) > 0.01


def test_what_is_found_in_the_truth_is_found_in_it_again_and_not_in_a_blank_video():
    """With a network that answers where a picture is darkest, and a truth of dark dots."""
    clip = make_clip(5, 3, 192, 128)
    points, _ = find_landmarks(clip.truth)
    truth = np.full_like(clip.frames, 255)
    for frame in range(3):
        x, y = points[frame, 6].astype(int)
        truth[frame, y - 1 : y + 2, x - 1 : x + 2] = 0

    class Darkest(LandmarkNet):
        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            dark = -torch.nn.functional.avg_pool2d(pictures.mean(dim=1, keepdim=True), 2)
            return dark.repeat(1, COUNT, 1, 1)

    again = found_again(Darkest(), truth, truth, clip.truth)
    assert again["landmark_error"] < 2
    blank = found_again(Darkest(), np.full_like(truth, 255), truth, clip.truth)
    assert blank["landmark_error"] > 10
    for name in ("face_found", "hands_found"):
        assert again[name] in (1.0, None)


def test_cuts_are_laid_on_heads_and_hands():
    clip = marked()

    def shares(focus: float) -> float:
        settings = VaeConfig(frames=1, crop=64, focus=focus)
        found = []
        for number in range(60):
            cut = choose_cut(clip, settings, torch.Generator().manual_seed(number))
            assert clip["frames"][cut].shape == (1, 64, 64, 3)
            low = np.array([cut.columns.start, cut.rows.start])
            points = clip["points"][cut.frames]
            inside = ((points >= low) & (points < low + 64)).all(axis=-1) & clip["seen"][cut.frames]
            found.append(any(inside[0, part].any() for part in PARTS))
        return float(np.mean(found))

    assert shares(1.0) > 0.95
    assert shares(0.0) < shares(1.0)


def test_a_file_of_something_else_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="does not fit"):
        load_landmark_net(tmp_path / "other.safetensors")
