"""`Animator.sample` and `decode`: sizes, lengths and settings other than the golden runs'."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mimicmotion_trt import Animator, InputError, MotionError, Settings, SettingsError
from mimicmotion_trt.media.picture import read_picture


@pytest.fixture
def sample(animator: Animator, person: Path, pose_pictures: Callable[..., Any]) -> Callable[..., Any]:
    """Latents of the person with random pose pictures; one step at guidance 1 unless told otherwise."""

    def run(frames: int, height: int = 64, width: int = 64, poses=None, **settings):
        given = {
            name: settings.pop(name)
            for name in ("initial_latents", "image_noise", "on_step")
            if name in settings
        }
        chosen = Settings(**{"steps": 1, "guidance": 1, "segment": 8, "overlap": 3, **settings})
        drawn = pose_pictures(frames, height, width) if poses is None else poses
        return animator.sample(person, drawn, chosen, **given)

    return run


@pytest.mark.parametrize(("frames", "height", "width"), [(11, 64, 64), (2, 128, 192), (9, 192, 64)])
def test_any_size_in_multiples_of_64(animator, sample, frames, height, width):
    latents = sample(frames, height, width)
    assert latents.shape == (frames, 4, height // 8, width // 8)
    assert latents.dtype == np.float32
    assert np.isfinite(latents).all()
    pictures = animator.decode(latents)
    assert pictures.shape == (frames, height, width, 3)
    assert pictures.dtype == np.uint8
    assert pictures.std() > 1


@pytest.mark.parametrize("frames", [1, 2, 7, 8, 9, 14])
def test_any_number_of_frames(sample, frames):
    """Fewer than a segment, exactly one, and clips that whole segments do not cover."""
    latents = sample(frames, guidance=(1.5, 2.5), steps=2)
    assert len(latents) == frames
    assert np.isfinite(latents).all()


def test_a_short_clip_is_one_segment_of_its_own_length(sample):
    """So how long segments might be makes no difference."""
    np.testing.assert_array_equal(sample(5, segment=8), sample(5, segment=72))
    np.testing.assert_array_equal(sample(5, segment=8), sample(5, segment=5))


def test_the_same_seed_gives_the_same_bytes(animator, sample):
    first, second = (sample(11, seed=5, steps=2, guidance=2, noise_aug=0.1) for _ in range(2))
    assert first.tobytes() == second.tobytes()
    assert animator.decode(first).tobytes() == animator.decode(second).tobytes()
    assert sample(11, seed=6, steps=2, guidance=2, noise_aug=0.1).tobytes() != first.tobytes()


PLAIN = {"steps": 2, "segment": 6, "overlap": 2, "guidance": 2}


@pytest.fixture(scope="module")
def usual(animator: Animator, person: Path, pose_pictures: Callable[..., Any]) -> np.ndarray:
    return animator.sample(person, pose_pictures(9), Settings(**PLAIN))


@pytest.mark.parametrize(
    "change",
    [
        {"guidance": 3},
        {"guidance": (1, 2)},
        {"layout": "compact", "segment": 8},
        {"fusion": "linear"},
        {"noise": "independent"},
        {"noise_aug": 0.5},
        {"motion_bucket": 1},
        {"conditioning_fps": 30},
        {"sigma_max": 10.0},
        {"sigma_min": 1.0},
        {"steps": 3},
        {"overlap": 5},
        {"segment": 7},
        {"pose_strength": 2},
        {"pose_start": 0.5},
        {"pose_end": 0.5},
        {"image_strength": 0.5},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_setting_of_sampling_counts(sample, usual, change):
    changed = sample(9, **{**PLAIN, **change})
    assert changed.shape == usual.shape
    assert np.isfinite(changed).all()
    assert not np.array_equal(changed, usual)


def test_the_pose_counts_in_its_own_frame_and_picture(sample, pose_pictures):
    poses = pose_pictures(4)
    other = poses.copy()
    other[2] = 255
    assert not np.array_equal(sample(4, poses=poses), sample(4, poses=other))


def test_initial_latents_of_a_segments_length_repeat(sample):
    noise = np.random.default_rng(0).normal(size=(8, 4, 8, 8)).astype(np.float32)
    whole = noise[np.arange(11) % 8]
    np.testing.assert_array_equal(sample(11, initial_latents=noise), sample(11, initial_latents=whole))


def test_initial_latents_of_every_frame_are_taken_as_they_are(sample):
    noise = np.random.default_rng(0).normal(size=(11, 4, 8, 8)).astype(np.float32)
    other = noise.copy()
    other[10] += 1
    assert not np.array_equal(sample(11, initial_latents=noise), sample(11, initial_latents=other))


def test_the_seeds_own_noise_can_be_given(animator, sample):
    from mimicmotion_trt.denoise.noise import latent_noise, picture_noise

    own = sample(11, seed=9, noise_aug=0.2)
    given = sample(
        11,
        noise_aug=0.2,
        initial_latents=latent_noise(9, 11, 8, (8, 8)),
        image_noise=picture_noise(9, 64, 64),
    )
    np.testing.assert_array_equal(own, given)


def test_image_noise_counts_only_with_noise_aug(sample):
    noise = np.ones((3, 64, 64), np.float32)
    np.testing.assert_array_equal(sample(2, image_noise=noise), sample(2))
    assert not np.array_equal(sample(2, image_noise=noise, noise_aug=0.1), sample(2, noise_aug=0.1))


def test_on_step_is_given_copies(sample):
    seen = []
    latents = sample(4, steps=3, on_step=lambda index, now: seen.append((index, now)))
    assert [index for index, _ in seen] == [0, 1, 2]
    np.testing.assert_array_equal(seen[-1][1], latents)
    assert not np.array_equal(seen[0][1], seen[1][1])
    seen[-1][1][:] = 0
    assert latents.any()


def test_settings_come_from_the_bundle(animator, person, pose_pictures):
    steps = []
    animator.sample(person, pose_pictures(2), on_step=lambda index, now: steps.append(index))
    assert steps == [0, 1, 2]
    settings = animator.settings(seed=3)
    assert (settings.steps, settings.segment, settings.canvas, settings.seed) == (3, 16, 512, 3)
    assert (settings.sigma_min, settings.sigma_max) == (0.002, 700.0)
    resolved = animator.resolve(Settings(sigma_max=80.0))
    assert (resolved.steps, resolved.segment, resolved.sigma_max, resolved.canvas) == (25, 16, 80.0, 512)


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_frames_are_decoded_in_chunks(animator, sample, chunk):
    """Chunks are independent of each other, so a whole chunk decodes as a clip of its own."""
    latents = sample(5)
    pictures = animator.decode(latents, chunk)
    parts = [animator.decode(latents[start : start + chunk], chunk) for start in range(0, 5, chunk)]
    np.testing.assert_array_equal(pictures, np.concatenate(parts))


def test_the_chunk_is_an_argument_of_decoding_and_latents_are_plain_arrays(animator, sample):
    latents = sample(5, decode_chunk=2)
    assert type(latents) is np.ndarray
    usual = animator.settings().decode_chunk
    np.testing.assert_array_equal(animator.decode(latents), animator.decode(latents, usual))
    assert not np.array_equal(animator.decode(latents, 2), animator.decode(latents, 5))


def test_decoding_leaves_the_latents_alone(animator, sample):
    latents = sample(3)
    before = latents.copy()
    animator.decode(latents)
    np.testing.assert_array_equal(latents, before)


def test_a_picture_in_every_form(animator, person, pose_pictures):
    settings = Settings(steps=1, guidance=1)
    picture, poses = read_picture(person), pose_pictures(2)
    forms = [person, str(person), person.read_bytes(), picture, Image.open(person), torch.tensor(picture)]
    results = [animator.sample(form, poses, settings).tobytes() for form in forms]
    assert len(set(results)) == 1
    assert animator.sample(picture, torch.from_numpy(poses), settings).tobytes() == results[0]


def test_a_tensor_that_numpy_cannot_read(animator, person, pose_pictures):
    wanting = torch.zeros(2, 64, 64, 3, requires_grad=True)
    for image, poses, field in ((wanting[0], pose_pictures(2), "image"), (person, wanting, "pose_frames")):
        with pytest.raises(InputError) as caught:
            animator.sample(image, poses)
        assert caught.value.field == field
        assert "detach" in caught.value.remedy


@pytest.mark.parametrize(
    "poses",
    [
        None,
        "poses",
        [[1], [1, 2]],
        np.zeros((2, 64, 64, 3), np.float32),
        np.zeros((2, 3, 64, 64), np.uint8),
        np.zeros((64, 64, 3), np.uint8),
        np.zeros((0, 64, 64, 3), np.uint8),
        np.zeros((2, 64, 65, 3), np.uint8),
        np.zeros((2, 72, 64, 3), np.uint8),
        np.zeros((2, 0, 64, 3), np.uint8),
    ],
)
def test_wrong_pose_frames(animator, person, poses):
    with pytest.raises(MotionError) as caught:
        animator.sample(person, poses)
    assert caught.value.field == "pose_frames"
    assert caught.value.remedy


def test_pose_frames_of_another_size_than_the_settings(animator, person, pose_pictures):
    with pytest.raises(MotionError, match="64x128") as caught:
        animator.sample(person, pose_pictures(2, 128, 64), Settings(size=(128, 64)))
    assert "settings.size" in caught.value.remedy


@pytest.mark.parametrize(
    "latents",
    [
        "noise",
        [[1], [1, 2]],
        np.zeros((0, 4, 8, 8), np.float32),
        np.zeros((8, 3, 8, 8), np.float32),
        np.zeros((8, 4, 8, 9), np.float32),
        np.zeros((1, 8, 4, 8, 8), np.float32),
        np.full((8, 4, 8, 8), np.nan, np.float32),
        np.full((8, 4, 8, 8), np.inf, np.float32),
    ],
)
def test_wrong_initial_latents(sample, latents):
    with pytest.raises(SettingsError, match="initial_latents") as caught:
        sample(3, initial_latents=latents)
    assert caught.value.field == "initial_latents"
    assert "4, 8, 8" in caught.value.remedy


@pytest.mark.parametrize(
    "noise", [1.0, np.zeros((3, 64, 65)), np.zeros((1, 3, 64, 64)), np.full((3, 64, 64), np.nan)]
)
def test_wrong_image_noise(sample, noise):
    with pytest.raises(SettingsError) as caught:
        sample(3, noise_aug=0.1, image_noise=noise)
    assert caught.value.field == "image_noise"
    assert "3, 64, 64" in caught.value.remedy


@pytest.mark.parametrize(
    "latents",
    ["x", np.zeros((4, 8, 8)), np.zeros((0, 4, 8, 8)), np.zeros((2, 3, 8, 8)), np.full((1, 4, 8, 8), np.nan)],
)
def test_wrong_latents_to_decode(animator, latents):
    with pytest.raises(SettingsError) as caught:
        animator.decode(latents)
    assert caught.value.field == "latents"
    assert caught.value.remedy


@pytest.mark.parametrize("chunk", [0, -1])
def test_a_chunk_holds_a_frame(animator, chunk):
    with pytest.raises(SettingsError) as caught:
        animator.decode(np.zeros((1, 4, 8, 8), np.float32), chunk)
    assert caught.value.field == "chunk"


def test_an_overlap_too_long_for_the_bundles_segment(animator, person, pose_pictures):
    with pytest.raises(SettingsError, match="16") as caught:
        animator.sample(person, pose_pictures(2), Settings(overlap=16))
    assert caught.value.field == "settings.overlap"


def test_settings_of_another_kind(animator, person, pose_pictures):
    with pytest.raises(SettingsError, match="dict"):
        animator.sample(person, pose_pictures(2), {"steps": 3})
