"""The reference's own runs on the GPU, and the options that change the steps beside the CPU's loop."""

from __future__ import annotations

import numpy as np
import pytest

pytestmark = pytest.mark.gpu

BOUNDS = {"fp32": 1e-3, "fp16": 0.02}
"""Largest relative L2 error of the last latents: sums in another order, and products rounded in every step."""


@pytest.mark.parametrize("name", ["single", "long", "augmented"])
def test_a_golden_run_gives_the_references_latents(animator, precision, golden_run, relative, name):
    run = golden_run(name)
    latents = animator.sample(
        run.picture, run.poses, run.settings, initial_latents=run.initial_latents[0], image_noise=run.noise
    )
    assert relative(latents, run.latents_after_step[-1]) <= BOUNDS[precision]


@pytest.mark.parametrize(
    "options",
    [
        {"guidance_interval": (0.3, 20.0)},
        {"layout": "compact"},
        {"layout": "shifted"},
        {"reuse_interval": 2},
        {"schedule": "align-your-steps", "guidance": (1.0, 3.0)},
        {"guidance": (1.0, 1.0)},
        {"pose_strength": 2.0, "image_strength": 0.5},
        {"pose_start": 0.3, "pose_end": 0.7},
        {"pose_end": 0.5, "reuse_interval": 2},
    ],
    ids=lambda options: "-".join(options),
)
def test_an_option_gives_what_it_gives_on_the_cpu(full, on_cpu, sample, relative, options):
    found, expected = (sample(animator, steps=5, overlap=3, **options) for animator in (full, on_cpu))
    assert relative(found, expected) <= 1e-4


@pytest.mark.parametrize("options", [{}, {"guidance": (1.0, 1.0)}])
def test_a_strength_of_zero_is_no_pose_in_any_step(full, sample, options):
    """The first uploads features of zero, the other never reads them: pose_start and pose_end round to one step."""
    zero = sample(full, steps=5, pose_strength=0.0, **options)
    np.testing.assert_array_equal(sample(full, steps=5, pose_start=0.01, pose_end=0.02, **options), zero)


def test_what_is_decoded_differs_from_the_cpus_by_a_level_at_most(full, on_cpu):
    """Eleven frames, four at a time: the last chunk is smaller."""
    latents = np.random.default_rng(0).normal(size=(11, 4, 16, 8)).astype(np.float32)
    found, expected = (animator.decode(latents, 4).astype(int) for animator in (full, on_cpu))
    assert np.abs(found - expected).max() <= 1


def test_an_animation_is_near_the_golden_frames(animator, precision, golden_run):
    run = golden_run("single")
    latents = run.latents_after_step[-1]
    difference = animator.decode(latents, run.settings.decode_chunk) - run.frames.transpose(
        0, 2, 3, 1
    ).astype(int)
    assert np.abs(difference).mean() <= {"fp32": 0.05, "fp16": 1}[precision]
