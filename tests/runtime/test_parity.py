"""The three golden runs of the reference, through the bundle and the public face."""

from __future__ import annotations

import numpy as np
import pytest

RUNS = pytest.mark.parametrize("name", ["single", "long", "augmented"])


@RUNS
def test_latents_after_every_step_and_frames(animator, golden_run, name):
    run = golden_run(name)
    after: list[np.ndarray] = []
    latents = animator.sample(
        run.picture,
        run.poses,
        run.settings,
        initial_latents=run.initial_latents[0],
        image_noise=run.noise,
        on_step=lambda index, now: after.append(now),
    )
    assert len(after) == run.settings.steps
    for ours, reference in zip(after, run.latents_after_step, strict=True):
        assert np.abs(ours - reference).max() <= 1e-4 * np.abs(reference).max()
    np.testing.assert_allclose(latents, run.latents_after_step[-1], rtol=0, atol=1e-3)

    frames = animator.decode(latents, run.settings.decode_chunk)
    assert frames.dtype == np.uint8
    difference = frames.astype(int) - run.frames.transpose(0, 2, 3, 1)
    assert np.abs(difference).max() <= 2


@RUNS
def test_pose_features(animator, golden_run, name):
    run = golden_run(name)
    features = np.empty_like(run.pose_features_first2)
    assert list(animator.networks.encode_poses(run.poses[:2], features)) == [2]
    np.testing.assert_allclose(features, run.pose_features_first2, atol=1e-5)
