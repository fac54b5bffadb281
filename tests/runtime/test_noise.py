"""Seeded noise: the same bytes for the same seed, and what each mode repeats."""

from __future__ import annotations

import numpy as np
import pytest

from mimicmotion_trt.denoise.noise import latent_noise, picture_noise, spread

CELLS = (2, 3)


def test_the_numbers_of_a_seed_are_pinned():
    """Videos of a seed must not change from one version to the next."""
    latents, picture = latent_noise(42, 5, 3, CELLS), picture_noise(42, 8, 8)
    np.testing.assert_allclose(latents.ravel()[:3], [0.18170474, -1.2426393, -0.551553], rtol=1e-6)
    np.testing.assert_allclose(picture.ravel()[:3], [1.3714008, -1.2251600, 0.3027194], rtol=1e-6)


@pytest.mark.parametrize("mode", ["repeat", "independent"])
def test_seeds_differ(mode):
    drawn = [latent_noise(seed, 4, 4, CELLS, mode).tobytes() for seed in (0, 1, 2**63, 2**64 - 1)]
    assert len(set(drawn)) == 4
    assert drawn[0] == latent_noise(0, 4, 4, CELLS, mode).tobytes()


@pytest.mark.parametrize("frames", [1, 3, 4, 5, 8, 11])
def test_repeated_noise_has_the_segments_period(frames):
    noise = latent_noise(7, frames, 4, CELLS, "repeat")
    assert noise.shape == (frames, 4, *CELLS)
    assert noise.dtype == np.float32
    for frame in range(frames):
        np.testing.assert_array_equal(noise[frame], noise[frame % 4])
    np.testing.assert_array_equal(noise[:4], latent_noise(7, 4, 4, CELLS)[:frames])


def test_independent_noise_never_repeats():
    noise = latent_noise(7, 12, 4, CELLS, "independent")
    assert len({frame.tobytes() for frame in noise}) == 12


def test_noise_is_of_unit_variance():
    noise = latent_noise(3, 64, 64, (16, 16))
    assert abs(noise.mean()) < 0.02
    assert noise.std() == pytest.approx(1, abs=0.02)


def test_the_pictures_noise_is_its_own():
    """It does not change with the clip's length, and it is not the latents' noise."""
    picture = picture_noise(7, 16, 24)
    assert picture.shape == (3, 16, 24)
    latent_noise(7, 100, 72, (2, 3))
    np.testing.assert_array_equal(picture, picture_noise(7, 16, 24))
    assert not np.array_equal(picture.ravel()[:24], latent_noise(7, 1, 1, CELLS).ravel())


def test_spread_repeats_along_the_first_axis():
    assert spread(np.arange(3, dtype=np.float32), 7).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert spread(np.arange(3, dtype=np.float32), 2).tolist() == [0, 1]
